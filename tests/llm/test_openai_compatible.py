"""The real `openai` package against real HTTP: what a reply becomes, and how parameters are learnt."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from neuron_port.errors import StorageError
from neuron_port.llm.errors import BadRequestError
from neuron_port.llm.messages import LanguageModel, Message, Request
from tests.llm.conftest import ask
from tests.llm.scripted_server import Answer, ScriptedServer, failure

Connect = Callable[..., LanguageModel]
FOLDED = "Be brief.\n\nhello"


def test_a_reply_is_streamed(connect: Connect) -> None:
    """Text arrives in pieces, with the endpoint's own count of tokens, which are not estimated."""
    pieces: list[str] = []
    with ScriptedServer([Answer(text="a reply in pieces", input_tokens=7, output_tokens=5)]) as server:
        reply = connect(server).complete(ask(), on_text=pieces.append)
    assert len(pieces) > 1
    assert "".join(pieces) == reply.text == "a reply in pieces"
    assert (reply.usage.input_tokens, reply.usage.output_tokens, reply.usage.estimated) == (7, 5, False)
    assert (reply.finish, reply.model) == ("stop", "scripted")


def test_what_is_sent(connect: Connect) -> None:
    """The request carries the messages, the limit, the temperature, the key, and an Idempotency-Key of the question."""
    messages = (Message(role="system", content="Be brief."), Message(role="user", content="hello"))
    request = Request(messages=messages, max_output_tokens=50, temperature=0.7)
    with ScriptedServer(["one", "two"]) as server:
        model = connect(server)
        model.complete(request)
        model.complete(ask("another"))
    first, second = server.calls
    assert first.body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hello"},
    ]
    assert (first.body["max_tokens"], first.body["temperature"], first.body["stream"]) == (50, 0.7, True)
    assert "temperature" not in second.body
    assert request.key(model.name) in first.key
    assert first.key != second.key


@pytest.mark.parametrize(
    ("theirs", "ours"), [("stop", "stop"), ("length", "length"), ("content_filter", "refused")]
)
def test_how_a_reply_ended(connect: Connect, theirs: str, ours: str) -> None:
    """A reply that was cut by the limit, or by a filter, is a reply: it was paid for."""
    with ScriptedServer([Answer(text="part", finish=theirs)]) as server:
        assert connect(server).complete(ask()).finish == ours


def test_an_empty_reply_is_a_reply(connect: Connect) -> None:
    """Empty content is handed on with its cost; the caller decides what to do about it."""
    with ScriptedServer([Answer(text="", output_tokens=9)]) as server:
        reply = connect(server).complete(ask())
    assert (reply.text, reply.finish, reply.usage.output_tokens) == ("", "stop", 9)


def test_a_probe_that_was_used_up_by_thinking_succeeds(connect: Connect) -> None:
    """A reasoning model that spends a probe's few tokens before its first word is there all the same."""
    with ScriptedServer([Answer(text="", finish="length")]) as server:
        assert connect(server).probe().finish == "length"
        assert server.calls[0].body["max_tokens"] <= 16


def test_a_server_that_ignores_stream_is_read_whole(connect: Connect) -> None:
    """A whole JSON reply to a request for a stream is understood."""
    body = {"model": "m-1", "choices": [{"message": {"content": "whole"}, "finish_reason": "stop"}]}
    pieces: list[str] = []
    with ScriptedServer([Answer(body=json.dumps(body))]) as server:
        reply = connect(server).complete(ask(), on_text=pieces.append)
    assert (reply.text, reply.model, pieces) == ("whole", "m-1", ["whole"])
    assert reply.usage.estimated, "the body has no usage"


def test_a_model_that_declines_is_marked(connect: Connect) -> None:
    """A message with OpenAI's `refusal` has finish `refused`, whatever its finish_reason."""
    message = {"content": None, "refusal": "I cannot."}
    body = {"choices": [{"message": message, "finish_reason": "stop"}]}
    with ScriptedServer([Answer(body=json.dumps(body))]) as server:
        reply = connect(server).complete(ask())
    assert (reply.text, reply.finish) == ("I cannot.", "refused")


def test_cached_tokens_cost_less(connect: Connect) -> None:
    """Tokens that the provider read from its cache are told apart."""
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 1,
        "prompt_tokens_details": {"cached_tokens": 80},
    }
    body = {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": usage}
    with ScriptedServer([Answer(body=json.dumps(body))]) as server:
        assert connect(server).complete(ask()).usage.cached_input_tokens == 80


@pytest.mark.parametrize(
    "rejected",
    [
        {"temperature"},
        {"max_tokens"},
        {"stream_options"},
        {"stream"},
        {"system"},
        {"temperature", "max_tokens", "stream", "system"},
    ],
    ids=lambda rejected: "+".join(sorted(rejected)),
)
def test_rejected_parameters_are_learnt(connect: Connect, said: list[str], rejected: set[str]) -> None:
    """Each rejected parameter costs one request; the next model object, from disk, asks right at once."""
    messages = (Message(role="system", content="Be brief."), Message(role="user", content="hello"))
    request = Request(messages=messages, max_output_tokens=50, temperature=0.5)
    with ScriptedServer(lambda call: "learnt", rejects=rejected) as server:
        assert connect(server).complete(request).text == "learnt"
        asked = len(server.calls)
        assert asked == 1 + len(rejected)
        assert len(said) == len(rejected)
        assert connect(server).complete(request).text == "learnt"
        assert len(server.calls) == asked + 1
    body = server.calls[-1].body
    assert body.get("max_completion_tokens" if "max_tokens" in rejected else "max_tokens") == 50
    assert ("temperature" in body) == ("temperature" not in rejected)
    assert [message["content"] for message in body["messages"]] == (
        [FOLDED] if "system" in rejected else ["Be brief.", "hello"]
    )


def test_a_complaint_in_words_is_understood(connect: Connect) -> None:
    """A rejection that names the parameter in its sentence alone is learnt too."""
    complaint = "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."
    with ScriptedServer([failure(400, complaint), "done"]) as server:
        connect(server).complete(ask())
    assert server.calls[1].body["max_completion_tokens"] == 100


def test_an_endpoint_that_rejects_everything_is_not_asked_for_ever(connect: Connect) -> None:
    """A parameter is left out once; when the complaint stays, it is a bad request."""
    with ScriptedServer(lambda call: failure(400, "temperature and stream are wrong")) as server:
        with pytest.raises(BadRequestError, match="temperature and stream are wrong"):
            connect(server).complete(ask(temperature=0.5))
        assert len(server.calls) == 3  # as it is, without one, without the other


def test_a_limit_is_never_dropped(connect: Connect) -> None:
    """Without any token limit a call could cost anything: an endpoint that takes neither name is refused."""
    with ScriptedServer(["unlimited"], rejects={"max_tokens", "max_completion_tokens"}) as server:
        with pytest.raises(BadRequestError, match="max_completion_tokens"):
            connect(server).complete(ask())
        assert len(server.calls) == 2
    assert not server.charged


def test_a_limit_that_is_too_large_is_not_renamed(connect: Connect, tmp_path: Path) -> None:
    """A complaint about the value of a limit goes to the user, and nothing is learnt from it."""
    with ScriptedServer([failure(400, "max_tokens is too large: 100.", param="max_tokens")]) as server:
        with pytest.raises(BadRequestError, match="too large"):
            connect(server).complete(ask())
        assert len(server.calls) == 1
    assert not (tmp_path / "home" / "llm" / "quirks.json").exists()


def test_quirks_belong_to_one_model(connect: Connect) -> None:
    """What one model rejects is still sent to another of the same endpoint."""
    with ScriptedServer(lambda call: "x", rejects={"temperature"}) as server:
        connect(server, "first").complete(ask(temperature=0.5))
        connect(server, "second").complete(ask(temperature=0.5))
    assert ["temperature" in call.body for call in server.calls] == [True, False, True, False]


def test_a_damaged_memory_of_quirks_is_named(connect: Connect, tmp_path: Path) -> None:
    """A file that neuron-port did not write is not overwritten."""
    file = tmp_path / "home" / "llm" / "quirks.json"
    file.parent.mkdir(parents=True)
    file.write_text("[1]")
    with ScriptedServer(["x"]) as server, pytest.raises(StorageError, match=r"quirks\.json is damaged"):
        connect(server)
    assert file.read_text() == "[1]"


def test_a_reply_outlives_a_memory_that_cannot_be_written(
    connect: Connect, said: list[str], tmp_path: Path
) -> None:
    """Where quirks cannot be kept, the reply that was paid for is kept all the same, and the user is told."""
    (tmp_path / "home" / "llm" / "quirks.lock").mkdir(parents=True)
    with ScriptedServer(["paid"], rejects={"temperature"}) as server:
        assert connect(server).complete(ask(temperature=0.5)).text == "paid"
    assert "is not remembered" in said[-1]


def test_eight_threads_share_a_model(connect: Connect, tmp_path: Path) -> None:
    """Parallel calls get their own replies, and what they learn at once is whole on disk."""
    with ScriptedServer(lambda call: f"re: {call.last_message}", rejects={"temperature"}) as server:
        model = connect(server)
        texts: dict[int, str] = {}

        def work(number: int) -> None:
            texts[number] = model.complete(ask(f"question {number}", temperature=0.5)).text

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert texts == {number: f"re: question {number}" for number in range(8)}
    known = json.loads((tmp_path / "home" / "llm" / "quirks.json").read_text())
    assert list(known.values()) == [["temperature"]]
    assert not list((tmp_path / "home" / "llm").glob("*.partial"))


def test_a_repeated_question_is_charged_once(connect: Connect) -> None:
    """The same question from a new process's model carries the same key: a server that honours it charges once."""
    with ScriptedServer(lambda call: "paid") as server:
        connect(server).complete(ask())
        connect(server).complete(ask())
        connect(server).complete(ask(sample=1))
    assert sorted(server.asked.values()) == [1, 2]
    assert list(server.charged.values()) == [1, 1]
