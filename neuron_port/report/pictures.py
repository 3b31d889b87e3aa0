"""Positions of everything drawn in the HTML report, in percent of the picture's width: text never scales.

A share of a limit is drawn on one logarithmic axis for all kernels: right results left of 1, refused ones
right of it. The line at 1 always stands at the same place: sabotage lies many decades beyond, and would
squeeze the rest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from neuron_port.report.cases import Subject, margin, split_subject
from neuron_port.report.numbers import limit_share_text, metric_text
from neuron_port.types import CaseResult, ParityReport

_LEFT_PERCENT, _RIGHT_PERCENT = 4.0, 96.0  # beyond lie "exact" and "infinite", which have no logarithm
_EXACT_PERCENT, _INFINITE_PERCENT = 1.5, 98.5
_LIMIT_PERCENT = 62.0
_LANE_HEIGHT_PX = 22
_LAYER_METRIC = re.compile(r"layer_(\d+)")


@dataclass(frozen=True, kw_only=True)
class LogAxis:
    """A logarithmic axis over whole decades, `low` and `high` as powers of ten.

    With `fixed_percent`, 1 lies there, and the decades on its two sides have their own widths.
    """

    low: int
    high: int
    fixed_percent: float | None = None

    def position(self, value: float) -> float:
        """The value's place in percent; zero and infinity have places of their own at the edges."""
        if value <= 0:
            return _EXACT_PERCENT
        if not math.isfinite(value):
            return _INFINITE_PERCENT
        power = min(max(math.log10(value), self.low), self.high)
        left, right, low, high = _LEFT_PERCENT, _RIGHT_PERCENT, self.low, self.high
        if self.fixed_percent is not None and power < 0:
            right, high = self.fixed_percent, 0
        elif self.fixed_percent is not None:
            left, low = self.fixed_percent, 0
        return round(left + (power - low) / (high - low) * (right - left), 3)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Position and label of every decade."""
        return [(self.position(10.0**power), _power_text(power)) for power in range(self.low, self.high + 1)]


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One case: where it lies, how it is drawn, and what it says when pointed at."""

    x_percent: float
    y_px: float
    mark: str  # "captured", "made" (drawn inputs), or "sabotage"
    passed: bool
    title: str


@dataclass(frozen=True, kw_only=True)
class Lane:
    """The cases of one kernel in one dtype."""

    dtype: str
    dots: tuple[Dot, ...]
    unplaced: int  # cases without any limited metric: counted in words, because they have no place
    text: str  # what the picture shows, for those who do not see it
    height_px: int = _LANE_HEIGHT_PX


@dataclass(frozen=True, kw_only=True)
class Strip:
    """One kernel's cases, a lane for each dtype."""

    subject: Subject
    passed: bool
    lanes: tuple[Lane, ...]


@dataclass(frozen=True, kw_only=True)
class LayerPoint:
    """One layer's value in one case of a model report."""

    x_percent: float
    y_percent: float
    title: str


@dataclass(frozen=True, kw_only=True)
class LayerChart:
    """How far the ported model is from the reference after each layer; one point for each layer and case."""

    subject: str
    points: tuple[LayerPoint, ...]
    ticks: tuple[tuple[float, str], ...]  # of the value axis, in percent from the top
    first_layer: int
    last_layer: int
    largest: str


def limit_axis(reports: Sequence[ParityReport]) -> LogAxis:
    """The axis that holds every case's share of its limit: at least 1/100 to 10, at most 12 decades."""
    shares = [found.share for report in reports for case in report.cases if (found := margin(case))]
    powers = [math.log10(share) for share in shares if 0 < share < math.inf]
    low = min([-2, *(math.floor(power) for power in powers)])
    high = max([1, *(math.ceil(power) for power in powers)])
    return LogAxis(low=max(low, -6), high=min(high, 6), fixed_percent=_LIMIT_PERCENT)


def strips(reports: Sequence[ParityReport], axis: LogAxis) -> list[Strip]:
    """The parity picture: a strip for each kernel report, in the reports' order."""
    found = []
    for report in reports:
        lanes: dict[str, list[CaseResult]] = {}
        for case in report.cases:
            lanes.setdefault(case.dtype, []).append(case)
        strip = Strip(
            subject=split_subject(report.subject),
            passed=report.passed,
            lanes=tuple(_lane(dtype, cases, axis) for dtype, cases in lanes.items()),
        )
        found.append(strip)
    return found


def layer_metrics(metrics: Mapping[str, float]) -> dict[int, float]:
    """The metrics named `layer_<n>`, by n."""
    return {
        int(match[1]): value for name, value in metrics.items() if (match := _LAYER_METRIC.fullmatch(name))
    }


def layer_chart(report: ParityReport) -> LayerChart | None:
    """The chart of a model report's `layer_<n>` metrics, or None if it has none."""
    values = [
        (case.name, layer, value)
        for case in report.cases
        for layer, value in layer_metrics(case.metrics).items()
    ]
    finite = [value for _, _, value in values if 0 < value < math.inf]
    if not values:
        return None
    axis = LogAxis(
        low=math.floor(math.log10(min(finite, default=1e-8))),
        high=math.floor(math.log10(max(finite, default=1e-8))) + 1,
    )
    first, last = min(layer for _, layer, _ in values), max(layer for _, layer, _ in values)
    step = 96.0 / max(last - first, 1)
    points = [
        LayerPoint(
            x_percent=round(2.0 + (layer - first) * step, 3),
            y_percent=round(100 - axis.position(math.inf if math.isnan(value) else value), 3),
            title=f"layer {layer}, {name}: {metric_text(value)}",
        )
        for name, layer, value in values
    ]
    name, layer, value = max(values, key=lambda item: math.inf if math.isnan(item[2]) else item[2])
    return LayerChart(
        subject=report.subject,
        points=tuple(points),
        ticks=tuple((round(100 - position, 3), label) for position, label in axis.ticks),
        first_layer=first,
        last_layer=last,
        largest=f"{metric_text(value)} after layer {layer} in {name}",
    )


def _lane(dtype: str, cases: Sequence[CaseResult], axis: LogAxis) -> Lane:
    dots = []
    for index, case in enumerate(cases):
        found = margin(case)
        if found is None:
            continue
        dot = Dot(
            x_percent=axis.position(found.share),
            y_px=_LANE_HEIGHT_PX / 2 + (-3.5, 0, 3.5)[index % 3],  # neighbours with equal shares stay visible
            mark=case.kind if case.kind in ("sabotage", "captured") else "made",
            passed=case.passed,
            title=f"{case.name} ({case.kind}, {case.dtype}): {found.metric} {metric_text(found.value)}, "
            f"limit {metric_text(found.limit)}, share {limit_share_text(found.share)}"
            + ("" if case.passed else ", FAILED"),
        )
        dots.append(dot)
    right = [found.share for case in cases if case.kind != "sabotage" and (found := margin(case))]
    wrong = [found.share for case in cases if case.kind == "sabotage" and (found := margin(case))]
    parts = (
        [f"{dtype}: {len(right)} cases, at most {limit_share_text(max(right))} of the limit"]
        if right
        else [dtype]
    )
    if wrong:
        parts.append(f"{len(wrong)} sabotage cases, at least {limit_share_text(min(wrong))} of the limit")
    failed = sum(not case.passed for case in cases)
    parts.append(f"{failed} failed" if failed else "none failed")
    return Lane(dtype=dtype, dots=tuple(dots), unplaced=len(cases) - len(dots), text="; ".join(parts))


def _power_text(power: int) -> str:
    if -2 <= power <= 3:
        return f"{10.0**power:g}"
    return "10" + str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
