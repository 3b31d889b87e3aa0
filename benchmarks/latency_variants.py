"""Does the latency model order published variants of a kernel? Prints every variant, pair accuracy and errors.

    python benchmarks/latency_variants.py [FAMILY ...]

The kernels of published_variants/ were measured by others on Trn1; nothing in the model was fitted to their latencies.
Beside the model stands a roofline, which knows matrix work and HBM bytes but no schedule. Of two variants whose
published latencies differ by over 5 %, a prediction is right if it names the faster; a tie is wrong.
"""

from __future__ import annotations

import statistics
import sys
import time
from itertools import combinations
from typing import NamedTuple

from published_variants import Family, Variant, families

from neuron_port.simulator import run_kernel
from neuron_port.simulator.timing import Timeline, predict

NOTABLE = 1.05  # pairs that differ by less are not compared
TIE = 1.001  # the roofline sums in another order for each variant


class Point(NamedTuple):
    """One variant's published and predicted latency."""

    published_ms: float
    model_ms: float
    roofline_ms: float


def measure(variant: Variant, family: Family) -> Point:
    """Run and predict one variant, and print its row."""
    began = time.perf_counter()
    timeline = predict(run_kernel(variant.kernel, *variant.inputs(), target=family.target))
    # What repeats is the device's work; a call's fixed part comes once.
    model_ms = (timeline.device_ns * variant.repeats + timeline.overhead_ns) / 1e6
    in_order_ms = (timeline.in_order_ns * variant.repeats + timeline.overhead_ns) / 1e6
    roofline_ms = timeline.roofline.bound_ns * variant.repeats / 1e6
    print(
        f"  {variant.name:32s} {variant.published_ms:9.3f} {model_ms:9.3f} {model_ms / variant.published_ms - 1:+7.1%}"
        f" {in_order_ms:9.3f} {roofline_ms:9.3f}  {timeline.bound_lane:8s} {time.perf_counter() - began:5.1f} s",
        flush=True,
    )
    if variant.busy_ms is not None:
        print(f"      {_facts(variant, variant.busy_ms, timeline)}")
    return Point(variant.published_ms, model_ms, roofline_ms)


def _facts(variant: Variant, published_ms: dict[str, float], timeline: Timeline) -> str:
    """Busy time of engines, and bytes, beside what was published."""
    busy = timeline.busy_ns
    parts = [
        f"{lane} busy {busy.get(lane, 0.0) * variant.repeats / 1e6:.3f} ms (published {ms:.3f})"
        for lane, ms in published_ms.items()
    ]
    moved = (timeline.hbm_read_bytes + timeline.hbm_write_bytes) * variant.repeats
    if variant.hbm_bytes is not None:
        parts.append(f"HBM {moved / 1e6:.0f} MB (published {variant.hbm_bytes / 1e6:.0f})")
    return ", ".join(parts)


def ordered(points: list[Point]) -> tuple[int, int, int]:
    """(pairs that differ by over 5 %, right by the model, right by the roofline)."""
    pairs = model = roofline = 0
    for pair in combinations(points, 2):
        faster, slower = sorted(pair, key=lambda point: point.published_ms)
        if slower.published_ms < NOTABLE * faster.published_ms:
            continue
        pairs += 1
        model += slower.model_ms > TIE * faster.model_ms
        roofline += slower.roofline_ms > TIE * faster.roofline_ms
    return pairs, model, roofline


def main(names: list[str]) -> None:
    """Print all families, or those whose name contains one of `names`."""
    every: list[Point] = []
    totals = [0, 0, 0]
    for family in families():
        if names and not any(name in family.name for name in names):
            continue
        print(f"\n{family.name}, {family.target} ({family.source}); milliseconds")
        print(
            f"  {'variant':32s} {'published':>9s} {'model':>9s} {'error':>7s} {'in order':>9s} {'roofline':>9s}  bound"
        )
        points = [measure(variant, family) for variant in family.variants]
        every += points
        if family.same_problem:
            counts = ordered(points)
            totals = [total + count for total, count in zip(totals, counts, strict=True)]
            print(f"  pairs over 5 %: {counts[0]}, right by model {counts[1]}, by roofline {counts[2]}")
    pairs, model, roofline = totals
    if pairs:
        print(
            f"\npairs over 5 %: {pairs}; right by model {model / pairs:.0%}, by roofline {roofline / pairs:.0%}"
        )
    errors = [abs(point.model_ms / point.published_ms - 1) for point in every]
    roofline_errors = [abs(point.roofline_ms / point.published_ms - 1) for point in every]
    print(
        f"median absolute error over {len(every)} variants: model {statistics.median(errors):.1%},"
        f" roofline {statistics.median(roofline_errors):.1%}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
