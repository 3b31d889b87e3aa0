"""Killed at any moment and started again, a run comes to the same result and pays no reply twice."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
from killing import KILLED, Sessions

from neuron_port.drafting.journal import RunState, fold, read_events, run_folder
from tests.llm.scripted_server import Answer, Call, ScriptedServer

PROGRAM = Path(__file__).parent / "kill_program.py"
ASKED = 9  # questions of the program
KILLS = 20


def answer(call: Call) -> Answer:
    """A streamed reply that depends on the question (and its sample, which is in the key), over some 30 ms."""
    text = hashlib.sha256((call.key + call.last_message).encode()).hexdigest() * 4
    return Answer(text=text, delay_seconds=0.01, piece_delay_seconds=0.005)


def run_of(home: Path) -> RunState:
    return fold(read_events(run_folder(home, "task")))


def check_books(server: ScriptedServer, home: Path) -> None:
    """Compare the provider's books with the journal's, question by question.

    Every reply is paid once. A question was asked again only if a kill had cut a call of it whose reply was not on
    our disk, and each of those is in the journal, where the budget counts it at its worst.
    """
    calls = run_of(home).calls
    paid, lost, started = (
        Counter(f"neuron-port-{call.request}" for call in calls if call.status in statuses)
        for statuses in (("paid",), ("lost",), ("paid", "lost", "in flight", "failed"))
    )
    assert len(paid) == ASKED
    assert set(paid.values()) == {1}
    assert {call.status for call in calls} <= {"paid", "lost"}
    for key, times in server.asked.items():
        assert times <= started[key]  # a kill may come between the journal's line and the request
        assert times <= 1 + lost[key]
        assert server.delivered[key] <= 1 + lost[key]
        if server.honours_keys:
            assert _charged_deliveries(server, key) == 1


def _charged_deliveries(server: ScriptedServer, key: str) -> int:
    """Complete replies that were generated, and charged, for a key; repeating a delivered one is free."""
    return min(server.charged[key], server.delivered[key], 1) if server.honours_keys else server.delivered[key]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, object]:
    """The result of a run that nobody disturbed."""
    home = tmp_path_factory.mktemp("undisturbed")
    with ScriptedServer(answer) as server, Sessions(PROGRAM, [str(home), server.url, "task"]) as sessions:
        assert sessions.run() == 0
    return json.loads((home / "task.json").read_text())  # type: ignore[no-any-return]
