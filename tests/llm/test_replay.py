"""Recorded exchanges are served offline; what is missing is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neuron_port.llm.choose import choose_model
from neuron_port.llm.errors import NoRecordingError
from neuron_port.llm.messages import LanguageModel, Price
from neuron_port.llm.replay import Recorder, ReplayModel
from tests.llm.conftest import ask
from tests.llm.scripted_server import Answer, ScriptedServer

HEADER = {"exchanges": "scripted", "model": "a person"}


def written(path: Path, *lines: Any) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_what_was_recorded_is_repeated(connect: Callable[..., LanguageModel], tmp_path: Path) -> None:
    """A recorded run replays request by request, in any order and again, without the server."""
    file = tmp_path / "run.jsonl"
    price = Price(input_usd=1.0, output_usd=2.0, source="a list")
    with ScriptedServer(lambda call: Answer(text=f"re: {call.last_message}", output_tokens=3)) as server:
        recorder = Recorder(choose_model(f"{server.url}#scripted", api_key="k", price=price), file)
        recorded = [recorder.complete(ask(text, purpose="draft")) for text in ("one", "two")]
    replay = choose_model(f"replay:{file}")
    assert isinstance(replay, ReplayModel)
    for text, reply in [("two", recorded[1]), ("one", recorded[0]), ("one", recorded[0])]:
        assert replay.complete(ask(text, purpose="draft")) == reply
    assert (replay.exchanges, replay.recorded_model, replay.price) == ("recorded", recorder.name, price)
    assert len(server.calls) == 2


def test_scripted_exchanges_come_in_order_of_their_purpose(tmp_path: Path) -> None:
    """Each purpose has its own order; a text alone is a whole reply, with an estimated usage."""
    replay = ReplayModel(
        written(
            tmp_path / "s.jsonl",
            HEADER,
            {"purpose": "draft", "reply": "first"},
            {"purpose": "plan", "reply": "the plan"},
            {"purpose": "draft", "reply": "second"},
        )
    )
    pieces: list[str] = []
    assert replay.complete(ask(purpose="draft"), on_text=pieces.append).text == "first"
    assert replay.complete(ask(purpose="draft")).text == "second"
    reply = replay.complete(ask(purpose="plan"))
    assert (reply.text, reply.finish, reply.usage.estimated, pieces) == ("the plan", "stop", True, ["first"])
    assert replay.exchanges == "scripted"


def test_exchanges_may_name_what_they_answer(tmp_path: Path) -> None:
    """With `sample` and `contains` the order of the requests does not matter."""
    replay = ReplayModel(
        written(
            tmp_path / "s.jsonl",
            HEADER,
            {"purpose": "draft", "sample": 0, "reply": "zero"},
            {"purpose": "draft", "sample": 1, "reply": "one"},
            {"purpose": "repair", "contains": ["256 partitions"], "reply": "smaller"},
        )
    )
    assert replay.complete(ask(purpose="draft", sample=1)).text == "one"
    assert replay.complete(ask(purpose="draft", sample=0)).text == "zero"
    assert replay.complete(ask("you asked for 256 partitions", purpose="repair")).text == "smaller"


def test_a_missing_exchange_is_named(tmp_path: Path) -> None:
    """A request that nothing answers says its purpose; a used exchange is not given twice."""
    replay = ReplayModel(written(tmp_path / "s.jsonl", HEADER, {"purpose": "draft", "reply": "x"}))
    replay.complete(ask(purpose="draft"))
    for purpose in ("draft", "repair"):
        with pytest.raises(NoRecordingError, match=f"no answer left for a request of purpose `{purpose}`"):
            replay.complete(ask(purpose=purpose))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "is empty"),
        ([{"purpose": "draft", "reply": "x"}], "Line 1 of .* is no header"),
        ([{"exchanges": "invented", "model": "m"}], "Line 1 of .* is no header"),
        ([HEADER, {"purpose": "draft"}], "Line 2 of .* is no exchange"),
        ([HEADER, {"purpose": "draft", "reply": "x", "contain": ["y"]}], "has no field `contain`"),
        ([HEADER, ["draft"]], "Line 2 of .* is no exchange"),
    ],
)
def test_a_broken_file_names_its_line(tmp_path: Path, lines: list[Any], words: str) -> None:
    """A file that does not say what it is, or holds something else, is refused."""
    with pytest.raises(NoRecordingError, match=words):
        ReplayModel(written(tmp_path / "s.jsonl", *lines))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A file that is not there is no empty recording."""
    with pytest.raises(NoRecordingError, match=r"gone\.jsonl cannot be read"):
        choose_model(f"replay:{tmp_path / 'gone.jsonl'}")


def test_recording_goes_on_after_a_crash(connect: Callable[..., LanguageModel], tmp_path: Path) -> None:
    """A half-written last line is dropped, and the next exchange does not continue it."""
    file = tmp_path / "run.jsonl"
    with ScriptedServer(lambda call: f"re: {call.last_message}") as server:
        model = connect(server)
        Recorder(model, file).complete(ask("one"))
        with file.open("a") as torn:
            torn.write('{"purpose": "dr')
        Recorder(model, file).complete(ask("two"))
    replay = ReplayModel(file)
    assert replay.complete(ask("one")).text == "re: one"
    assert replay.complete(ask("two")).text == "re: two"


def test_models_are_not_mixed(connect: Callable[..., LanguageModel], tmp_path: Path) -> None:
    """A file holds the exchanges of one model."""
    with ScriptedServer(lambda call: "x") as server:
        Recorder(connect(server, "a"), tmp_path / "run.jsonl")
        with pytest.raises(NoRecordingError, match="not recorded for"):
            Recorder(connect(server, "b"), tmp_path / "run.jsonl")
