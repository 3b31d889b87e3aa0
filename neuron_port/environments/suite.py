"""`KernelSuite`: kernel tasks by name, their prompts, and their grades, each of which is computed once.

Policies repeat themselves, in a group of samples most of all; a completion that was graded before costs nothing.
"""

from __future__ import annotations

import difflib
import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from neuron_port.bench.suite import load_suite
from neuron_port.drafting.prompts.dialect import dialect_slice, primitives_of
from neuron_port.drafting.prompts.prompting import render
from neuron_port.environments.grade import (
    DEFAULT_REWARD,
    Grade,
    GradeTier,
    RewardSettings,
    check_tiers,
    grade,
)
from neuron_port.errors import UsageError
from neuron_port.llm.messages import Finish
from neuron_port.simulator.target import find_target
from neuron_port.task import KernelTask

NKI_VERSION = "0.6"
ANSWER = "Reply with the whole module in one fenced `python` block."


@dataclass(kw_only=True)
class KernelSuite:
    """What every adapter works on. Without `tasks`, the development suite."""

    tasks: Mapping[str, KernelTask] = field(
        default_factory=lambda: {found.name: found.task for found in load_suite()}
    )
    seed: int = 0
    target: str = "trn2"
    tiers: Sequence[GradeTier] = ("lint", "simulator")
    settings: RewardSettings = DEFAULT_REWARD
    _grades: dict[tuple[str, str, str], Grade] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        check_tiers(self.tiers)
        find_target(self.target)

    def task(self, name: str) -> KernelTask:
        if name not in self.tasks:
            near = difflib.get_close_matches(name, self.tasks, n=1)
            hint = f"Did you mean `{near[0]}`?" if near else f"Known: {', '.join(self.tasks)}"
            raise UsageError(f"Unknown kernel task: `{name}`", hint=hint)
        return self.tasks[name]

    def grade(self, name: str, completion: str, *, finish: Finish = "stop") -> Grade:
        """The grade of a completion; the second time from memory."""
        task = self.task(name)
        key = (name, hashlib.sha256(completion.encode("utf-8", "surrogatepass")).hexdigest(), finish)
        with self._lock:
            known = self._grades.get(key)
        if known is None:
            known = grade(
                task,
                completion,
                tiers=self.tiers,
                seed=self.seed,
                target=self.target,
                settings=self.settings,
                finish=finish,
            )
            with self._lock:
                self._grades[key] = known
        return known

    @property
    def graded(self) -> int:
        """How many different completions were graded."""
        return len(self._grades)

    def system_prompt(self, name: str) -> str:
        """What a policy is told about NKI and about the checks: that part of the language that the task may need."""
        task = self.task(name)
        machine = find_target(self.target)
        return render(
            "system",
            nki_version=NKI_VERSION,
            target=self.target,
            generation=machine.generation,
            dialect=dialect_slice(primitives_of(task), machine, without=(name,)),
            exemplars=[],
        )

    def prompt(self, name: str) -> str:
        """The task itself: schema, shapes, reference, GPU source."""
        task = self.task(name)
        text = render(
            "task",
            entry_point=task.name,
            summary=task.summary,
            schema=task.schema,
            dtypes=" or ".join(task.dtypes),
            layout=[f"{argument}: {shape}" for argument, shape in task.layout.items()],
            cases=[
                ", ".join(f"{size} = {value}" for size, value in {**case.sizes, **case.attributes}.items())
                for case in task.cases
            ],
            sizes=[
                f"{size}: {values.least} to {values.most}"
                + (f", multiples of {values.multiple}" if values.multiple > 1 else "")
                for size, values in task.sizes.items()
            ],
            invariants=[invariant.name for invariant in task.invariants],
            reference_text=task.reference_text,
            sources=task.sources,
        )
        return f"{text}\n{ANSWER}\n"
