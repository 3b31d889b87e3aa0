"""The candidates of one run: who came from whom, what each was told, and every verdict on it.

The run's journal holds them as events. A run that goes on after a kill passes the same points again, so an event that
is there already is not written twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from neuron_port.drafting.keeping.journal import Journal
from neuron_port.grading.verdict import STAGES, Verdict
from neuron_port.types import from_json, to_json

Check = Literal["graded", "admission", "in graph"]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One kernel that the language model wrote, or its failure to write one (`source` is None, `problem` says why).

    `id` is "2.3": the fourth kernel of line 2. `rung` is what it was asked to do: "draft", "fix", "simplify" ...
    """

    id: str
    line: int
    round: int
    parent: str | None
    rung: str
    plan: int | None
    source: str | None
    problem: str = ""
    reply_key: str = ""

    @property
    def sha256(self) -> str:
        return hashlib.sha256((self.source or "").encode()).hexdigest()


@dataclass(kw_only=True)
class Judged:
    """A candidate with the verdicts on it, latest last."""

    candidate: Candidate
    verdicts: list[tuple[Check, Verdict]] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict | None:
        return self.verdicts[-1][1] if self.verdicts else None

    @property
    def admitted(self) -> bool:
        verdict = self.verdict
        return verdict is not None and verdict.passed and verdict.stage == "admitted"

    @property
    def progress(self) -> tuple[int, float]:
        """How far it came, to rank lines by: the stage, then the passed part of the public cases."""
        verdict = self.verdict
        return (-1, 0.0) if verdict is None else (STAGES.index(verdict.stage), verdict.public_fraction)


class RunLog:
    """Writes what happens to the journal, once, however often a killed run passes the same point."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._known = {_identity(event) for event in journal.events()}

    def note(self, kind: str, **fields: Any) -> None:
        event = {"kind": kind, **to_json(fields)}
        identity = _identity(event)
        if identity not in self._known:
            self._known.add(identity)
            self.journal.append(event)

    def plan(self, number: int, text: str, problems: Iterable[str]) -> None:
        self.note("plan", plan=number, text=text, problems=list(problems))

    def candidate(self, candidate: Candidate) -> None:
        self.note("candidate", candidate=candidate)

    def verdict(self, candidate: Candidate, check: Check, verdict: Verdict) -> None:
        self.note("verdict", candidate=candidate.id, check=check, verdict=verdict)


def _identity(event: Mapping[str, Any]) -> str:
    """What makes two events the same. CPU seconds differ from run to run and identify nothing."""
    kept = {name: value for name, value in event.items() if name not in ("n", "time")}
    if kept.get("kind") == "verdict":
        return f"verdict {kept['candidate']} {kept['check']}"
    if kept.get("kind") == "candidate":
        return f"candidate {kept['candidate']['id']}"
    return repr(sorted(kept.items(), key=lambda item: item[0]))


def read_candidates(events: Iterable[Mapping[str, Any]]) -> dict[str, Judged]:
    """All candidates of a run by id, in the order in which they were made."""
    found: dict[str, Judged] = {}
    for event in events:
        if event["kind"] == "candidate":
            candidate = from_json(Candidate, event["candidate"])
            found[candidate.id] = Judged(candidate=candidate)
        elif event["kind"] == "verdict" and event["candidate"] in found:
            found[event["candidate"]].verdicts.append((event["check"], from_json(Verdict, event["verdict"])))
    return found
