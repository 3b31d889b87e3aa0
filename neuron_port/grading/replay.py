"""Has a verdict again: the same source, task, target and hidden seed give the same verdict."""

from __future__ import annotations

from dataclasses import replace

from neuron_port.grading.grader import Grader
from neuron_port.grading.verdict import Stage, Verdict


def replay_verdict(grader: Grader, source: str, verdict: Verdict, *, through: Stage = "hidden") -> Verdict:
    """Grade `source` again with the hidden seed of `verdict`.

    Args:
        through: the stage that the verdict was asked for; "admitted" for one of `Grader.admit`.
    """
    seed = grader.hidden_seed if verdict.hidden_seed is None else verdict.hidden_seed
    if through == "admitted":
        return grader.admit(source, seed=seed)
    return grader.grade_with_seed(source, through=through, seed=seed)


def same_verdict(one: Verdict, other: Verdict) -> bool:
    """Whether two verdicts say the same; the time that they took is no part of it."""
    return replace(one, cpu_seconds=0.0) == replace(other, cpu_seconds=0.0)
