"""Of two published variants of one operator, which is faster? The latency model beside a plain roofline.

    python benchmarks/latency_order.py [--without-large-matmuls]

Pairs are variants of one family in latency_calibration.py whose published latencies differ by over 5 %. A prediction
is right if it puts them in the published order; a tie is wrong.
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict

from latency_calibration import Point, points

LEAST_DIFFERENCE = 0.05


def main() -> None:
    """Print the pairs by family, those that the model gets wrong, and the totals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--without-large-matmuls", action="store_true", help="skip what takes many seconds")
    skip = parser.parse_args().without_large_matmuls
    families: dict[str, list[tuple[Point, float, float]]] = defaultdict(list)
    for point in points():
        if not (skip and point.large):
            result = point.predict()
            families[point.family].append((point, result.latency_ns, result.roofline.bound_ns))
    right = by_roofline = total = 0
    for family, entries in families.items():
        hits = roofline_hits = pairs = 0
        for one, other in itertools.combinations(entries, 2):
            faster, slower = sorted((one, other), key=lambda entry: entry[0].published_us)
            if slower[0].published_us <= faster[0].published_us * (1 + LEAST_DIFFERENCE):
                continue
            pairs += 1
            roofline_hits += faster[2] < slower[2]
            hits += faster[1] < slower[1]
            if faster[1] >= slower[1]:
                print(f"  wrong: {family}: {faster[0].name} is faster than {slower[0].name}")
        if pairs:
            print(
                f"{family:24} model {hits:3} of {pairs:3}   roofline {roofline_hits:3} of {pairs:3}",
                flush=True,
            )
        right, by_roofline, total = right + hits, by_roofline + roofline_hits, total + pairs
    print(f"{'all':24} model {right / total:.0%}   roofline {by_roofline / total:.0%}   of {total} pairs")


if __name__ == "__main__":
    main()
