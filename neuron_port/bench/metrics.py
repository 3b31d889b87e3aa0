"""Figures of a benchmark of drafting: how often, how dear, and where it fails."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


def pass_at(k: int, samples: int, passed: int) -> float:
    """The unbiased estimate of the chance that one of `k` draws passes, from `passed` of `samples` independent draws.

    1 - C(samples - passed, k) / C(samples, k)   (Chen et al. 2021, arXiv:2107.03374, equation 1).
    Raises ValueError when k exceeds the samples: an estimate would be a guess.
    """
    if not 0 < k <= samples or not 0 <= passed <= samples:
        raise ValueError(
            f"pass@{k} needs at least {k} samples and no more passes than samples: {passed} of {samples}"
        )
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """What one arm did on one task, in one of its repeats.

    Costs are those of all replies that the run used, whoever paid for them: what it takes from empty caches.
    """

    task: str
    arm: str
    samples: int  # independent first drafts that were graded
    samples_passed: int  # of them, right on public and hidden cases
    public_only: int  # of them, right on the public cases and refused on hidden ones
    admitted: bool  # whether the arm as a whole ended with an admitted kernel
    candidates: int
    repair_rounds: int  # of the admitted kernel's line; of the longest line when there is none
    calls: int
    tokens: int
    cost_usd: float | None
    seconds: float  # of the model's replies, summed
    error_classes: Counter[str]  # of refused candidates
    stop_reason: str
    repeat: int = 0
    run: str = ""  # `neuron-port explain RUN` shows its candidates


@dataclass(frozen=True, kw_only=True)
class ArmSummary:
    """One arm over all tasks and repeats. Medians are over admitted kernels; None where there is none, or no price."""

    arm: str
    tasks: int
    runs: int
    admitted: int  # of runs
    pass_at: dict[int, float]
    hidden_failures: (
        float | None
    )  # of first drafts that pass the public cases, the part refused on hidden ones
    median_repair_rounds: float | None
    median_tokens: float | None
    ninetieth_tokens: float | None
    tokens_per_kernel: float | None  # of all runs, failed ones too, for each admitted kernel
    median_cost_usd: float | None
    ninetieth_cost_usd: float | None
    cost_per_kernel_usd: float | None
    error_classes: Counter[str]


def summarize(arm: str, results: Sequence[TaskResult], ks: Iterable[int] = (1, 4, 10)) -> ArmSummary:
    """The figures of one arm. pass@k is left out for a k that some task has too few samples for."""
    admitted = [result for result in results if result.admitted]
    public = sum(result.public_only + result.samples_passed for result in results)
    costs = [result.cost_usd for result in admitted if result.cost_usd is not None]
    all_costs = [result.cost_usd for result in results if result.cost_usd is not None]
    tokens = [float(result.tokens) for result in admitted]
    return ArmSummary(
        arm=arm,
        tasks=len({result.task for result in results}),
        runs=len(results),
        admitted=len(admitted),
        pass_at={
            k: statistics.fmean(pass_at(k, result.samples, result.samples_passed) for result in results)
            for k in ks
            if results and all(result.samples >= k for result in results)
        },
        hidden_failures=sum(result.public_only for result in results) / public if public else None,
        median_repair_rounds=_median([float(result.repair_rounds) for result in admitted]),
        median_tokens=_median(tokens),
        ninetieth_tokens=_ninetieth(tokens),
        tokens_per_kernel=sum(result.tokens for result in results) / len(admitted) if admitted else None,
        median_cost_usd=_median(costs),
        ninetieth_cost_usd=_ninetieth(costs),
        cost_per_kernel_usd=(
            sum(all_costs) / len(admitted) if admitted and len(all_costs) == len(results) else None
        ),
        error_classes=sum((result.error_classes for result in results), Counter()),
    )


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _ninetieth(values: Sequence[float]) -> float | None:
    """The smallest value that nine tenths do not exceed."""
    return sorted(values)[math.ceil(0.9 * len(values)) - 1] if values else None
