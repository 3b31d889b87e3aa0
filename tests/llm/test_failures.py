"""Everything that an endpoint can do wrong: the class, one clear sentence, and how many requests it took."""

from __future__ import annotations

import socket
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from neuron_port.llm.choose import choose_model
from neuron_port.llm.errors import (
    BadRequestError,
    ContextTooLongError,
    LanguageModelError,
    MalformedReplyError,
    ModelNotFoundError,
    ModelTimedOutError,
    OutOfQuotaError,
    RateLimitedError,
    RefusedError,
    ServerFailedError,
    TruncatedReplyError,
    UnreachableError,
    WrongAddressError,
    WrongKeyError,
)
from neuron_port.llm.failures import Endpoint
from neuron_port.llm.messages import LanguageModel
from neuron_port.llm.openai_compatible import OpenAICompatible
from neuron_port.llm.quirks import QuirkMemory
from neuron_port.llm.retry import RetryPolicy
from tests.llm.conftest import KEY, ask
from tests.llm.scripted_server import (
    Answer,
    ScriptedServer,
    broken,
    failure,
    html_page,
    no_such_model,
    out_of_quota,
    rate_limited,
    without_choices,
    wrong_key,
)

Connect = Callable[..., LanguageModel]
TEXT = "a reply of some length"

# What the server does each time, the error, words of its sentence, and the requests made with 3 attempts allowed.
FAILURES: dict[str, tuple[Answer, type[LanguageModelError], str, int]] = {
    "wrong key": (wrong_key(KEY), WrongKeyError, "does not accept the key", 1),
    "forbidden": (failure(403, "Country not supported"), WrongKeyError, "Country not supported", 1),
    "no model": (no_such_model("scripted-x"), ModelNotFoundError, "has no model `scripted-x`", 1),
    "no quota": (out_of_quota(), OutOfQuotaError, "no quota left", 1),
    "no money": (failure(402, "Insufficient Balance"), OutOfQuotaError, "no quota left", 1),
    "low credit": (failure(400, "Your credit balance is too low"), OutOfQuotaError, "no quota left", 1),
    "rate": (rate_limited(), RateLimitedError, "limits the rate of requests", 3),
    "500": (broken(500), ServerFailedError, "failed with HTTP 500", 3),
    "503": (broken(503), ServerFailedError, "failed with HTTP 503", 3),
    "504": (broken(504), ModelTimedOutError, "timed out itself", 3),
    "gateway page": (html_page(502), ServerFailedError, r"HTTP 502 \(a web page\)", 3),
    "login page": (html_page(), MalformedReplyError, "but with a web page", 1),
    "no choices": (without_choices(), MalformedReplyError, "JSON without choices", 1),
    "no JSON": (Answer(body="{oops"), MalformedReplyError, "text that is not JSON", 1),
    "broken event": (
        Answer(body="data: {oops\n\n", content_type="text/event-stream"),
        MalformedReplyError,
        "a stream that is not JSON",
        1,
    ),
    "cut": (Answer(text=TEXT, cut_after=2), TruncatedReplyError, "broke off after 12 characters", 3),
    "ends early": (Answer(text=TEXT, end_after=2), TruncatedReplyError, "ended without a finish", 3),
    "error in stream": (Answer(text=TEXT, stream_error="overloaded"), ServerFailedError, "overloaded", 3),
    "error as 200": (Answer(body='{"error": {"message": "no GPU"}}'), ServerFailedError, "no GPU", 3),
    "hangs up": (Answer(close=True), UnreachableError, "cannot be reached", 3),
    "filter": (failure(400, "Flagged.", code="content_filter"), RefusedError, "refused the question", 1),
    "context": (
        failure(400, "This model's maximum context length is 8192 tokens."),
        ContextTooLongError,
        "prompt is too long",
        1,
    ),
    "bad request": (failure(400, "messages must not be empty"), BadRequestError, "HTTP 400", 1),
}


@pytest.mark.parametrize(("answer", "kind", "words", "requests"), FAILURES.values(), ids=FAILURES.keys())
def test_one_clear_sentence(
    connect: Connect, answer: Answer, kind: type[LanguageModelError], words: str, requests: int
) -> None:
    """Each failure has its class, one line that names the endpoint, a cure, no key, and a bounded number of requests."""
    with ScriptedServer(lambda call: answer) as server:
        with pytest.raises(LanguageModelError, match=words) as caught:
            connect(server, "scripted-x", attempts=3).complete(ask())
        assert type(caught.value) is kind
        assert server.url in caught.value.message
        assert caught.value.hint
        assert "\n" not in caught.value.message
        assert KEY not in str(caught.value)
        assert len(server.calls) == requests
        assert ("after 3 attempts" in caught.value.message) == (requests == 3)


RECOVERABLE = [name for name, (_, _, _, requests) in FAILURES.items() if requests > 1]


@pytest.mark.parametrize("name", RECOVERABLE)
def test_passing_failures_pass(connect: Connect, said: list[str], name: str) -> None:
    """One failure that may pass is waited out; the user hears of it, and the reply is whole."""
    with ScriptedServer([FAILURES[name][0], TEXT]) as server:
        assert connect(server).complete(ask()).text == TEXT
        assert len(server.calls) == 2
        assert server.calls[0].key == server.calls[1].key
    assert len(said) == 1
    assert "Trying again in" in said[0]


def test_a_cut_reply_is_counted(connect: Connect) -> None:
    """What a provider probably charged for a reply that broke off is part of the usage, marked as an estimate."""
    good = Answer(text=TEXT, input_tokens=10, output_tokens=10)
    with ScriptedServer([Answer(text=TEXT, cut_after=2), good]) as server:
        usage = connect(server).complete(ask("x" * 40)).usage
    assert (usage.input_tokens, usage.output_tokens, usage.estimated) == (20, 13, True)


def test_a_reply_that_never_came_is_counted(connect: Connect) -> None:
    """An error after several cut replies says what they together probably cost."""
    with (
        ScriptedServer(lambda call: Answer(text=TEXT, cut_after=2)) as server,
        pytest.raises(TruncatedReplyError) as caught,
    ):
        connect(server, attempts=2).complete(ask("x" * 40))
    assert caught.value.usage is not None
    assert (caught.value.usage.input_tokens, caught.value.usage.output_tokens) == (20, 6)


def test_near_names_are_suggested(connect: Connect) -> None:
    """A misspelt model gets its neighbours from the endpoint's own list."""
    with (
        ScriptedServer([no_such_model("gtp-5-mini")], models=("gpt-5-mini", "whisper")) as server,
        pytest.raises(ModelNotFoundError) as caught,
    ):
        connect(server, "gtp-5-mini").complete(ask())
    assert caught.value.hint == "Did you mean `gpt-5-mini`?"


def test_a_wrong_path_is_told_from_a_wrong_model() -> None:
    """An address that answers 404 to everything is a wrong address, not a missing model."""
    with ScriptedServer() as server, pytest.raises(WrongAddressError, match="HTTP 404") as caught:
        choose_model(f"{server.address}/v2/wrong#m", api_key=KEY).complete(ask())
    assert caught.value.hint is not None
    assert "/v1" in caught.value.hint


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_nobody_there(host: str, waits: list[float]) -> None:
    """A port where nothing listens, or a host that does not exist, is named after few tries."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        model = choose_model(
            f"http://{host}:{port}/v1#m", retry=RetryPolicy(sleep=waits.append, chance=lambda: 0.5)
        )
        with pytest.raises(UnreachableError, match=f"http://{host}:{port}/v1 cannot be reached"):
            model.probe()
    assert len(waits) == 2


def impatient(server: ScriptedServer, tmp_path: Any, **seconds: float) -> LanguageModel:
    """A model with short timeouts and a single attempt."""
    return OpenAICompatible(
        Endpoint(url=server.url, model="m", key_cure="Set the key."),
        base_url=server.url,
        api_key=KEY,
        name="slow",
        price=None,
        quirks=QuirkMemory(tmp_path),
        retry=RetryPolicy(attempts=1),
        **seconds,
    )


def test_silence_is_not_waited_out(tmp_path: Any) -> None:
    """A stream that stalls ends with the idle timeout, and what had come is counted as charged."""
    with (
        ScriptedServer([Answer(text=TEXT, stall_after=2)]) as server,
        pytest.raises(ModelTimedOutError, match=r"sent nothing for 1 s") as caught,
    ):
        impatient(server, tmp_path, idle_timeout_seconds=1.0).complete(ask())
    assert caught.value.usage is not None
    assert caught.value.usage.output_tokens == 3


def test_a_trickle_is_not_waited_out(tmp_path: Any) -> None:
    """A stream that keeps sending beyond the total timeout ends, although it is never silent for long."""
    with (
        ScriptedServer([Answer(text=TEXT, piece_delay_seconds=0.2)]) as server,
        pytest.raises(ModelTimedOutError, match=r"did not finish its reply in 0\.3 s"),
    ):
        impatient(server, tmp_path, idle_timeout_seconds=5.0, total_timeout_seconds=0.3).complete(ask())


def test_a_slow_reply_is_a_reply(tmp_path: Any) -> None:
    """The same trickle within the total timeout is read whole."""
    with ScriptedServer([Answer(text=TEXT, piece_delay_seconds=0.02)]) as server:
        reply = impatient(server, tmp_path, idle_timeout_seconds=5.0, total_timeout_seconds=60.0).complete(
            ask()
        )
    assert reply.text == TEXT


def test_the_endpoint_decides_how_long_to_wait(connect: Connect, waits: list[float]) -> None:
    """Retry-After and retry-after-ms are honoured to the letter; without them the wait is random below a ceiling."""
    script = [rate_limited(retry_after="7"), rate_limited(retry_after_ms="1500"), rate_limited(), "done"]
    with ScriptedServer(script) as server:
        connect(server).complete(ask())
    assert waits == [7.0, 1.5, 2.0]


def test_a_long_wait_is_not_waited(connect: Connect, waits: list[float]) -> None:
    """An endpoint that asks to wait for longer than the whole patience ends the call at once."""
    with ScriptedServer([rate_limited(retry_after="86400"), "never"]) as server:
        with pytest.raises(
            RateLimitedError, match="after 1 attempt and 0 s of waiting, it asks for 86400 s"
        ) as caught:
            connect(server).complete(ask())
        assert len(server.calls) == 1
    assert waits == []
    assert caught.value.retry_after_seconds == 86400


def test_an_empty_stream_is_looked_into(connect: Connect) -> None:
    """Servers that end a stream at once hide the reason: the same is asked without a stream, and that answer counts."""
    empty = Answer(body="", content_type="text/event-stream")
    too_long = failure(400, "Too long.", code="context_length_exceeded")
    with ScriptedServer([empty, too_long]) as server, pytest.raises(ContextTooLongError):
        connect(server).complete(ask())
    assert ["stream" in call.body for call in server.calls] == [True, False]
    with ScriptedServer([empty, "whole"]) as server:
        assert connect(server).complete(ask()).text == "whole"


def test_an_echoed_key_is_hidden(connect: Connect) -> None:
    """A key that the server repeats is not in the sentence, nor in the errors behind it that a traceback shows."""
    with (
        ScriptedServer(api_key="another") as server,
        pytest.raises(WrongKeyError, match=r"Incorrect API key provided: \[key\]") as caught,
    ):
        connect(server).complete(ask())
    assert KEY not in "".join(traceback.format_exception(caught.value))
