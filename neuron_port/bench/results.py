"""The results of a benchmark, with everything that a published number must carry; one JSON file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from neuron_port.bench.metrics import ArmSummary, TaskResult
from neuron_port.drafting.keeping.files import make_folder, replace_file
from neuron_port.types import to_json

RepliesKind = Literal["live", "recorded", "scripted"]
RESULTS_FILE = "results.json"
SCRIPTED_NOTE = "scripted replies: shows that the loop works, says nothing about any model"
TIER_NOTE = "Verdicts are of our own simulator. No Neuron device has confirmed them."


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What every number of a benchmark depends on.

    Attributes:
        suite: its name, or the tasks'.
        suite_digest: of the tasks that were measured: names, references, inputs, cases. Equal digests, equal tasks.
        verifier: digest of the code that judges.
        prompts: digest of the prompts' texts.
        model: as it was asked for. `replies`: whether it answered, or a recording, or a script written by hand.
        budget: limits of the whole benchmark by name; drafts and repairs limit each run.
        memory_lessons: lessons that arms with memory could show; None: no arm has memory.
    """

    tier: str
    nki_version: str
    target: str
    model: str
    replies: RepliesKind
    date: str
    suite: str
    suite_digest: str
    tasks: int
    ks: tuple[int, ...]
    samples: int
    sample_temperature: float
    repeats: int
    repairs: int
    plan: bool
    max_output_tokens: int
    budget: dict[str, float]
    hidden_seed: int
    verifier: str
    prompts: str
    memory_lessons: int | None
    memory_digest: str

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences without which the numbers would say more than they do."""
        found = [SCRIPTED_NOTE[0].upper() + SCRIPTED_NOTE[1:] + "."] if self.replies == "scripted" else []
        found.append(TIER_NOTE)
        if self.memory_lessons == 0:
            found.append(
                "The memory holds no lesson on other tasks: the memory arm shows what the repair arm shows."
            )
        return tuple(found)

    def lines(self) -> tuple[tuple[str, str], ...]:
        """(name, value) for people."""
        budget = ", ".join(f"{value:,} {name}" for name, value in self.budget.items())
        memory = (
            "not used"
            if self.memory_lessons is None
            else f"{self.memory_lessons} lessons, {self.memory_digest}"
        )
        return (
            ("model", f"{self.model} ({self.replies} replies)"),
            ("tier", f"{self.tier}, NKI {self.nki_version}, {self.target}"),
            ("date", self.date),
            ("suite", f"{self.suite}, {self.tasks} tasks, digest {self.suite_digest}"),
            (
                "k",
                f"{','.join(map(str, self.ks))}, from {self.samples} draws at temperature {self.sample_temperature:g}",
            ),
            ("runs", f"{self.repeats} of each arm on each task, hidden seed {self.hidden_seed}"),
            (
                "limits",
                f"{self.repairs} rounds of repair, {self.max_output_tokens:,} output tokens a reply, "
                f"{'a plan first' if self.plan else 'no plan'}; {budget} in all",
            ),
            ("memory", memory),
            ("judged by", f"verifier {self.verifier}, prompts {self.prompts}"),
        )


@dataclass(frozen=True, kw_only=True)
class Rerun:
    """The whole benchmark once more, from its caches: nothing may be asked, and nothing may come out differently."""

    calls: int
    different: tuple[str, ...] = ()  # "task, arm" that came out differently

    @property
    def line(self) -> str:
        same = "the same results" if not self.different else f"other results: {'; '.join(self.different)}"
        return f"{self.calls} calls on a re-run from the caches, {same}"


@dataclass(frozen=True, kw_only=True)
class BenchResults:
    """`rejected` has the tasks that wrong answers would pass, by name, each with the reason: nothing was run on them."""

    conditions: Conditions
    summaries: tuple[ArmSummary, ...]
    results: tuple[TaskResult, ...]
    rejected: dict[str, str] = field(default_factory=dict)
    rerun: Rerun

    def facts(self) -> dict[str, Any]:
        """Plain data, for --json and for the file."""
        return {
            "conditions": to_json(self.conditions),
            "notes": list(self.conditions.notes),
            "arms": to_json(self.summaries),
            "tasks": to_json(self.results),
            "rejected": dict(self.rejected),
            "rerun": to_json(self.rerun),
        }

    def of_arm(self, arm: str) -> Sequence[TaskResult]:
        return [result for result in self.results if result.arm == arm]


def write_results(results: BenchResults, folder: Path) -> Path:
    """Write results.json, wholly or not at all."""
    make_folder(folder)
    path = folder / RESULTS_FILE
    replace_file(path, (json.dumps(results.facts(), indent=1) + "\n").encode())
    return path
