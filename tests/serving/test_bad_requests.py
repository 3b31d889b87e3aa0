"""What a hostile or clumsy client sends: each gets OpenAI's error shape, and the server goes on."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest

from neuron_port.errors import UsageError
from neuron_port.serving.settings import Settings
from tests.serving.conftest import (
    HashingEmbedder,
    HashingGenerator,
    Running,
    expected_text,
    fake_bundle,
    running,
)

Serve = Callable[..., Running]


@pytest.fixture(scope="module")
def server(tokenizer_folder: Any) -> Iterator[Running]:
    """One server that all bad requests go to; it must be well at the end."""
    from neuron_port.serving.service import Service

    settings = Settings(port=0, max_body_bytes=20_000, header_seconds=1.0)
    bundle = fake_bundle(tokenizer_folder, "decode")
    with running(Service(bundle, settings, make_generator=lambda *_: HashingGenerator())) as server:
        yield server
        answer = server.client().completions.create(model="tiny", prompt="well", max_tokens=4, temperature=0)
        assert answer.choices[0].text == expected_text("well", 4)


BASE = {"model": "tiny", "prompt": "x"}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}
BAD = [
    # (path, body, status, param, code)
    ("completions", {"prompt": "x"}, 400, "model", "missing_parameter"),
    ("completions", {"model": "tiny"}, 400, "prompt", "missing_parameter"),
    ("completions", BASE | {"model": "gpt-9"}, 404, "model", "model_not_found"),
    ("completions", BASE | {"model": 7}, 400, "model", "invalid_value"),
    ("completions", BASE | {"max_tokens": "7"}, 400, "max_tokens", "invalid_value"),
    ("completions", BASE | {"max_tokens": 0}, 400, "max_tokens", "invalid_value"),
    ("completions", BASE | {"max_tokens": 1.5}, 400, "max_tokens", "invalid_value"),
    ("completions", BASE | {"max_tokens": True}, 400, "max_tokens", "invalid_value"),
    ("completions", BASE | {"temperature": -1}, 400, "temperature", "invalid_value"),
    ("completions", BASE | {"temperature": "hot"}, 400, "temperature", "invalid_value"),
    ("completions", BASE | {"top_p": 0}, 400, "top_p", "invalid_value"),
    ("completions", BASE | {"n": 1000}, 400, "n", "invalid_value"),
    ("completions", BASE | {"stream": "yes"}, 400, "stream", "invalid_value"),
    ("completions", BASE | {"stream_options": {"include_usage": True}}, 400, "stream_options", None),
    ("completions", BASE | {"stop": ["a"] * 17}, 400, "stop", "invalid_value"),
    ("completions", BASE | {"prompt": []}, 400, "prompt", "invalid_value"),
    ("completions", BASE | {"prompt": ""}, 400, "prompt", "invalid_value"),
    ("completions", BASE | {"prompt": {"text": "x"}}, 400, "prompt", "invalid_value"),
    ("completions", BASE | {"prompt": ["x", 3]}, 400, "prompt", "invalid_value"),
    ("completions", BASE | {"prompt": [3, -1]}, 400, "prompt", "invalid_value"),
    ("completions", BASE | {"prompt": [3, 10**9]}, 400, "prompt", "invalid_value"),
    ("completions", BASE | {"prompt": [3, 10**30]}, 400, "prompt", "invalid_value"),
    ("completions", BASE | {"prompt": [3, 10**30], "echo": True}, 400, "prompt", "invalid_value"),
    ("completions", BASE | {"prompt": ["x"] * 4000}, 400, "n", "too_many_choices"),
    ("completions", BASE | {"prompt": "x" * 65}, 400, "prompt", "context_length_exceeded"),
    ("completions", BASE | {"wibble": 1}, 400, "wibble", "unknown_parameter"),
    ("completions", BASE | {"suffix": "end"}, 400, "suffix", "unsupported_parameter"),
    ("completions", BASE | {"best_of": 4}, 400, "best_of", "unsupported_parameter"),
    ("completions", BASE | {"frequency_penalty": 1}, 400, "frequency_penalty", "unsupported_parameter"),
    ("completions", BASE | {"logit_bias": {"5": 1}}, 400, "logit_bias", "unsupported_parameter"),
    ("completions", BASE | {"echo": True, "logprobs": 1}, 400, "echo", "unsupported_parameter"),
    ("chat/completions", CHAT | {"messages": []}, 400, "messages", "invalid_value"),
    ("chat/completions", CHAT | {"messages": "hi"}, 400, "messages", "invalid_value"),
    ("chat/completions", CHAT | {"messages": [{"role": "king", "content": "x"}]}, 400, "messages", "invalid_value"),
    ("chat/completions", CHAT | {"messages": [IMAGE]}, 400, "messages.0.content", "unsupported_parameter"),
    ("chat/completions", CHAT | {"messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0.role",
     "unsupported_parameter"),
    ("chat/completions", CHAT | {"tools": [{"type": "function"}]}, 400, "tools", "unsupported_parameter"),
    ("chat/completions", CHAT | {"response_format": {"type": "json_object"}}, 400, "response_format",
     "unsupported_parameter"),
    ("chat/completions", CHAT | {"top_logprobs": 3}, 400, "top_logprobs", None),
    ("embeddings", {"model": "tiny", "input": "x"}, 400, "model", "unsupported_model"),
    ("wibble", {}, 404, None, "unknown_url"),
    ("responses", {}, 404, None, "unsupported_endpoint"),
    ("models", {}, 405, None, "method_not_allowed"),
]  # fmt: skip


def check_shape(response: httpx.Response, status: int, param: str | None, code: str | None) -> None:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert (response.status_code, error["param"], error["code"]) == (status, param, code), error


@pytest.mark.parametrize(("path", "body", "status", "param", "code"), BAD)
def test_bad_requests_are_named(
    path: str, body: dict[str, Any], status: int, param: str | None, code: str | None, server: Running
) -> None:
    """Wrong types, values, names and unsupported features: the status, the parameter and the code say which."""
    check_shape(httpx.post(f"{server.url}/{path}", json=body), status, param, code)


@pytest.mark.parametrize(
    "accepted",
    [
        {"user": "me"},
        {"n": None},
        {"frequency_penalty": 0},
        {"logit_bias": {}},
        {"best_of": 1},
        {"stop": None},
    ],
)
def test_what_asks_for_nothing_is_accepted(accepted: dict[str, Any], server: Running) -> None:
    """Fields that change nothing, or have the value that asks for nothing, are no error."""
    assert httpx.post(f"{server.url}/completions", json=BASE | accepted).status_code == 200


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b"[" * 10_000,
        b'{"model": 1' + b"0" * 5000 + b"}",
        b'{"model": "tiny", "prompt": "\\ud800"}',
        b'{"model": "tiny", "prompt": "\xed\xa0\x80"}',
    ],
    ids=["empty", "cut", "list", "null", "string", "bytes", "deep", "number", "half a pair", "surrogate"],
)
def test_what_is_no_json_object_is_refused(content: bytes, server: Running) -> None:
    """Anything but a JSON object is 400, however it is broken."""
    response = httpx.post(
        f"{server.url}/completions", content=content, headers={"content-type": "application/json"}
    )
    check_shape(response, 400, None, "invalid_json")


def test_other_content_types_are_refused(server: Running) -> None:
    """A form, which a web page may send to this machine unasked, is 415."""
    response = httpx.post(f"{server.url}/completions", data={"model": "tiny"})
    check_shape(response, 415, None, "unsupported_media_type")


@pytest.mark.parametrize("declared", [True, False])
def test_huge_bodies_are_refused(declared: bool, server: Running) -> None:
    """A body beyond the limit is 413, whether its length is declared or found out."""
    data = json.dumps(BASE | {"prompt": "x" * 30_000}).encode()
    content: Any = data if declared else iter([data[:15_000], data[15_000:]])
    response = httpx.post(
        f"{server.url}/completions", content=content, headers={"content-type": "application/json"}
    )
    check_shape(response, 413, None, "body_too_large")


def talk(server: Running, data: bytes, *, seconds: float = 10) -> bytes:
    """What comes back for raw bytes, until the server closes the connection."""
    host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        connection.sendall(data)
        received = b""
        while part := connection.recv(65536):
            received += part
        return received


def test_slow_headers_are_cut_off(server: Running) -> None:
    """A client that never ends its headers, or sends nothing at all, is cut off after `header_seconds`."""
    for data in (b"", b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n"):
        with contextlib.suppress(ConnectionResetError):
            assert talk(server, data) == b""  # which would time out if the connection stayed open


def test_slow_bodies_are_told(server: Running) -> None:
    """A client that declares a body and does not send it gets 408."""
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"
    received = talk(server, head + b"")
    assert received.startswith(b"HTTP/1.1 408")
    assert b'"code":"slow_client"' in received


def test_what_is_no_http_is_refused(server: Running) -> None:
    """Bytes that are no HTTP get 400 in OpenAI's shape, and the connection ends."""
    received = talk(server, b"\x16\x03\x01 hello\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 400")
    assert b'"code": "invalid_http"' in received


def test_a_body_that_trickles_after_its_answer_is_cut_off(server: Running) -> None:
    """A route that reads no body answers at once; bytes of a body without end do not keep the connection."""
    host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\n{")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(b"{")
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(65536):  # which would time out if the connection stayed open
                pass


def send_and_never_read(connection: socket.socket, data: bytes) -> None:
    while True:
        connection.sendall(data)


def test_a_client_that_takes_no_answer_is_cut_off(serve: Serve) -> None:
    """An answer that is not streamed, and of which the client takes nothing, holds its connection for `send_seconds`."""
    server = serve(HashingEmbedder(), send_seconds=0.2, max_queue=2048)
    host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
    body = json.dumps({"model": "tiny", "input": ["x"] * 2048}).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(30)
        connection.connect((host, int(port)))
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_and_never_read(connection, head + body)


def test_half_a_request_and_gone(server: Running) -> None:
    """Clients that leave in the middle of their request leave nothing behind."""
    host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
    for _ in range(20):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 500\r\n\r\n{")
    assert httpx.get(f"{server.url}/models").status_code == 200


def test_more_choices_than_there_is_room_for_are_refused(serve: Serve) -> None:
    """One request that could never be taken whole is refused, and says how many could."""
    server = serve(HashingGenerator(rows=2), max_queue=3)
    response = httpx.post(f"{server.url}/completions", json=BASE | {"n": 6})
    check_shape(response, 400, "n", "too_many_choices")
    assert "5" in response.json()["error"]["message"]
    assert httpx.post(f"{server.url}/completions", json=BASE | {"n": 5}).status_code == 200


def test_keys_are_asked_for(serve: Serve) -> None:
    """With keys set, each of them opens /v1 and nothing else does; health and metrics need none."""
    server = serve(keys=("first-key", "second-key"))
    for key in ("first-key", "second-key"):
        assert server.client(api_key=key).models.list().data
    for wrong in ("first-ke", "first-key2", "Second-key"):
        with pytest.raises(openai.AuthenticationError) as refused:
            server.client(api_key=wrong).models.list()
        assert refused.value.code == "invalid_api_key"
    for headers in ({}, {"authorization": "Basic first-key"}, {"authorization": "Bearer"},
                    {"authorization": "Bearer \u00fc".encode()}):  # fmt: skip
        response = httpx.post(f"{server.url}/completions", json=BASE, headers=headers)  # type: ignore[arg-type]
        check_shape(response, 401, None, "invalid_api_key")
    assert httpx.get(f"{server.url}/../health").status_code == 200
    assert httpx.get(f"{server.url}/../metrics").status_code == 200
    assert "first-key" not in repr(server.service.settings)


@pytest.mark.parametrize(
    ("host", "options", "accepted"),
    [
        ("127.0.0.1", {}, True),
        ("::1", {}, True),
        ("localhost", {}, True),
        ("0.0.0.0", {}, False),
        ("0.0.0.0", {"keys": ("k",)}, True),
        ("0.0.0.0", {"no_key": True}, True),
        ("example.org", {}, False),
    ],
)
def test_the_network_is_served_with_a_key_only(host: str, options: dict[str, Any], accepted: bool) -> None:
    """Beyond loopback a key is needed, or to say that none is."""
    if accepted:
        Settings(host=host, **options)
    else:
        with pytest.raises(UsageError, match="without an API key"):
            Settings(host=host, **options)


@pytest.mark.parametrize("keys", [("",), (" padded",), ("schlüssel",)])
def test_keys_that_nobody_could_send_are_refused(keys: tuple[str, ...]) -> None:
    """An empty key, one with spaces around it, and one beyond ASCII are refused at start."""
    with pytest.raises(UsageError, match="API key"):
        Settings(keys=keys)
