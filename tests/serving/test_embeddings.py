"""/v1/embeddings: vectors in the order of the texts, as numbers and as base64."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import openai
import pytest

from tests.serving.conftest import HashingEmbedder, Running

Serve = Callable[..., Running]


def test_vectors_come_in_the_order_of_the_texts(serve: Serve) -> None:
    """Eleven texts through an encoder of four rows: each vector is its text's, in batches of at most four."""
    embedder = HashingEmbedder()
    client = serve(embedder).client()
    texts = ["x" * (1 + number % 9) for number in range(11)]
    answer = client.embeddings.create(model="tiny", input=texts, encoding_format="float")
    assert [entry.embedding for entry in answer.data] == [
        [len(text), len(text) * ord("x"), ord("x")] for text in texts
    ]
    assert answer.usage.prompt_tokens == sum(map(len, texts))
    assert sum(embedder.batches) == 11
    assert max(embedder.batches) == 4


def test_base64_is_the_same(serve: Serve) -> None:
    """The openai client asks for base64 unless told otherwise, and reads the same numbers from it."""
    client = serve(HashingEmbedder()).client()
    assert client.embeddings.create(model="tiny", input="abc").data[0].embedding == [3, 294, 97]
    assert client.embeddings.create(model="tiny", input=[[97, 98, 99]]).data[0].embedding == [3, 294, 97]


@pytest.mark.parametrize(
    ("changed", "param", "code"),
    [
        ({"input": "x" * 33}, "input", "context_length_exceeded"),
        ({"input": ["ok", ""]}, "input", "invalid_value"),
        ({"input": ["x"] * 2049}, "input", "invalid_value"),
        ({"input": ["x"] * 261}, "input", "invalid_value"),  # more than rows and queue ever take
        ({"dimensions": 2}, "dimensions", "unsupported_parameter"),
        ({"encoding_format": "hex"}, "encoding_format", "invalid_value"),
    ],
)
def test_texts_that_do_not_go_are_named(
    changed: dict[str, object], param: str, code: str, serve: Serve
) -> None:
    """Too long, empty, too many, or asked for in another form: 400, and never cut silently."""
    server = serve(HashingEmbedder())
    response = httpx.post(f"{server.url}/embeddings", json={"model": "tiny", "input": "x"} | changed)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code)


def test_an_encoder_does_not_complete(serve: Serve) -> None:
    """Asked to generate, an encoder says what it is for."""
    client = serve(HashingEmbedder()).client()
    with pytest.raises(openai.BadRequestError, match="/v1/embeddings"):
        client.completions.create(model="tiny", prompt="x")
