"""The journal knows after a kill what happened before it, and has one writer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from neuron_port.drafting.keeping.journal import (
    EVENTS,
    Journal,
    RunDescription,
    find_runs,
    fold,
    list_runs,
    read_events,
    run_folder,
)
from neuron_port.drafting.spending.cost import Cost
from neuron_port.errors import StorageError, UsageError
from neuron_port.types import to_json

CALL = {"request": "k1", "purpose": "draft", "layer": "a", "stage": "draft", "path": ["layer a", "draft"]}
WORST = to_json(Cost(usd=0.5, input_tokens=100, output_tokens=50, calls=1))
ACTUAL = to_json(Cost(usd=0.2, input_tokens=90, output_tokens=10, calls=1))
DESCRIPTION = RunDescription(task="rms_norm", target="trn2", model="openai:x", layer="model.layers.0.norm")


def kinds(folder: Path) -> list[str]:
    return [event["kind"] for event in read_events(folder)]


def test_events_are_numbered_kept_and_read_back(tmp_path: Path) -> None:
    """What was appended is there, in order, for the next session and for a reader beside it."""
    with Journal(tmp_path / "run", clock=lambda: 12.5) as journal:
        event = journal.append(
            {"kind": "candidate", "text": "two\nlines\u2028and\rmore", "cost": Cost(calls=2)}
        )
        assert (event["n"], event["time"], event["cost"]["calls"]) == (1, 12.5, 2)
        assert read_events(tmp_path / "run") == journal.events()
    with Journal(tmp_path / "run") as journal:
        assert [event["kind"] for event in journal.events()] == ["opened", "candidate", "opened"]
        assert journal.events()[1] == event


@pytest.mark.parametrize("torn", [b'{"n": 2, "time": 0, "ki', b'{"n": 2, "kind": "x"}', b"\0\0\0\0", b"{}\n"])
def test_torn_last_line_is_dropped(tmp_path: Path, torn: bytes) -> None:
    """A last line that a kill left unfinished disappears, and the next event stands where it stood."""
    with Journal(tmp_path) as journal:
        journal.append({"kind": "candidate"})
    with (tmp_path / EVENTS).open("ab") as file:
        file.write(torn)
    assert kinds(tmp_path) == ["opened", "candidate"]
    with Journal(tmp_path) as journal:
        journal.append({"kind": "verdict"})
    assert kinds(tmp_path) == ["opened", "candidate", "opened", "verdict"]
    assert [event["n"] for event in read_events(tmp_path)] == [0, 1, 2, 3]


def test_damage_in_the_middle_is_named(tmp_path: Path) -> None:
    """A line that is broken before the last one is no torn write: the run stops and names it."""
    with Journal(tmp_path) as journal:
        journal.append({"kind": "candidate"})
    content = (tmp_path / EVENTS).read_bytes()
    (tmp_path / EVENTS).write_bytes(content.replace(b'"n": 0', b'"n": 7'))
    with pytest.raises(StorageError, match=r"Line 1 of .*events.jsonl is damaged"):
        Journal(tmp_path)
    (tmp_path / EVENTS).write_bytes(content)
    Journal(tmp_path).close()  # the failure has let go of the lock


def test_second_writer_is_told_of_the_first(tmp_path: Path) -> None:
    """While one writes, another gets a sentence with its process; afterwards it can go on."""
    with (
        Journal(tmp_path),
        pytest.raises(StorageError, match=f"Process {os.getpid()} is at this run already"),
    ):
        Journal(tmp_path)
    Journal(tmp_path).close()


def test_killed_writer_does_not_block(tmp_path: Path) -> None:
    """A process that was killed has left its events and no lock."""
    program = (
        "import sys, time; from pathlib import Path; from neuron_port.drafting.keeping.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1])); journal.append({'kind': 'candidate'}); print('ready', flush=True)\n"
        "time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"ready\n"
    with pytest.raises(StorageError, match=f"Process {process.pid} is at this run"):
        Journal(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with Journal(tmp_path):
        assert kinds(tmp_path) == ["opened", "candidate", "opened"]


def test_threads_write_whole_lines(tmp_path: Path) -> None:
    """Events of many threads are numbered without gaps."""
    with Journal(tmp_path) as journal:
        threads = [
            threading.Thread(
                target=lambda: [journal.append({"kind": "x", "text": "y" * 5000}) for _ in range(5)]
            )
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [event["n"] for event in read_events(tmp_path)] == list(range(41))


def test_disk_that_refuses_is_one_sentence(tmp_path: Path) -> None:
    """A file where the folder should be is a StorageError with the cure, not a traceback."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="there is a file where a folder should be"):
        Journal(tmp_path / "file" / "run")


def test_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    """When the disk takes only part of a line, the part is taken back and the journal stays readable."""
    program = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from neuron_port.drafting.keeping.journal import Journal; from neuron_port.errors import StorageError\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "try:\n    journal.append({'kind': 'x', 'text': 'y' * 5000})\n"
        "except OSError as error:\n    print(error.errno)\n"
        "journal.append({'kind': 'short'})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "27\n"  # EFBIG
    assert kinds(tmp_path) == ["opened", "short"]


def test_decisions_are_made_once(tmp_path: Path) -> None:
    """A seed drawn by one session is the next one's too."""
    with Journal(tmp_path) as journal:
        assert journal.decide("seed", lambda: 17) == 17
        assert journal.decide("seed", lambda: 18) == 17
    with Journal(tmp_path) as journal:
        assert journal.decide("seed", lambda: 19) == 17
        assert journal.decide("exemplars", lambda: [1, 2]) == [1, 2]


def test_state_adds_up_calls(tmp_path: Path) -> None:
    """Paid calls count what they cost, calls in flight and lost ones their worst case, reused ones nothing."""
    with Journal(tmp_path) as journal:
        first = journal.append({"kind": "call started", **CALL, "worst": WORST})
        journal.append({"kind": "call paid", "call": first["n"], **CALL, "cost": ACTUAL})
        lost = journal.append({"kind": "call started", **CALL, "request": "k2", "worst": WORST})
        journal.append({"kind": "call lost", "call": lost["n"], **CALL, "request": "k2", "cost": WORST})
        journal.append({"kind": "call started", **CALL, "request": "k3", "worst": WORST})
        journal.append({"kind": "call reused", **CALL, "paid_by_this_run": False})
        state = journal.state()
    assert [call.status for call in state.calls] == ["paid", "lost", "in flight"]
    assert state.spent.usd == pytest.approx(1.2)
    assert state.paid_requests == {"k1"}
    assert [call.request for call in state.in_flight] == ["k3"]
    assert {spending.path for spending in state.spending} == {("layer a", "draft")}


def test_state_adds_up_time_of_sessions_not_of_pauses(tmp_path: Path) -> None:
    """Time counts from a session's first event to its last, by path; the night between two sessions does not."""

    def event(kind: str, time: float, **more: object) -> dict[str, object]:
        return {"kind": kind, "time": time, "n": 0, **more}

    started = {**CALL, "worst": WORST}
    events = [
        event("opened", 100), event("call started", 110, **started), event("x", 150),
        event("opened", 9000), event("call started", 9005, **started), event("call reused", 9025, **CALL),
        event("opened", 9900), event("x", 9800),  # the clock was set back
    ]  # fmt: skip
    state = fold(events)
    assert state.sessions == 3
    assert state.elapsed_seconds == {(): 75.0, ("layer a",): 20.0, ("layer a", "draft"): 20.0}


def test_a_finished_run_stays_ended_when_it_is_looked_at_again(tmp_path: Path) -> None:
    """Opening and replaying a finished run leaves it ended; a new call begins it again."""
    with Journal(tmp_path) as journal:
        journal.append({"kind": "ended", "outcome": "budget"})
        journal.append({"kind": "call reused", **CALL, "paid_by_this_run": True})
        ended = journal.state().ended
        assert ended is not None
        assert ended["outcome"] == "budget"
        journal.append({"kind": "call started", **CALL, "worst": WORST})
        assert journal.state().ended is None


def test_runs_are_found_by_task_layer_and_key(tmp_path: Path) -> None:
    """A run answers to its task, its layer's whole or last name, and its key; the latest comes first."""
    for number, key in enumerate(["abc", "def"]):
        with Journal(run_folder(tmp_path, key), DESCRIPTION):
            pass
        os.utime(run_folder(tmp_path, key) / EVENTS, (1000 + number, 1000 + number))
    for name in ("rms_norm", "model.layers.0.norm", "norm"):
        assert [run.key for run in find_runs(tmp_path, name)] == ["def", "abc"]
    (found,) = find_runs(tmp_path, "abc")
    assert (found.description, found.folder) == (DESCRIPTION, run_folder(tmp_path, "abc"))
    assert len(list_runs(tmp_path)) == 2


def test_unknown_run_gets_a_near_name(tmp_path: Path) -> None:
    """A misspelt name is answered with its neighbour, and no runs at all with how to start one."""
    with pytest.raises(UsageError, match="about `rms_nrom`") as caught:
        find_runs(tmp_path, "rms_nrom")
    assert "neuron-port draft" in str(caught.value.hint)
    with Journal(run_folder(tmp_path, "abc"), DESCRIPTION):
        pass
    with pytest.raises(UsageError) as caught:
        find_runs(tmp_path, "rms_nrom")
    assert caught.value.hint == "Did you mean `rms_norm`?"


def test_description_is_replaced_when_the_options_change(tmp_path: Path) -> None:
    """A run that goes on with a larger budget is described by it."""
    Journal(run_folder(tmp_path, "abc"), DESCRIPTION).close()
    larger = RunDescription(task="rms_norm", target="trn2", model="openai:x", options={"budget_usd": 9})
    Journal(run_folder(tmp_path, "abc"), larger).close()
    assert [run.description for run in list_runs(tmp_path)] == [larger]
    assert json.loads((run_folder(tmp_path, "abc") / "run.json").read_text())["options"] == {"budget_usd": 9}
