"""The journal of one drafting run: a folder with `events.jsonl`, to which lines are added and nothing else is done.

An event has reached the disk when `append` returns, so what happened before a kill is known after it; the state of a
run is a fold over its events. A line that a kill tore is dropped when the journal is next opened: nothing was done
yet on the strength of it.
"""

from __future__ import annotations

import difflib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from neuron_port.drafting.keeping.files import make_folder, replace_file, sync_folder
from neuron_port.drafting.spending.budget import BudgetPath, Spending
from neuron_port.drafting.spending.cost import Cost
from neuron_port.errors import StorageError, UsageError
from neuron_port.lockfile import hold
from neuron_port.store import Store
from neuron_port.types import from_json, to_json

EVENTS = "events.jsonl"
RUN = "run.json"
LOCK = "writer.lock"
RUNS_FOLDER = "drafting"  # below $NEURON_PORT_HOME

Event = Mapping[str, Any]  # "n" (from 0), "time" (seconds since 1970), "kind", and what belongs to the kind


@dataclass(frozen=True, kw_only=True)
class RunDescription:
    """What a run is about, for people and for finding it again."""

    task: str
    target: str
    model: str  # the language model
    layer: str = ""  # "model.layers.0.mlp"; "" when the task is no layer of a model
    checkpoint: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FoundRun:
    """A run on disk; `key` is its folder's name."""

    key: str
    folder: Path
    description: RunDescription
    changed: float  # when its last event was written, seconds since 1970


class Journal:
    """The one writer of a run's folder; use it in a `with`.

    Opening creates the folder, or goes on with the one that is there, and adds an "opened" event. Raises StorageError
    when another process (named) writes it, when a line in the middle is damaged, or when the disk refuses.
    """

    def __init__(
        self,
        folder: Path,
        description: RunDescription | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder = folder
        self._clock = clock
        self._thread_lock = threading.Lock()
        self._resources = ExitStack()
        self._disk = Store(folder)
        with self._resources, self._disk.writing(folder):
            make_folder(folder)
            self._take_over()
            if description is not None:
                replace_file(folder / RUN, _line(to_json(description), indent=2))
            self._file = os.open(folder / EVENTS, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            self._resources.callback(os.close, self._file)
            sync_folder(folder)
            content = (folder / EVENTS).read_bytes()
            self._events, self._size_bytes = _parse(content, folder / EVENTS)
            if self._size_bytes < len(content):
                os.ftruncate(self._file, self._size_bytes)
            self.append({"kind": "opened", "process": os.getpid()})
            self._resources = self._resources.pop_all()  # nothing failed: keep file and lock

    def append(self, event: Mapping[str, Any]) -> Event:
        """Write one event, which names its "kind", and return it numbered; it is on the disk then."""
        with self._thread_lock:
            numbered = {"n": len(self._events), "time": self._clock(), **to_json(event)}
            line = _line(numbered)
            with self._disk.writing(self.folder / EVENTS):
                self._write(line)
            self._events.append(numbered)
            self._size_bytes += len(line)
            return numbered

    def events(self) -> tuple[Event, ...]:
        """All events so far, those of earlier sessions included."""
        with self._thread_lock:
            return tuple(self._events)

    def decide(self, name: str, make: Callable[[], Any]) -> Any:
        """The JSON value that this run decided on under `name`; the first time, what `make()` returns.

        For whatever a resumed run must find as it was: a drawn seed, what the memory offered.
        """
        for event in self.events():
            if event["kind"] == "decided" and event["name"] == name:
                return event["value"]
        return self.append({"kind": "decided", "name": name, "value": make()})["value"]

    def state(self) -> RunState:
        return fold(self.events())

    def close(self) -> None:
        """Let the next writer in; a second time, nothing happens."""
        self._resources.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take_over(self) -> None:
        lock = self.folder / LOCK
        try:
            self._resources.enter_context(hold(lock, timeout_seconds=0))
        except StorageError as error:
            holder = lock.read_text().strip() or "(starting)"
            raise StorageError(
                f"Process {holder} is at this run already: {self.folder}",
                hint="Wait for it or stop it, then run the same command again: it goes on from there.",
            ) from error

    def _write(self, line: bytes) -> None:
        """Add a whole line or nothing, so that a full disk does not leave half a line before the next one."""
        try:
            remaining = line
            while remaining:
                remaining = remaining[os.write(self._file, remaining) :]
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, self._size_bytes)
            raise


@dataclass(frozen=True, kw_only=True)
class Call:
    """One paid attempt at a request: `status` is "in flight", "paid", "failed" or "lost" (nobody knows: worst case)."""

    number: int  # of its "call started" event
    request: str  # key of the request
    purpose: str
    layer: str
    stage: str
    path: BudgetPath
    status: str
    cost: Cost  # in flight: the worst case


@dataclass(frozen=True, kw_only=True)
class RunState:
    """What the events of a run add up to.

    `candidates`, `verdicts`, `stages` and `accepted` are the events of the kinds "candidate", "verdict", "stage" and
    "accepted" as they were written. `elapsed_seconds` is the time of all sessions up to their last event, by the path
    of the budget; () is the run. A session is one process that opened the journal.
    """

    calls: tuple[Call, ...]
    elapsed_seconds: Mapping[BudgetPath, float]
    sessions: int
    candidates: tuple[Event, ...] = ()
    verdicts: tuple[Event, ...] = ()
    stages: tuple[Event, ...] = ()
    accepted: tuple[Event, ...] = ()
    ended: Event | None = None  # the last "ended" event, unless new work was begun since

    @property
    def spending(self) -> tuple[Spending, ...]:
        """What was spent, call by call; calls in flight count whole."""
        return tuple(Spending(path=call.path, cost=call.cost) for call in self.calls)

    @property
    def spent(self) -> Cost:
        return sum((call.cost for call in self.calls), Cost())

    @property
    def in_flight(self) -> tuple[Call, ...]:
        return tuple(call for call in self.calls if call.status == "in flight")

    @property
    def paid_requests(self) -> frozenset[str]:
        """Keys of the requests whose replies this run paid for."""
        return frozenset(call.request for call in self.calls if call.status == "paid")


CLOSING = {"call paid": "paid", "call failed": "failed", "call lost": "lost"}


def fold(events: Iterable[Event]) -> RunState:
    """The state of a run from its events, in order; kinds that are not known here change nothing."""
    events = tuple(events)
    calls: dict[int, Call] = {}
    for event in events:
        if event["kind"] == "call started":
            calls[event["n"]] = _call(event["n"], event, "in flight", event["worst"])
        elif event["kind"] in CLOSING:
            started = event["call"]
            calls[started] = _call(started, event, CLOSING[event["kind"]], event["cost"])

    def of_kind(kind: str) -> tuple[Event, ...]:
        return tuple(event for event in events if event["kind"] == kind)

    return RunState(
        calls=tuple(calls.values()),
        elapsed_seconds=_elapsed_seconds(events),
        sessions=len(of_kind("opened")),
        candidates=of_kind("candidate"),
        verdicts=of_kind("verdict"),
        stages=of_kind("stage"),
        accepted=of_kind("accepted"),
        ended=_ending(events),
    )


def _ending(events: Iterable[Event]) -> Event | None:
    """The last "ended" event; opening a finished run and passing over what is known does not begin it again."""
    ended = None
    for event in events:
        if event["kind"] == "ended":
            ended = event
        elif event["kind"] not in ("opened", "call reused", "decided"):
            ended = None
    return ended


def read_events(folder: Path) -> tuple[Event, ...]:
    """The events of a run, whoever writes it now; nothing is changed on disk."""
    file = folder / EVENTS
    return tuple(_parse(file.read_bytes(), file)[0]) if file.exists() else ()


def run_folder(home: Path, key: str) -> Path:
    """The folder of the run `key` below $NEURON_PORT_HOME."""
    return home / RUNS_FOLDER / key


def find_runs(home: Path, name: str) -> tuple[FoundRun, ...]:
    """The runs whose key, task or layer is `name`, or whose layer ends in it; latest first.

    Raises UsageError, with names that are near, when there is none.
    """
    runs = list_runs(home)
    found = [run for run in runs if name in _names(run) or run.description.layer.endswith(f".{name}")]
    if found:
        return tuple(found)
    known = sorted({other for run in runs for other in _names(run) if other != run.key})
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        hint = "Did you mean " + " or ".join(f"`{other}`" for other in near) + "?"
    elif known:
        hint = "There are: " + ", ".join(known[:20])
    else:
        hint = f"Nothing was drafted yet below {home}; `neuron-port draft` starts a run."
    raise UsageError(f"No drafting run is about `{name}`.", hint=hint)


def list_runs(home: Path) -> tuple[FoundRun, ...]:
    """All runs below $NEURON_PORT_HOME, latest first."""
    found = []
    for file in (home / RUNS_FOLDER).glob(f"*/{RUN}"):
        folder = file.parent
        events = folder / EVENTS
        changed = (events if events.exists() else file).stat().st_mtime
        description = from_json(RunDescription, json.loads(file.read_bytes()))
        found.append(FoundRun(key=folder.name, folder=folder, description=description, changed=changed))
    return tuple(sorted(found, key=lambda run: (-run.changed, run.key)))


def _names(run: FoundRun) -> set[str]:
    return {name for name in (run.key, run.description.task, run.description.layer) if name}


def _call(number: int, event: Event, status: str, cost: Mapping[str, Any]) -> Call:
    return Call(
        number=number,
        request=event["request"],
        purpose=event["purpose"],
        layer=event["layer"],
        stage=event["stage"],
        path=tuple(event["path"]),
        status=status,
        cost=from_json(Cost, cost),
    )


def _elapsed_seconds(events: Iterable[Event]) -> dict[BudgetPath, float]:
    """Per session and path, the time from the first event to the last; sessions add up, the pauses between do not."""
    total: dict[BudgetPath, float] = {}
    first: dict[BudgetPath, float] = {}
    last: dict[BudgetPath, float] = {}

    def end_session() -> None:
        for path, moment in first.items():
            total[path] = total.get(path, 0.0) + max(0.0, last[path] - moment)  # clocks are set back at times
        first.clear()
        last.clear()

    for event in events:
        if event["kind"] == "opened":
            end_session()
        path = tuple(event.get("path", ()))
        for depth in range(len(path) + 1):
            first.setdefault(path[:depth], event["time"])
            last[path[:depth]] = event["time"]
    end_session()
    return total


def _parse(content: bytes, file: Path) -> tuple[list[dict[str, Any]], int]:
    """The whole events in `content` and the bytes that they take; a torn last line is left out."""
    events: list[dict[str, Any]] = []
    size_bytes = 0
    lines = content.splitlines(keepends=True)
    for number, line in enumerate(lines):
        event = _event(line)
        if event is None or event.get("n") != number:
            if number == len(lines) - 1:
                break
            raise StorageError(
                f"Line {number + 1} of {file} is damaged.",
                hint="Restore the file from a backup, or remove its folder: replies that were paid for are kept "
                "elsewhere, but what this run spent is then counted from nothing.",
            )
        events.append(event)
        size_bytes += len(line)
    return events, size_bytes


def _event(line: bytes) -> dict[str, Any] | None:
    """The event on a line, or None when the line is not whole."""
    if not line.endswith(b"\n"):
        return None
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "kind" in event else None


def _line(value: Any, indent: int | None = None) -> bytes:
    return (json.dumps(value, indent=indent) + "\n").encode()  # ASCII: no character of a text ends a line
