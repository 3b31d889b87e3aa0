"""Tries kernels through the grader, and keeps every verdict by content: the same kernel is never judged twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

from neuron_port.drafting.keeping.record_cache import verdict_key
from neuron_port.drafting.workshop import Workshop
from neuron_port.grading.grader import Grader, verifier_version
from neuron_port.grading.verdict import Verdict
from neuron_port.task import KernelTask
from neuron_port.types import digest


class Trier:
    """One task's grader, with memory. Threads may share it."""

    def __init__(self, task: KernelTask, workshop: Workshop, target: str, hidden_seed: int) -> None:
        self.task = task
        self.target = target
        self.hidden_seed = hidden_seed
        self._workshop = workshop

    def freeze(self) -> None:
        """Compute the oracle now, before any reply is paid for.

        Raises:
            TaskError: the task's reference or inputs fail; DegenerateTaskError: wrong answers would pass its cases.
        """
        assert self._grader is not None

    @cached_property
    def _grader(self) -> Grader:
        """The workshop's latest, if it is for the same task and seed: a benchmark's runs share one oracle."""
        key = digest(self.task.key, self.target, self.hidden_seed)
        graders = self._workshop.graders
        grader = graders.get(key)
        if grader is None:
            grader = Grader(
                self.task, target=self.target, hidden_seed=self.hidden_seed, executor=self._workshop.executor
            )
            graders.clear()
            graders[key] = grader
        return grader

    @property
    def oracle_key(self) -> str:
        return self._grader.oracle_key

    def grade(self, source: str) -> Verdict:
        """Public and hidden cases."""
        return self._kept(source, "grade", lambda: self._grader.grade(source))

    def admit(self, source: str) -> Verdict:
        """Everything again on fresh hidden cases, and repeated calls. The seed follows from the run's and the kernel."""
        seed = int(digest(self.hidden_seed, source), 16) >> 16
        return self._kept(source, f"admit {seed}", lambda: self._grader.admit(source, seed=seed))

    def in_graph(self, source: str, admitted: Verdict, recheck: Callable[[str], str], where: str) -> Verdict:
        """The verdict after the kernel ran inside the model `where`: as it was, or refused with what went wrong there."""

        def run() -> Verdict:
            problem = recheck(source)
            if not problem:
                return admitted
            return replace(
                admitted,
                passed=False,
                stage="hidden",
                error_class="in graph",
                message=f"the kernel is right by itself and wrong inside the model: {problem}",
                hint="Look at how it depends on shapes, dtypes and the number of calls.",
            )

        return self._kept(source, f"in graph of {where}", run)

    def _kept(self, source: str, check: str, judge: Callable[[], Verdict]) -> Verdict:
        key = verdict_key(
            source,
            oracle_key=self._grader.oracle_key,
            check=check,
            tier="simulator",
            verifier_version=verifier_version(),
        )
        verdict = self._workshop.verdicts.get(key)
        if verdict is None:
            verdict = judge()
            self._workshop.verdicts.keep(key, verdict)
        return verdict
