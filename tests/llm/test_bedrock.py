"""The real boto3 against our server, which speaks Bedrock's `converse` and its event stream."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from neuron_port.llm.bedrock import BedrockModel
from neuron_port.llm.choose import choose_model
from neuron_port.llm.errors import (
    BadRequestError,
    ContextTooLongError,
    LanguageModelError,
    MissingKeyError,
    ModelNotFoundError,
    ModelTimedOutError,
    OutOfQuotaError,
    RateLimitedError,
    ServerFailedError,
    TruncatedReplyError,
    UnreachableError,
    WrongKeyError,
)
from neuron_port.llm.messages import Message, Request
from neuron_port.llm.retry import RetryPolicy
from tests.llm.conftest import ask
from tests.llm.scripted_server import Answer, Call, ScriptedServer

MODEL = "anthropic.claude-haiku-4-5-20251001-v1:0"
TEXT = "a reply of some length"
Connect = Callable[..., BedrockModel]


def refusal(status: int, code: str, message: str, **headers: str) -> Answer:
    """An error in AWS's form."""
    return Answer(
        status=status, body=json.dumps({"message": message}), headers={"x-amzn-ErrorType": code, **headers}
    )


@pytest.fixture
def connect(waits: list[float], said: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    """connect(server, **policy) -> the model behind it, with credentials; waits are noted, not slept."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-example")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    opened: list[BedrockModel] = []

    def connected(server: ScriptedServer, model: str = MODEL, **policy: int) -> BedrockModel:
        retry = RetryPolicy(sleep=waits.append, chance=lambda: 0.5, **policy)
        chosen = choose_model(f"bedrock:{model}", base_url=server.address, retry=retry, say=said.append)
        assert isinstance(chosen, BedrockModel)
        opened.append(chosen)
        return chosen

    yield connected
    for model in opened:
        model.close()


def test_a_reply_is_streamed(connect: Connect) -> None:
    """System text, limit and temperature go where Bedrock wants them; pieces arrive, tokens are Bedrock's count."""
    messages = (Message(role="system", content="Be brief."), Message(role="user", content="hello"))
    pieces: list[str] = []
    with ScriptedServer([Answer(text=TEXT, input_tokens=7, output_tokens=5)]) as server:
        model = connect(server)
        request = Request(messages=messages, max_output_tokens=50, temperature=0.5)
        reply = model.complete(request, on_text=pieces.append)
    call = server.calls[0]
    assert (call.path, model.name) == (f"/model/{MODEL}/converse-stream", f"bedrock:{MODEL}")
    assert call.body["system"] == [{"text": "Be brief."}]
    assert call.body["messages"] == [{"role": "user", "content": [{"text": "hello"}]}]
    assert call.body["inferenceConfig"] == {"maxTokens": 50, "temperature": 0.5}
    assert len(pieces) > 1
    assert "".join(pieces) == reply.text == TEXT
    assert (reply.usage.input_tokens, reply.usage.output_tokens, reply.finish) == (7, 5, "stop")


def test_the_price_of_a_region_is_known(connect: Connect) -> None:
    """A model's dated id, and an inference profile, have a price; a global profile has its own."""
    with ScriptedServer() as server:
        prices = [connect(server, prefix + MODEL).price for prefix in ("", "us.", "global.")]
    assert [price and price.input_usd for price in prices] == [1.1, 1.1, 1.0]


@pytest.mark.parametrize(
    ("answer", "kind", "words", "requests"),
    [
        (refusal(403, "AccessDeniedException", "No access."), WrongKeyError, "No access", 1),
        (refusal(403, "UnrecognizedClientException", "Bad token."), WrongKeyError, "Bad token", 1),
        (
            refusal(400, "ValidationException", "The provided model identifier is invalid."),
            ModelNotFoundError,
            "has no model",
            1,
        ),
        (refusal(404, "ResourceNotFoundException", "Gone."), ModelNotFoundError, "has no model", 1),
        (
            refusal(400, "ValidationException", "Input is too long for requested model."),
            ContextTooLongError,
            "too long",
            1,
        ),
        (refusal(400, "ValidationException", "Empty."), BadRequestError, "Empty", 1),
        (refusal(400, "ServiceQuotaExceededException", "Daily."), OutOfQuotaError, "no quota left", 1),
        (refusal(429, "ThrottlingException", "Slow down."), RateLimitedError, "limits the rate", 2),
        (refusal(503, "ServiceUnavailableException", "Busy."), ServerFailedError, "HTTP 503", 2),
        (refusal(408, "ModelTimeoutException", "Late."), ModelTimedOutError, "timed out itself", 2),
        (Answer(text=TEXT, cut_after=2), TruncatedReplyError, "broke off", 2),
        (Answer(text=TEXT, end_after=2), TruncatedReplyError, "broke off", 2),
        (Answer(text=TEXT, stream_error="overloaded"), ServerFailedError, "overloaded", 2),
        (Answer(close=True), UnreachableError, "cannot be reached", 2),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_one_clear_sentence(
    connect: Connect, answer: Answer, kind: type[LanguageModelError], words: str, requests: int
) -> None:
    """Each failure has its class, one line, a cure, and a bounded number of requests."""
    with ScriptedServer(lambda call: answer) as server:
        with pytest.raises(LanguageModelError, match=words) as caught:
            connect(server, attempts=2).complete(ask())
        assert type(caught.value) is kind
        assert caught.value.hint
        assert "\n" not in caught.value.message
        assert "secret-example" not in str(caught.value)
        assert len(server.calls) == requests


def test_a_passing_failure_passes(connect: Connect, waits: list[float]) -> None:
    """Throttling is waited out for as long as Bedrock asks."""
    throttled = refusal(429, "ThrottlingException", "Slow down.", **{"Retry-After": "3"})
    with ScriptedServer([throttled, TEXT]) as server:
        assert connect(server).complete(ask()).text == TEXT
    assert waits == [3.0]


def test_rejected_parameters_are_learnt(connect: Connect, said: list[str]) -> None:
    """Temperature, system text and streaming are each given up once, and remembered on disk."""

    def script(call: Call) -> Answer | str:
        if call.path.endswith("converse-stream"):
            return refusal(400, "ValidationException", "This model does not support streaming.")
        if "temperature" in call.body["inferenceConfig"]:
            return refusal(400, "ValidationException", "`temperature` is deprecated for this model.")
        if "system" in call.body:
            return refusal(400, "ValidationException", "This model doesn't support system messages.")
        return "learnt"

    messages = (Message(role="system", content="Be brief."), Message(role="user", content="hello"))
    request = Request(messages=messages, max_output_tokens=50, temperature=0.5)
    with ScriptedServer(script) as server:
        assert connect(server).complete(request).text == "learnt"
        assert len(server.calls) == 4
        assert connect(server).complete(request).text == "learnt"
        assert len(server.calls) == 5
    assert server.calls[-1].body["messages"][0]["content"] == [{"text": "Be brief.\n\nhello"}]
    assert len(said) == 3


def test_no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without credentials nothing is asked, and the sentence says how to give them."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with ScriptedServer() as server:
        model = choose_model(f"bedrock:{MODEL}", base_url=server.address)
        with pytest.raises(MissingKeyError, match="no AWS credentials") as caught:
            model.probe()
        assert server.calls == []
    assert caught.value.hint is not None
    assert "aws configure" in caught.value.hint


def test_no_region() -> None:
    """Without a region the sentence names the variable."""
    with pytest.raises(LanguageModelError, match="No AWS region is set") as caught:
        choose_model(f"bedrock:{MODEL}").probe()
    assert caught.value.hint is not None
    assert "AWS_REGION" in caught.value.hint
