"""`Grader`: from a source nobody trusts to a verdict. It stops where it first fails, and never raises on bad code.

gates (nothing runs)  ▶  public cases in the first dtype: logic  ▶  public cases in the others: rounding
▶  hidden cases  ▶  admission: all of that once more on a new seed, then many calls in one process and one in another
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any

from neuron_port.grading import guards
from neuron_port.grading.degenerate import refuse_degenerate
from neuron_port.grading.gates import check_source_cheaply
from neuron_port.grading.hidden import HiddenTruths, hidden_truths
from neuron_port.grading.judge import NOT_REACHED, Judgement, evidence_of, judge
from neuron_port.grading.oracle import DRAWN_SLACK, CaseTruth, case_truth, freeze, one_torch_thread
from neuron_port.grading.tiers import OfficialTier
from neuron_port.grading.verdict import STAGES, Stage, Verdict
from neuron_port.sandbox.executor import Executor
from neuron_port.sandbox.job import CallOutcome, SandboxJob, SandboxLimits, SandboxOutcome
from neuron_port.sandbox.run import run_job
from neuron_port.simulator.target import find_target
from neuron_port.task import KernelTask
from neuron_port.types import Tier, digest

REPEATS = 11  # calls with fresh values in one process, before a kernel is admitted
PACKAGES = ("grading", "parity", "sandbox", "simulator")  # what a verdict depends on


@cache
def verifier_version() -> str:
    """Digest of the code that decides verdicts: a verdict by other code is not reused."""
    state = sha256()
    for package in PACKAGES:
        for path in sorted((Path(__file__).parents[1] / package).rglob("*.py")):
            state.update(path.read_bytes())
    return state.hexdigest()[:16]


@dataclass
class _Progress:
    """What one grading has found so far."""

    started_seconds: float
    stage: Stage = "linted"
    tier: Tier = "simulator"
    judged: list[Judgement] = field(default_factory=list)
    sandbox_seconds: float = 0.0
    isolation: tuple[str, ...] = ()
    hidden_seed: int | None = None
    hidden_left_out: tuple[str, ...] = ()


class _Failed(Exception):  # noqa: N818 - it never leaves this module
    """A stage failed; the verdict says how."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.message)
        self.verdict = verdict


class Grader:
    """Grades candidates for one task. The truth is computed once, here; several threads may grade at once.

    Args:
        hidden_seed: draws the hidden cases of `grade`; it is in every verdict, so that each can be had again.
        executor: where sandboxed jobs run; None: one after the other in this thread.

    Raises:
        DegenerateTaskError: the task's cases would pass a wrong answer.
        TaskError: the task's reference or inputs fail.
    """

    def __init__(
        self,
        task: KernelTask,
        *,
        target: str = "trn2",
        hidden_seed: int,
        executor: Executor | None = None,
        limits: SandboxLimits = SandboxLimits(),  # noqa: B008 - frozen
        official: OfficialTier | None = None,
    ) -> None:
        self.task = task
        find_target(target)  # an unknown name is refused here, not in the first sandbox
        self.target = target
        self.hidden_seed = hidden_seed
        self.limits = limits
        self.executor = executor
        self.official = official
        self.oracle = freeze(task, task.dtypes, task.cases)
        refuse_degenerate(self.oracle)
        self.moves_only = guards.moves_only(self.oracle)
        self.oracle_key = digest(verifier_version(), self.oracle.key, self.target, hidden_seed, limits)
        self._hidden: dict[int, HiddenTruths] = {}
        self._drawing = Lock()

    def grade(self, source: str, *, through: Stage = "hidden") -> Verdict:
        """The verdict on a source, on the stages up to `through`."""
        return self.grade_with_seed(source, through=through, seed=self.hidden_seed)

    def admit(self, source: str, *, seed: int) -> Verdict:
        """The verdict of a clean run of everything, with hidden cases of another seed and with repeated calls."""
        return self.grade_with_seed(source, through="admitted", seed=seed)

    def grade_with_seed(self, source: str, *, through: Stage, seed: int) -> Verdict:
        """`grade` with hidden cases of another seed: how a verdict is had again."""
        refused = check_source_cheaply(source, self.task.name, moves_only=self.moves_only)
        progress = _Progress(started_seconds=time.thread_time())
        if refused is not None:
            return replace(refused, public_total=len(self.oracle.truths))
        try:
            for stage, check in (
                ("ran", self._check_running),
                ("public", self._check_public),
                ("hidden", self._check_hidden),
                ("admitted", self._check_repeated),
            ):
                if STAGES.index(through) < STAGES.index(stage):
                    break
                if stage in ("hidden", "admitted"):
                    progress.hidden_seed = seed
                check(source, progress)
                progress.stage = stage  # type: ignore[assignment]
        except _Failed as failed:
            return failed.verdict
        return self._verdict(progress, passed=True)

    # Stages.

    def _check_running(self, source: str, progress: _Progress) -> None:
        """Every public case in the first dtype runs to its end; whether it is right is the next stage's business.

        The verdict says "ran" as soon as one does: a kernel without its tail is further than one that never runs.
        """
        truths = self.oracle.of_dtype(self.task.dtypes[0])
        again = next(place for place, truth in enumerate(truths) if truth.case.kind == "ordinary")
        outcome = self._run(source, [*truths, truths[again]], progress)
        progress.judged.extend(judge(self.task, truths, outcome))
        if any(one.ran for one in progress.judged):
            progress.stage = "ran"
        self._refuse_failing([one for one in progress.judged if not one.ran], progress)
        repeated = CallOutcome(failure=outcome.failure or NOT_REACHED)
        if len(outcome.calls) > len(truths):
            repeated = outcome.calls[-1]
        refusal = guards.refuse_difference(outcome.calls[again], repeated, "in the same process")
        self._refuse(refusal, progress, late=True)

    def _check_public(self, source: str, progress: _Progress) -> None:
        """Right values in the first dtype, honestly computed, then in the others."""
        self._refuse_failing(progress.judged, progress)
        self._refuse(guards.refuse_idle(progress.judged) if not self.moves_only else None, progress)
        self._refuse(guards.refuse_low_precision(progress.judged), progress)
        self._refuse(guards.refuse_literals(source, [one.truth for one in progress.judged]), progress)
        for dtype in self.task.dtypes[1:]:
            truths = self.oracle.of_dtype(dtype)
            progress.judged.extend(judge(self.task, truths, self._run(source, truths, progress)))
            self._refuse_failing(progress.judged, progress)
        if self.official is not None:
            self._check_official(self.official, source, progress)

    def _check_official(self, official: OfficialTier, source: str, progress: _Progress) -> None:
        """The public cases on AWS's own simulator."""
        outcome = official.run(self._job(source, self.oracle.truths))
        judged = judge(self.task, self.oracle.truths, outcome)
        progress.tier = "official"
        self._refuse_failing(judged, progress)

    def _check_hidden(self, source: str, progress: _Progress) -> None:
        assert progress.hidden_seed is not None
        drawn = self._hidden_truths(progress.hidden_seed)
        truths, progress.hidden_left_out = drawn.truths, drawn.left_out
        judged = judge(self.task, truths, self._run(source, truths, progress), "hidden")
        progress.judged.extend(judged)
        failed = [one for one in judged if not one.passed]
        if failed:
            raise _Failed(self._hidden_failure(failed, progress))
        for refusal in (
            guards.refuse_idle(judged) if not self.moves_only else None,
            guards.refuse_low_precision(judged),
        ):
            if refusal is not None:
                hushed = replace(refusal, message=f"on a hidden case: guard `{refusal.guard}`")
                self._refuse(hushed, progress)

    def _check_repeated(self, source: str, progress: _Progress) -> None:
        """Many calls with fresh values in one process are all right, and another process gives the same bits."""
        assert progress.hidden_seed is not None
        ordinary = [case for case in self.task.cases if case.kind == "ordinary"]
        dtype = self.task.dtypes[-1]
        case = min(
            (truth for truth in self.oracle.of_dtype(dtype) if truth.case in ordinary),
            key=lambda truth: truth.elements,
        ).case
        with one_torch_thread():
            seeds = [f"{progress.hidden_seed}/{repeat}" for repeat in range(REPEATS)]
            truths = [
                case_truth(self.task, case, dtype, int(digest(seed), 16), DRAWN_SLACK) for seed in seeds
            ]
        many = self._run(source, truths, progress)
        judged = judge(self.task, truths, many, "repeat")
        progress.judged.extend(judged)
        failed = [one for one in judged if not one.passed]
        if failed:
            first = failed[0]
            place = judged.index(first) + 1
            self._refuse(
                guards.Refusal(
                    guard="stateful",
                    message=f"call {place} of {REPEATS} in one process fails ({first.error_class}): something is kept "
                    "from one call to the next, or depends on the values",
                    hint="Keep nothing outside the entry point; compute everything anew in each call.",
                ),
                progress,
            )
        alone = self._run(source, truths[-1:], progress)
        if not alone.calls:
            self._refuse_failing(judge(self.task, truths[-1:], alone, "repeat"), progress)
        self._refuse(guards.refuse_difference(many.calls[-1], alone.calls[0], "in another process"), progress)

    # Sandboxed runs.

    def _run(self, source: str, truths: Sequence[CaseTruth], progress: _Progress) -> SandboxOutcome:
        """One fresh process for all of these cases."""
        job = self._job(source, truths)
        outcome = run_job(job) if self.executor is None else self.executor.submit(job).result()
        progress.sandbox_seconds += outcome.cpu_seconds
        progress.isolation = outcome.isolation or progress.isolation
        return outcome

    def _job(self, source: str, truths: Sequence[CaseTruth]) -> SandboxJob:
        shown = self._profiled()
        calls = tuple(replace(truth.call, predict=truth is shown) for truth in truths)
        return SandboxJob(
            source=source, entry_point=self.task.name, calls=calls, target=self.target, limits=self.limits
        )

    def _profiled(self) -> CaseTruth:
        """The case whose latency is predicted: the largest ordinary one, in the dtype that ships."""
        truths = self.oracle.of_dtype(self.task.dtypes[-1])
        return max(
            (truth for truth in truths if truth.case.kind == "ordinary"), key=lambda truth: truth.elements
        )

    def _hidden_truths(self, seed: int) -> HiddenTruths:
        with self._drawing:
            if seed not in self._hidden:
                while len(self._hidden) > 1:  # the own seed's stay, those of one admission too
                    self._hidden.pop(next(other for other in self._hidden if other != self.hidden_seed))
                self._hidden[seed] = hidden_truths(self.task, seed)
            return self._hidden[seed]

    # Verdicts.

    def _refuse_failing(self, judged: Sequence[Judgement], progress: _Progress) -> None:
        """Ends the grading when a case failed: the verdict has the first failure and evidence of all."""
        failed = [one for one in judged if not one.passed]
        if not failed:
            return
        first = failed[0]
        where = f"case `{first.truth.case.name}` in {first.truth.dtype}: " if first.ran else ""
        raise _Failed(
            self._verdict(
                progress,
                error_class=first.error_class,
                message=where + first.message,
                hint=first.hint,
                line=first.line,
                guard=first.guard,
                evidence=evidence_of(self.task, progress.judged if first in progress.judged else judged),
            )
        )

    def _hidden_failure(self, failed: list[Judgement], progress: _Progress) -> Verdict:
        """Names the kinds of hidden cases that fail: no size, no value, and no message that may hold one."""
        first = failed[0]
        kinds = list(dict.fromkeys(f"{one.truth.case.name} ({one.error_class})" for one in failed))
        dtypes = sorted({one.truth.dtype for one in failed})
        only = f", all of them in {dtypes[0]}" if len(dtypes) == 1 and len(self.task.dtypes) > 1 else ""
        return self._verdict(
            progress,
            error_class=first.error_class,
            message=f"the public cases pass, {len(failed)} hidden ones fail{only}",
            hint="Handle every size in its range and every value: nothing may depend on the cases that were shown.",
            line=first.line,
            evidence=tuple(kinds),
            guard="hidden cases",
        )

    def _refuse(self, refusal: guards.Refusal | None, progress: _Progress, *, late: bool = False) -> None:
        """Ends the grading when a guard refuses; `late`: unless a plain failure has the first word."""
        if refusal is None or (late and any(not one.passed for one in progress.judged)):
            return
        raise _Failed(
            self._verdict(
                progress,
                error_class=refusal.guard,
                message=refusal.message,
                hint=refusal.hint,
                line=refusal.line,
                guard=refusal.guard,
            )
        )

    def _verdict(self, progress: _Progress, *, passed: bool = False, **found: Any) -> Verdict:
        profiled = self._profiled()
        facts = next((one.facts for one in progress.judged if one.truth is profiled and one.facts), None)
        described: dict[str, Any] = {}
        if facts is not None:
            described = {
                "instructions": facts.instructions,
                "by_opcode": dict(facts.by_opcode),
                "by_engine": dict(facts.by_engine),
                "matmul_macs": facts.matmul_macs,
                "hbm_read_bytes": facts.hbm_read_bytes,
                "hbm_write_bytes": facts.hbm_write_bytes,
                "matmul_dtypes": list(facts.matmul_dtypes),
                "warnings": list(facts.warnings),
                "profile": facts.profile,
                "case": profiled.case.name,
                "dtype": profiled.dtype,
            }
        return Verdict(
            passed=passed,
            stage=progress.stage,
            tier=progress.tier,
            cases=tuple(one.result(progress.tier) for one in progress.judged),
            public_total=len(self.oracle.truths),
            latency_ns=facts.latency_ns if facts else None,
            facts=described,
            hidden_seed=progress.hidden_seed,
            hidden_left_out=progress.hidden_left_out,
            cpu_seconds=progress.sandbox_seconds + time.thread_time() - progress.started_seconds,
            isolation=progress.isolation,
            **found,
        )
