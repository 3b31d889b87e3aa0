"""The real loop, killed with SIGKILL at any moment and started again: the same kernel, and no reply paid for twice.

What a client cannot prevent is held as in `test_kill.py`: a reply that was wholly sent and had not reached our disk is
asked for again under the same key, and the journal knows of each such call.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from neuron_port.drafting.keeping.journal import RUNS_FOLDER, RunState, fold, read_events
from tests.drafting.killing import KILLED, Sessions
from tests.drafting.loop_program import (
    GOOD,
    NO_STORE,
    SUBTRACTS,
    TOO_WIDE,
    Author,
    fenced,
    plan_reply,
    purpose_of,
)
from tests.llm.scripted_server import Answer, Call, ScriptedServer

PROGRAM = Path(__file__).parent / "loop_program.py"
KILLS = 20
LONGEST_SESSION_SECONDS = 3.0  # about what a whole run takes
WRITES_OF_A_SESSION = {"write": 30, "fsync": 90, "rename": 25}


def draft(call: Call) -> str:
    return fenced(TOO_WIDE) if "follow the plan" in call.last_message else "I would rather not."


def repair(call: Call) -> str:
    code = call.last_message.partition("# The kernel so far")[2]
    return fenced(NO_STORE if "(256, features)" in code else GOOD if "op=nl.subtract" in code else SUBTRACTS)


REPLIES = Author({"plan": "First I think: {", "draft": draft, "repair": repair})


def answer(call: Call) -> Answer:
    """Streamed over some time, a function of the question alone."""
    if purpose_of(call) == "reask":
        wants_plan = "as one JSON object" in call.last_message
        text = plan_reply() if wants_plan else fenced(SUBTRACTS)
        return Answer(text=text, delay_seconds=0.02, piece_delay_seconds=0.01)
    replied = REPLIES(call)
    assert isinstance(replied, Answer)
    return replace(replied, delay_seconds=0.02, piece_delay_seconds=0.01)


@pytest.fixture(scope="module")
def sessions() -> Iterator[Sessions]:
    with Sessions(PROGRAM) as sessions:
        yield sessions


def result_of(home: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((home / "result.json").read_text())
    return result


def state_of(home: Path) -> RunState:
    (folder,) = (home / RUNS_FOLDER).iterdir()
    return fold(read_events(folder))


def check_books(server: ScriptedServer, state: RunState) -> None:
    """Compare the provider's books with the journal's, question by question; the probe may be asked once a session."""
    ours: Mapping[str, Counter[str]] = defaultdict(Counter)
    for call in state.calls:
        assert call.status in ("paid", "lost")
        if call.purpose != "probe":
            ours[f"neuron-port-{call.request}"][call.status] += 1
    assert {books["paid"] for books in ours.values()} == {1}
    assert len(ours) == len({call.last_message for call in server.calls if purpose_of(call) != "probe"})
    for key, books in ours.items():
        assert 1 <= server.asked[key] <= 1 + books["lost"]
        assert 1 <= server.delivered[key] <= 1 + books["lost"]


@pytest.fixture(scope="module")
def undisturbed(sessions: Sessions, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of a run that nobody killed."""
    home = tmp_path_factory.mktemp("undisturbed")
    with ScriptedServer(answer) as server:
        assert sessions.run(str(home), server.url) == 0
    check_books(server, state_of(home))
    result = result_of(home)
    assert result["outcome"] == "admitted"
    assert result["source"] == GOOD
    return result


def test_killed_at_random_moments(sessions: Sessions, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    """Twenty kills at random moments and in random writes: every run ends as if undisturbed, its books in order."""
    chance = random.Random(4)
    kills = Counter[str]()
    runs = 0
    while kills.total() < KILLS:
        home = tmp_path / str(runs)
        runs += 1
        with ScriptedServer(answer) as server:
            while True:
                how = chance.choice(["time", "time", *WRITES_OF_A_SESSION])
                if kills.total() == KILLS:
                    status = sessions.run(str(home), server.url)
                elif how == "time":
                    seconds = chance.uniform(0, LONGEST_SESSION_SECONDS)
                    status = sessions.run(str(home), server.url, kill_after_seconds=seconds)
                else:
                    number = chance.randint(1, WRITES_OF_A_SESSION[how])
                    status = sessions.run(str(home), server.url, kill_in_write=(how, number))
                if status == 0:
                    break
                assert status == KILLED
                kills[how] += 1
            asked = len(server.calls)
            assert result_of(home) == undisturbed
            check_books(server, state_of(home))
            spent = state_of(home).spent
            assert sessions.run(str(home), server.url, "replay") == 0
            assert result_of(home) == undisturbed
            assert state_of(home).spent == spent
            assert len(server.calls) == asked
    assert set(kills) > {"time"}
