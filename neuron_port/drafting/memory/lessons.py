"""What earlier runs learnt, in one SQLite file: verified kernels, corrections, what made kernels faster, dead ends.

A poisoned memory would teach every later run, so a kernel enters with the verdict that admitted it or not at all, and
texts are data: cut to a length and without control characters. What is new is provisional until it has helped with two
tasks other than its own. What was learnt under another NKI version is not offered; nor are kernels that another
version of the verifier admitted, until they are verified again.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from neuron_port.drafting.memory.file import open_file, reading_frozen, speaking_of
from neuron_port.drafting.memory.records import (
    DeadEnd,
    Exemplar,
    Fix,
    Kind,
    Lesson,
    Lever,
    clean,
    columns_of,
    require_admission,
)
from neuron_port.errors import NeuronPortError, UsageError
from neuron_port.grading.verdict import Verdict
from neuron_port.types import digest

Purpose = Literal["draft", "repair", "optimize"]
OFFERED: Mapping[Purpose, tuple[Kind, ...]] = {
    "draft": ("fix",),
    "repair": ("fix",),
    "optimize": ("lever", "dead end"),
}
MOST_EXEMPLARS = 2  # per prompt
MOST_NOTES = 4
TASKS_TO_PROVE = 2  # other tasks that a lesson must have helped with
History = tuple[int, int, set[str]]  # successes, trials, keys of the tasks that it helped with


class FrozenMemoryError(NeuronPortError):
    """Something was to be learnt or forgotten while the memory is only read."""


@dataclass(frozen=True, kw_only=True)
class Recalled:
    """A lesson as it is offered, or listed.

    `successes` and `trials` are those of the purpose that was asked for; in lists, of all purposes.
    `stale` says why it is not offered: "" when it is.
    """

    id: int
    kind: Kind
    family: str
    primitives: tuple[str, ...]
    error_class: str
    note: str
    before: str
    after: str
    source: str  # of exemplars: the kernel
    metric: str
    task: str  # key of the task that it comes from
    target: str
    dialect: str
    verifier_version: str
    created: float  # seconds since 1970
    successes: int
    trials: int
    provisional: bool
    stale: str
    score: float = 0.0

    @property
    def line(self) -> str:
        """The lesson on one line, for a prompt."""
        change = f" Before: `{self.before}` After: `{self.after}`" if self.before or self.after else ""
        doubt = " (seen once, not proven)" if self.provisional else ""
        return " ".join(f"{self.note}{change}{doubt}".split())


class Memory:
    """Lessons in the file `path`; thread-safe, and several processes may share it. Use it in a `with`.

    Args:
        path: None: a memory of its own that starts empty and ends with the process.
        dialect: the NKI version that kernels are written for.
        verifier_version: of the grader that admits kernels.
        frozen: read what is there now and never write; what others add meanwhile is not seen.

    Raises StorageError when the file is damaged, newer than this program, or (frozen) not there.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        dialect: str,
        verifier_version: str,
        frozen: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self.dialect = dialect
        self.verifier_version = verifier_version
        self.frozen = frozen
        self._clock = clock
        self._lock = threading.Lock()
        self._file = reading_frozen(path) if frozen else open_file(path)

    def remember(self, lesson: Lesson) -> int:
        """Keep a lesson and return its id; one that is there already keeps its id and its history."""
        values = {
            **columns_of(lesson),
            "dialect": self.dialect,
            "verifier_version": self.verifier_version,
        }
        # A kernel that is found again under a newer verifier is the same kernel, verified again.
        identity = digest({name: value for name, value in values.items() if name != "verifier_version"})
        values |= {"identity": identity, "created": self._clock()}
        names = ", ".join(values)
        marks = ", ".join("?" * len(values))
        update = "verifier_version = excluded.verifier_version"
        statement = (
            f"INSERT INTO lessons ({names}) VALUES ({marks}) ON CONFLICT (identity) DO UPDATE SET {update}"
        )
        self._write(statement, tuple(values.values()))
        return int(self._read("SELECT id FROM lessons WHERE identity = ?", (identity,))[0]["id"])

    def exemplars(
        self,
        family: str,
        primitives: Iterable[str],
        *,
        purpose: Purpose = "draft",
        limit: int = MOST_EXEMPLARS,
        without_tasks: Collection[str] = (),
    ) -> tuple[Recalled, ...]:
        """Admitted kernels that resemble the task most and helped most often; best first."""
        return self._best(("exemplar",), family, primitives, "", purpose, limit, without_tasks)

    def notes(
        self,
        family: str,
        primitives: Iterable[str],
        *,
        purpose: Purpose,
        error_class: str = "",
        limit: int = MOST_NOTES,
        without_tasks: Collection[str] = (),
    ) -> tuple[Recalled, ...]:
        """Corrections for a draft or a repair (of `error_class`, if it is given); levers and dead ends to optimise."""
        return self._best(OFFERED[purpose], family, primitives, error_class, purpose, limit, without_tasks)

    def tried(self, ids: Iterable[int], *, task: str, run: str, purpose: Purpose, helped: bool) -> None:
        """Count one trial of each lesson: it stood in a prompt of this run, and the aim was reached or not.

        Counted once for each run and purpose, the latest result, however often a killed run comes here.
        """
        statement = (
            "INSERT OR REPLACE INTO trials (lesson, run, purpose, task, helped) VALUES (?, ?, ?, ?, ?)"
        )
        for lesson in ids:
            self._write(statement, (lesson, run, purpose, task, int(helped)))

    def reverified(self, lesson: int, verdict: Verdict) -> None:
        """Offer an exemplar again: the verifier of today has admitted it."""
        require_admission(verdict, f"exemplar {lesson}")
        statement = "UPDATE lessons SET verifier_version = ? WHERE id = ?"
        self._require(self._write(statement, (self.verifier_version, lesson)), lesson)

    def rows(self) -> tuple[Recalled, ...]:
        """Everything that is remembered, stale lessons too, by id."""
        history = self._history(None)
        return tuple(self._recalled(row, history) for row in self._read("SELECT * FROM lessons ORDER BY id"))

    def forget(self, lesson: int) -> None:
        """Delete a lesson and its history. Raises UsageError when there is none of that id."""
        self._write("DELETE FROM trials WHERE lesson = ?", (lesson,))
        self._require(self._write("DELETE FROM lessons WHERE id = ?", (lesson,)), lesson)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Memory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _best(
        self,
        kinds: tuple[Kind, ...],
        family: str,
        primitives: Iterable[str],
        error_class: str,
        purpose: Purpose,
        limit: int,
        without_tasks: Collection[str],
    ) -> tuple[Recalled, ...]:
        history = self._history(purpose)
        wanted = set(primitives)
        found = []
        for row in self._read("SELECT * FROM lessons WHERE dialect = ? ORDER BY id", (self.dialect,)):
            lesson = self._recalled(row, history)
            other_error = bool(error_class) and lesson.kind == "fix" and lesson.error_class != error_class
            if lesson.kind not in kinds or lesson.stale or lesson.task in without_tasks or other_error:
                continue
            alike = similarity(family, wanted, error_class, lesson)
            if alike > 0:
                # (successes + 1) / (trials + 2): the expected rate of success under a uniform prior.
                score = alike * (lesson.successes + 1) / (lesson.trials + 2)
                found.append(replace(lesson, score=score))
        return tuple(sorted(found, key=lambda lesson: (-lesson.score, lesson.id))[:limit])

    def _history(self, purpose: Purpose | None) -> dict[int, History]:
        """By lesson: successes and trials for `purpose` (None: for all), and the tasks that it helped with at all."""
        history: dict[int, History] = {}
        for row in self._read("SELECT * FROM trials"):
            successes, trials, tasks = history.get(row["lesson"], (0, 0, set()))
            if purpose in (None, row["purpose"]):
                successes, trials = successes + row["helped"], trials + 1
            history[row["lesson"]] = (
                successes,
                trials,
                tasks | ({row["task"]} if row["helped"] else set()),
            )
        return history

    def _recalled(self, row: Mapping[str, Any], history: Mapping[int, History]) -> Recalled:
        successes, trials, tasks = history.get(row["id"], (0, 0, set()))
        stale = ""
        if row["dialect"] != self.dialect:
            stale = f"learnt under NKI {row['dialect']}"
        elif row["kind"] == "exemplar" and row["verifier_version"] != self.verifier_version:
            stale = f"admitted by verifier {row['verifier_version']}"
        same = {
            name: row[name]
            for name in (
                "id", "kind", "family", "error_class", "note", "before", "after", "source", "metric", "task",
                "target", "dialect", "verifier_version", "created",
            )
        }  # fmt: skip
        return Recalled(
            **same,
            primitives=tuple(json.loads(row["primitives"])),
            successes=successes,
            trials=trials,
            provisional=len(tasks - {row["task"]}) < TASKS_TO_PROVE,
            stale=stale,
        )

    def _read(self, statement: str, values: tuple[Any, ...] = ()) -> list[Mapping[str, Any]]:
        with self._lock, speaking_of(self.path):
            return [dict(row) for row in self._file.execute(statement, values)]

    def _write(self, statement: str, values: tuple[Any, ...]) -> int:
        """Run one statement, durably, and return how many rows it changed."""
        if self.frozen:
            raise FrozenMemoryError(
                f"The memory {self.path} is frozen: this run only reads it.",
                hint="Frozen memories serve benchmarks; let the memory learn in other runs.",
            )
        with self._lock, speaking_of(self.path):
            return self._file.execute(statement, values).rowcount

    def _require(self, changed: int, lesson: int) -> None:
        if not changed:
            raise UsageError(
                f"The memory has no lesson `{lesson}`.", hint="List the lessons to see their ids."
            )


def similarity(family: str, primitives: set[str], error_class: str, lesson: Recalled) -> float:
    """From 0 to 1: the family counts half and the share of common primitives half.

    A correction for the very error that is to be repaired fits any family, and another half is on top before scaling.
    """
    union = primitives | set(lesson.primitives)
    shared = len(primitives & set(lesson.primitives)) / len(union) if union else 0.0
    alike = 0.5 * (clean(family, 100) == lesson.family) + 0.5 * shared
    return (
        (0.5 + alike) / 1.5
        if error_class and lesson.kind == "fix" and lesson.error_class == error_class
        else alike
    )


__all__ = [
    "Memory", "Recalled", "Purpose", "FrozenMemoryError", "Exemplar", "Fix", "Lever", "DeadEnd", "Lesson",
]  # fmt: skip
