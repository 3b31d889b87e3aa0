"""`grade`: what a completion is worth as a kernel for a task, as a bounded reward that grows stage by stage.

    a guard refused a cheat                -1.0
    no code, or code that does not parse    0
    the cheap gates and the lint pass       0.05
    every public case runs                  0.15
    ... and a part of them is right         up to 0.30
    hidden cases are right too              0.60
    ... and it is faster, on a device       up to 1.00

Correctness on hidden cases is worth as much as everything before it, and speed counts for nothing without it. The
verdict comes from the grader of `grading/`: from output arrays of a confined process, never from anything that the
candidate prints. Seconds are no part of a grade, so equal arguments give equal grades.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from neuron_port.drafting.replies.extraction import ExtractionError, extract_code
from neuron_port.environments.intent import is_cheat
from neuron_port.errors import UsageError
from neuron_port.grading.gates import check_source_cheaply
from neuron_port.grading.grader import Grader
from neuron_port.grading.verdict import STAGES, Stage, Verdict
from neuron_port.llm.messages import Finish
from neuron_port.sandbox.job import SandboxLimits
from neuron_port.task import KernelTask

GradeTier = Literal["lint", "simulator", "device"]
TIERS: tuple[GradeTier, ...] = ("lint", "simulator", "device")
MeasureSpeedup = Callable[[KernelTask, str], float]  # task, kernel source -> times as fast as the baseline
# A tenth of what drafting allows: a policy in training writes many endless loops.
LIMITS = SandboxLimits(cpu_seconds=10.0, wall_seconds=60.0)
FROZEN_ORACLES = 64  # graders that are kept: each holds the inputs and the exact results of one task


@dataclass(frozen=True, kw_only=True)
class RewardSettings:
    """The reward at each stage. Stages may not pay less than the stage before, nor anything outside [-1, 1]."""

    hack: float = -1.0
    nothing: float = 0.0
    linted: float = 0.05
    ran: float = 0.15
    public: float = 0.30  # all public cases; in proportion between `ran` and this
    correct: float = 0.60  # all public and hidden cases
    fastest: float = 1.0  # correct, and `full_speedup` times as fast as the baseline, by the logarithm
    full_speedup: float = 4.0

    def __post_init__(self) -> None:
        stages = ("hack", "nothing", "linted", "ran", "public", "correct", "fastest")
        earlier, least = "", -1.0
        for name in stages:
            value = getattr(self, name)
            if not -1.0 <= value <= 1.0:  # refuses NaN as well
                raise UsageError(f"RewardSettings: {name} is {value}, must be from -1 to 1")
            if value < least:
                raise UsageError(
                    f"RewardSettings: {name} is {value}, less than {earlier}, which is {least}",
                    hint="A later stage may not pay less, or a policy learns to stop before it.",
                )
            earlier, least = name, value
        if not 1.0 < self.full_speedup < math.inf:
            raise UsageError(f"RewardSettings: full_speedup is {self.full_speedup}, must be above 1")


DEFAULT_REWARD = RewardSettings()


@dataclass(frozen=True, kw_only=True)
class Grade:
    """What one completion is worth, and why.

    Attributes:
        stage: the last stage that the candidate passed, or "hack".
        reward: the sum of `reward_terms`.
        reward_terms: what each stage added.
        metrics: figures for logs, all floats.
        feedback: what a next attempt can start from; nothing of the hidden inputs.
    """

    stage: Stage | Literal["hack"]
    reward: float
    reward_terms: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    feedback: str = ""


def grade(
    task: KernelTask,
    completion: str,
    *,
    tiers: Sequence[GradeTier] = ("lint", "simulator"),
    seed: int,
    target: str = "trn2",
    settings: RewardSettings = DEFAULT_REWARD,
    limits: SandboxLimits = LIMITS,
    finish: Finish = "stop",
    measure_speedup: MeasureSpeedup | None = None,
) -> Grade:
    """Grade one completion: prose with a code block, or a bare module. Bad code never raises.

    Args:
        tiers: ("lint",) runs nothing; with "simulator" the kernel runs; "device" needs `measure_speedup`.
        seed: of the hidden cases.
        limits: of each sandboxed process; a kernel that runs against one has not run.
        finish: "length" when the token limit cut the completion.

    Raises:
        UsageError: tiers that do not go together.
        DegenerateTaskError: the task itself would accept zeros or an echo.
    """
    check_tiers(tiers, measure_speedup)
    try:
        source = extract_code(completion, task.name, finish)
    except ExtractionError as error:
        return _grade(_no_code(error.message), "", None, settings)
    if "simulator" not in tiers:
        refused = check_source_cheaply(source, task.name)
        return _grade(refused or Verdict(passed=True, stage="linted"), source, None, settings)
    verdict = _grader(task, target, seed, limits).grade(source, through="hidden")
    speedup = None
    if verdict.passed and "device" in tiers and measure_speedup is not None:
        speedup = measure_speedup(task, source)
    return _grade(verdict, source, speedup, settings)


def check_tiers(tiers: Sequence[str], measure_speedup: MeasureSpeedup | None = None) -> None:
    """Raise UsageError unless the tiers are known, without gaps, and what they need is there."""
    if not tiers or tuple(tiers) != TIERS[: len(tiers)]:
        wanted = " or ".join(str(TIERS[: count + 1]) for count in range(len(TIERS)))
        raise UsageError(f"Tiers cannot be used as given: {tuple(tiers)!r}", hint=f"Use {wanted}.")
    if "device" in tiers and measure_speedup is None:
        raise UsageError(
            "The device tier needs a function that measures the speedup: `measure_speedup` is None",
            hint="Pass one that runs the kernel on a NeuronCore, or leave the tier out.",
        )


def _no_code(message: str) -> Verdict:
    return Verdict(passed=False, stage="nothing", error_class="no code", message=message)


def _grade(verdict: Verdict, source: str, speedup: float | None, settings: RewardSettings) -> Grade:
    hack = is_cheat(verdict, source)
    terms = {"hack": settings.hack} if hack else _terms(verdict, speedup, settings)
    return Grade(
        stage="hack" if hack else verdict.stage,
        # The terms are differences of the settings; their sum is rounded to forget what that lost.
        reward=round(sum(terms.values()), 9),
        reward_terms={name: round(value, 9) for name, value in terms.items()},
        metrics=_metrics(verdict, speedup) | {"hack": float(hack)},
        feedback=_feedback(verdict),
    )


def _terms(verdict: Verdict, speedup: float | None, settings: RewardSettings) -> dict[str, float]:
    """What each stage that was reached adds to the one before."""
    reached = STAGES.index(verdict.stage)
    terms = {"nothing": settings.nothing}
    if reached >= STAGES.index("linted"):
        terms["linted"] = settings.linted - settings.nothing
    if reached >= STAGES.index("ran"):
        fraction = 1.0 if reached >= STAGES.index("public") else verdict.public_fraction
        terms["ran"] = settings.ran - settings.linted
        terms["public"] = fraction * (settings.public - settings.ran)
    if reached >= STAGES.index("hidden"):
        terms["correct"] = settings.correct - settings.public
        if speedup is not None:
            part = math.log(max(speedup, 1.0)) / math.log(settings.full_speedup)
            terms["speed"] = min(part, 1.0) * (settings.fastest - settings.correct)
    return terms


def _metrics(verdict: Verdict, speedup: float | None) -> dict[str, float]:
    reached = STAGES.index(verdict.stage)
    metrics = {
        stage: float(reached >= STAGES.index(stage))
        for stage in ("parsed", "linted", "ran", "public", "hidden")
    }
    metrics["public_fraction"] = verdict.public_fraction
    if verdict.latency_ns is not None:
        metrics["predicted_latency_us"] = verdict.latency_ns / 1e3
    if speedup is not None:
        metrics["speedup"] = speedup
    return metrics


def _feedback(verdict: Verdict) -> str:
    """The verdict in a few lines, for a next attempt."""
    if verdict.passed:
        return "Every check passed."
    where = f" (line {verdict.line})" if verdict.line is not None else ""
    lines = [f"{verdict.error_class}: {verdict.message}{where}"]
    lines += [f"hint: {verdict.hint}"] if verdict.hint else []
    return "\n".join([*lines, *verdict.evidence])


# ---- graders, kept because freezing an oracle takes longer than a verdict ----------------------------------

_graders: OrderedDict[tuple[str, str, int, SandboxLimits], Grader] = OrderedDict()
_graders_lock = threading.Lock()


def _grader(task: KernelTask, target: str, seed: int, limits: SandboxLimits) -> Grader:
    """The grader of a task, kept. Equal keys mean equal tasks, so this changes no grade."""
    key = (task.key, target, seed, limits)
    with _graders_lock:
        if key not in _graders:
            _graders[key] = Grader(task, target=target, hidden_seed=seed, limits=limits)
            while len(_graders) > FROZEN_ORACLES:
                _graders.popitem(last=False)
        _graders.move_to_end(key)
        return _graders[key]
