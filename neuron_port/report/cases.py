"""One case and many: how close to its limits, whether it is a verdict at all, and the worst of several.

A case uses some share of each of its limits; its margin is the largest share. Limits are upper bounds. A
sabotage case carries a wrong result on purpose: it passes by being refused, so its margin lies beyond 1.
A case without limits is a measurement: another one, over all prompts, is the verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from neuron_port.types import CaseResult, ParityReport

_SEPARATOR = " · "
_POOLED = ("all prompts", "all samples")


@dataclass(frozen=True, kw_only=True)
class Margin:
    """The metric that comes closest to its limit, or goes furthest beyond: share = value / limit."""

    metric: str
    value: float
    limit: float
    share: float


@dataclass(frozen=True, kw_only=True)
class Worst:
    """The ordinary case with the largest margin among several reports, with its report's subject."""

    subject: str
    case: CaseResult
    margin: Margin


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A kernel report's subject, "<recipe> · <layer class> · <signature>", in parts; others are one part."""

    recipe: str
    layer_class: str = ""
    signature: str = ""


@dataclass(frozen=True, kw_only=True)
class SequenceName:
    """A sequence case's name, "<prompt or sample> · <output>[ · <phase>]", in parts; other names are an output alone."""

    prompt: str
    output: str
    phase: str


def margins(case: CaseResult) -> list[Margin]:
    """Every metric that has a limit, with its share of it."""
    return [
        Margin(metric=name, value=case.metrics[name], limit=limit, share=_share(case.metrics[name], limit))
        for name, limit in case.limits.items()
        if name in case.metrics
    ]


def margin(case: CaseResult) -> Margin | None:
    """The case's metric with the largest share of its limit, or None if no metric has a limit."""
    return max(margins(case), key=lambda item: item.share, default=None)


def worst_case(reports: Sequence[ParityReport]) -> Worst | None:
    """The case closest to its limit; sabotage is left out, and failed cases come first."""
    found = [
        Worst(subject=report.subject, case=case, margin=closest)
        for report in reports
        for case in report.cases
        if case.kind != "sabotage" and (closest := margin(case)) is not None
    ]
    return max(found, key=lambda item: (not item.case.passed, item.margin.share), default=None)


def is_measurement(case: CaseResult) -> bool:
    """Whether nothing was decided by this case: it has no limit. A case that failed did decide something."""
    return not case.limits and case.passed and case.kind != "sabotage"


def is_pooled(case: CaseResult) -> bool:
    """Whether this is the verdict over all prompts (or samples) together."""
    return case.name.split(_SEPARATOR)[0] in _POOLED


def unit_of(cases: Iterable[CaseResult]) -> str:
    """What sequence cases count: a "prompt" goes on, a "sample" is answered in one pass."""
    return "sample" if any(case.name.startswith(("sample ", "all samples")) for case in cases) else "prompt"


def by_dtype(cases: Iterable[CaseResult]) -> dict[str, list[CaseResult]]:
    """The cases of each dtype, in order of first appearance."""
    groups: dict[str, list[CaseResult]] = {}
    for case in cases:
        groups.setdefault(case.dtype, []).append(case)
    return groups


def split_subject(subject: str) -> Subject:
    """The parts of a kernel report's subject."""
    recipe, *rest = subject.split(_SEPARATOR)
    if len(rest) < 2:
        return Subject(recipe=subject)
    return Subject(recipe=recipe, layer_class=_SEPARATOR.join(rest[:-1]), signature=rest[-1])


def split_name(name: str) -> SequenceName:
    """The parts of a sequence case's name."""
    parts = name.split(_SEPARATOR)
    if len(parts) == 1:
        return SequenceName(prompt="", output=name, phase="")
    return SequenceName(prompt=parts[0], output=parts[1], phase=_SEPARATOR.join(parts[2:]))


def _share(value: float, limit: float) -> float:
    if math.isnan(value) or math.isnan(limit):
        return math.inf
    if limit <= 0:
        return 0.0 if value <= limit else math.inf
    return max(value, 0.0) / limit
