"""Coverage of the zoo by recipes: `python benchmarks/coverage.py [NAME|FAMILY ..] [--convert] [--jobs N]`.

Every architecture is walked and matched, each in a process of its own: one that crashes is a row, not the end. Printed:
how many layers of each architecture every recipe serves, what kernels take of its layers, FLOPs and bytes, what is left
to the compiler and why, and the totals. With --convert each architecture also goes through `neuron-port convert` with
random weights. Rows are kept as JSON while they come in: an interrupted run goes on. docs/coverage.md says how to read it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from coverage_support.measure import Settings, convert, last_words, measure
from coverage_support.record import Row, code_digest, keep, kept
from coverage_support.tables import coverage_table, left_table, matrix, totals
from rich.console import Console
from zoo import ZOO, Entry, choose

from neuron_port.store import Store
from neuron_port.types import digest, from_json, to_json

WIDTH = 150  # of the tables, wherever they go


class Run:
    """Measures architectures, several at a time, and keeps every row as soon as it is known."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.settings = Settings(tokens=arguments.tokens, dtype=arguments.dtype, target=arguments.target)
        self.convert, self.limit_seconds = arguments.convert, arguments.limit_seconds
        self.folder = arguments.results / ("conversions" if self.convert else "plans")
        digest_of_code = code_digest(whole=self.convert)
        key = digest(digest_of_code, arguments.tokens, arguments.dtype, arguments.target)
        self.key, self.wanted_key = key, None if arguments.kept else key

    def row(self, entry: Entry) -> Row:
        """The kept row, or a new one, which is kept from now on."""
        found = kept(self.folder, self.wanted_key, entry.name)
        if found is not None:
            print(f"{entry.name}: kept from an earlier run", file=sys.stderr, flush=True)
            return found
        row = self._planned(entry)
        if self.convert and row.failure is None:
            place = self.folder / entry.name
            row = replace(row, converted=convert(entry, self.settings, place, self.limit_seconds))
        keep(self.folder, self.key, row)
        print(f"{entry.name}: {_sentence(row)}", file=sys.stderr, flush=True)
        return row

    def _planned(self, entry: Entry) -> Row:
        """The row as a process of its own gives it; its failure is the row's."""
        started = time.perf_counter()
        chosen = self.settings
        command = [
            *(sys.executable, __file__, entry.name, "--only-measure", "--dtype", chosen.dtype),
            *("--target", chosen.target, "--tokens", str(chosen.tokens)),
        ]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=self.limit_seconds, check=False
            )
        except subprocess.TimeoutExpired:
            failure = f"not done after {self.limit_seconds:.0f} s"
        else:
            if done.returncode == 0:
                return from_json(Row, json.loads(done.stdout))
            failure = last_words(done.stderr, done.returncode)
        seconds = time.perf_counter() - started
        return Row(name=entry.name, family=entry.family, seconds=seconds, failure=failure)


def _sentence(row: Row) -> str:
    if row.failure is not None:
        return f"failed: {row.failure}"
    text = f"{row.total('kernel_layers')} of {row.total('layers')} layers in kernels, {row.seconds:.1f} s"
    if row.converted is not None:
        text += f"; conversion {row.converted.failure or row.converted.state}, {row.converted.seconds:.0f} s"
    return text


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
            console.print(f"{row.name} has parameters that no layer reads: {', '.join(row.unused_parameters)}")
        if row.converted is not None and row.converted.failure is not None:
            console.print(f"{row.name} was not converted: {row.converted.failure}")
    console.print()
    for sentence in totals(rows):
        console.print(sentence)


def arguments_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="architectures or families; default: all")
    parser.add_argument("--convert", action="store_true", help="also run `neuron-port convert` on each")
    parser.add_argument("--jobs", type=int, default=1, help="architectures at a time")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="what would ship")
    parser.add_argument("--target", choices=("inf2", "trn1", "trn2"), default="trn2")
    parser.add_argument("--tokens", type=int, default=32, help="of a prompt: half of the models' 64 channels")
    parser.add_argument("--results", type=Path, default=Store().root / "coverage", help="where rows are kept")
    parser.add_argument("--kept", action="store_true", help="also take rows that other code or options gave")
    parser.add_argument("--limit-seconds", type=float, default=1800.0, help="for each process")
    parser.add_argument("--only-measure", action="store_true", help="print one row as JSON: what processes run")
    return parser.parse_args()


def main() -> int:
    arguments = arguments_of()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    if arguments.only_measure:
        (name,) = arguments.names
        settings = Settings(tokens=arguments.tokens, dtype=arguments.dtype, target=arguments.target)
        print(json.dumps(to_json(measure(ZOO[name], settings))))
        return 0
    run = Run(arguments)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        rows = list(pool.map(run.row, choose(arguments.names)))
    print_all(rows)
    failed = any(row.failure or (row.converted and row.converted.state != "passed") for row in rows)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
