"""Coverage of the zoo by recipes: `python benchmarks/coverage.py [NAME|FAMILY ..] [--convert] [--jobs N]`.

Every architecture is walked and matched, each in a process of its own: one that crashes is a row, not the end. Printed:
how many layers of each architecture every recipe serves, what kernels take of its layers, FLOPs and bytes, what is left
to the compiler and why, and the totals. With --convert each architecture also goes through `neuron-port convert` with
random weights. Rows are kept as JSON while they come in: an interrupted run goes on.

docs/coverage.md says how to read it.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import transformers
from coverage_support.measure import Settings, measure
from coverage_support.record import Row
from coverage_support.run import Run
from coverage_support.tables import coverage_table, left_table, matrix, totals
from rich.console import Console
from zoo import ZOO, choose

from neuron_port.pipeline.options import DTYPES, GENERATION_OF_TARGET
from neuron_port.store import Store
from neuron_port.types import to_json

WIDTH = 150  # of the tables, wherever they go


def print_all(rows: Sequence[Row]) -> None:
    """The matrix, the coverage of each architecture, what is left, what failed, and the totals."""
    console = Console(width=WIDTH, highlight=False, markup=False)
    for table in matrix(rows):
        console.print(table)
    console.print(coverage_table(rows))
    if any(row.left for row in rows):
        console.print("\nLeft to the compiler, most frequent first:\n")
        console.print(left_table(rows))
    for row in rows:
        if row.failure is not None:
            console.print(f"{row.name} was not measured: {row.failure}")
        if row.unused_parameters:
            console.print(
                f"{row.name} has parameters that no layer reads: {', '.join(row.unused_parameters)}"
            )
        if row.converted is not None and row.converted.failure is not None:
            console.print(f"{row.name} was not converted: {row.converted.failure}")
    console.print()
    for sentence in totals(rows):
        console.print(sentence)


def arguments_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="architectures or families; default: all")
    parser.add_argument("--convert", action="store_true", help="also run `neuron-port convert` on each")
    parser.add_argument("--jobs", type=int, default=1, help="architectures at a time")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="what would ship")
    parser.add_argument("--target", choices=tuple(GENERATION_OF_TARGET), default="trn2")
    parser.add_argument("--tokens", type=int, default=32, help="of a prompt: half of the models' 64 channels")
    parser.add_argument("--results", type=Path, default=Store().root / "coverage", help="where rows are kept")
    parser.add_argument("--kept", action="store_true", help="also take rows that other code or options gave")
    parser.add_argument("--limit-seconds", type=float, default=1800.0, help="for each process")
    parser.add_argument(
        "--only-measure", action="store_true", help="print one row as JSON: what processes run"
    )
    return parser.parse_args()


def main() -> int:
    arguments = arguments_of()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    settings = Settings(tokens=arguments.tokens, dtype=arguments.dtype, target=arguments.target)
    if arguments.only_measure:
        (name,) = arguments.names
        print(json.dumps(to_json(measure(ZOO[name], settings))))
        return 0
    try:
        entries = choose(arguments.names)
    except KeyError as error:
        raise SystemExit(str(error.args[0])) from None
    run = Run(
        command=(sys.executable, __file__, "--only-measure"),
        settings=settings,
        results=arguments.results,
        convert=arguments.convert,
        any_kept=arguments.kept,
        limit_seconds=arguments.limit_seconds,
    )
    with ThreadPoolExecutor(arguments.jobs) as pool:
        rows = list(pool.map(run.row, entries))
    print_all(rows)
    failed = any(row.failure or (row.converted and row.converted.state != "passed") for row in rows)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
