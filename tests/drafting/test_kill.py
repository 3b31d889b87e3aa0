"""Killed at any moment and started again, a run comes to the same result and pays no reply twice.

One window is open to every client: a reply that was wholly sent, and had not reached our disk when the kill came. It
is asked for again under the same key. A provider that honours the key gives it again for nothing; from another it is
paid again, and the tests hold that the journal knows of each such call.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from neuron_port.drafting.keeping.journal import RunState, fold, read_events, run_folder
from tests.drafting.killing import KILLED, Sessions
from tests.llm.scripted_server import Answer, Call, ScriptedServer

PROGRAM = Path(__file__).parent / "kill_program.py"
QUESTIONS = 9  # of the program
KILLS = 20
LONGEST_SESSION_SECONDS = 0.5  # about what a whole run takes
WRITES_OF_A_SESSION = {"write": 20, "fsync": 60, "rename": 15}
STEPS = {"write": 2, "fsync": 5, "rename": 2}


def answer(call: Call) -> Answer:
    """A streamed reply over some 30 ms that depends on the question alone, without the run's mark."""
    question = call.last_message.partition("] ")[2]
    text = hashlib.sha256(question.encode()).hexdigest() * 4
    return Answer(text=text, delay_seconds=0.01, piece_delay_seconds=0.005)


def state_of(home: Path) -> RunState:
    return fold(read_events(run_folder(home, "task")))


def result_of(home: Path) -> Any:
    return json.loads((home / "task.json").read_text())


@pytest.fixture(scope="module")
def sessions() -> Iterator[Sessions]:
    with Sessions(PROGRAM) as sessions:
        yield sessions


@pytest.fixture(scope="module")
def undisturbed(sessions: Sessions, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The result of a run that nobody killed."""
    home = tmp_path_factory.mktemp("undisturbed")
    with ScriptedServer(answer) as server:
        assert sessions.run(str(home), server.url, "task") == 0
    check_books(server, state_of(home))
    assert len(server.calls) == QUESTIONS
    return result_of(home)


def check_books(server: ScriptedServer, state: RunState) -> None:
    """Compare the provider's books with the journal's, question by question."""
    assert {call.status for call in state.calls} <= {"paid", "lost"}
    ours: Mapping[str, Counter[str]] = defaultdict(Counter)
    for call in state.calls:
        ours[f"neuron-port-{call.request}"][call.status] += 1
    assert len(ours) == QUESTIONS
    assert {books["paid"] for books in ours.values()} == {1}
    keys_of_question = defaultdict(set)
    for call in server.calls:
        keys_of_question[call.last_message].add(call.key)
    assert len(keys_of_question) == QUESTIONS
    assert all(len(keys) == 1 for keys in keys_of_question.values())  # what an honouring provider needs
    for key, books in ours.items():
        # Asked again only after a kill in mid-call, and each of those calls is in the journal, at its worst case.
        assert 1 <= server.asked[key] <= 1 + books["lost"]
        assert 1 <= server.delivered[key] <= 1 + books["lost"]


@pytest.mark.parametrize("honours_keys", [True, False])
def test_killed_at_random_moments(
    sessions: Sessions, tmp_path: Path, undisturbed: Any, honours_keys: bool
) -> None:
    """Ten kills at random moments and in random writes: each run ends as if undisturbed, its books in order."""
    chance = random.Random(20 + honours_keys)
    kills = Counter[str]()
    runs = 0
    while kills.total() < KILLS // 2:
        home = tmp_path / str(runs)
        runs += 1
        with ScriptedServer(answer, honours_keys=honours_keys) as server:
            arguments = (str(home), server.url, "task")
            while True:
                how = chance.choice(["time", "time", "time", *WRITES_OF_A_SESSION])
                if kills.total() == KILLS // 2:
                    status = sessions.run(*arguments)
                elif how == "time":
                    status = sessions.run(
                        *arguments, kill_after_seconds=chance.uniform(0, LONGEST_SESSION_SECONDS)
                    )
                else:
                    number = chance.randint(1, WRITES_OF_A_SESSION[how])
                    status = sessions.run(*arguments, kill_in_write=(how, number))
                if status == 0:
                    break
                assert status == KILLED
                kills[how] += 1
            asked = len(server.calls)
            assert result_of(home) == undisturbed
            spent = state_of(home).spent
        assert sessions.run(*arguments, "replay") == 0  # the server is gone: a call would fail
        assert result_of(home) == undisturbed
        state = state_of(home)
        assert state.spent == spent
        assert state.ended is not None
        assert asked == len(server.calls)
        check_books(server, state)
    assert set(kills) > {"time"}


@pytest.mark.parametrize("where", ["write", "fsync", "rename"])
def test_killed_in_every_kind_of_write(
    sessions: Sessions, tmp_path: Path, undisturbed: Any, where: str
) -> None:
    """Killed in the first write of a kind, the next time in a later one and so on, a run still comes to its end."""
    with ScriptedServer(answer) as server:
        number = 1
        while (status := sessions.run(str(tmp_path), server.url, "task", kill_in_write=(where, number))) != 0:
            assert status == KILLED
            number += STEPS[where]
        assert number > 5
    assert result_of(tmp_path) == undisturbed
    check_books(server, state_of(tmp_path))
