"""The latency model on AWS's own kernels, unmodified: `python benchmarks/latency_library.py CHECKOUT`.

CHECKOUT is one of aws-neuron/nki-library. The tests of its `mlp` state, for each shape, the latency that they expect on
Trn2 (in picoseconds, where the parameter is called tpbSgCyclesSum). This runs the kernel on these shapes, decode
and prefill, on one and on two cores, and prints the model's prediction beside the stated latency, and the order of pairs
beside a roofline's. No constant of the model was chosen by these figures. Shapes that take over ten seconds to simulate
are left out, and so are quantised and biased variants.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.aws_suite_support.repairs import overlay
from neuron_port.simulator import load_kernel, run_kernel
from neuron_port.simulator.timing import predict

KERNEL = "src/nkilib_src/nkilib/core/mlp/mlp.py"
DECODE_TESTS = "test/integration/nkilib/core/mlp/test_mlp_tkg.py"
PREFILL_TESTS = "test/integration/nkilib/core/mlp/test_mlp_cte.py"
LARGEST_WEIGHTS = 16384 * 900  # elements of one of the three matrices
LARGEST_WORK = 1024 * 16384 * 900  # multiply-accumulates of one product
CLOSE = 1.05  # pairs whose stated latencies are closer than this have no order


class Case(NamedTuple):
    """One row of the tests: sizes, and the latency that it states."""

    mode: str
    cores: int
    batch: int
    tokens: int
    hidden: int
    intermediate: int
    norm: str
    fused_add: bool
    store_add: bool
    column_tiling: tuple[bool, bool]
    stated_us: float


def _rows(path: Path) -> Iterator[list[str]]:
    """The parameter lists of a test file, entry by entry."""
    for line in path.read_text().splitlines():
        row = re.fullmatch(r"\s+\[(\d, \d+, \d+, \d+, \d+, .*)\],.*", line)
        if row:
            yield [entry.strip().rpartition(".")[2] for entry in row.group(1).split(",")]


def decode_cases(path: Path) -> Iterator[Case]:
    """Plain bfloat16 rows of the decode tests."""
    for row in _rows(path):
        plain = len(row) >= 21 and row[5:8] == ["bfloat16", "None", "NONE"] and row[8].isdigit()
        if plain and row[12:18] == ["SiLU", *["False"] * 5] and row[20] == "False" and row[9] != "LAYER_NORM":
            sizes = [int(entry) for entry in row[:5]]
            true = [entry == "True" for entry in row]
            yield Case("decode", *sizes, row[9], true[10], true[11], (true[18], true[19]), int(row[8]) / 1e6)


def prefill_cases(path: Path) -> Iterator[Case]:
    """Plain bfloat16 rows of the prefill tests."""
    for row in _rows(path):
        plain = len(row) == 17 and row[5].isdigit() and row[8] == "NONE" and row[7] != "LAYER_NORM"
        if plain and row[11:] == ["False", "SiLU", *["False"] * 4]:
            sizes = [int(entry) for entry in row[:5]]
            true = [entry == "True" for entry in row]
            yield Case("prefill", *sizes, row[7], true[9], true[10], (True, True), int(row[5]) / 1e6)


def predicted_us(kernel: Callable[..., Any], case: Case) -> tuple[float, float]:
    """(latency by the model, by the roofline) in microseconds; the data are ones, on which no time depends."""

    def ones(*shape: int) -> np.ndarray:
        return np.ones(shape, ml_dtypes.bfloat16)

    norms = getattr(kernel, "function", kernel).__globals__["NormType"]
    options: dict[str, Any] = {"normalization_type": norms[case.norm]}
    if case.norm != "NO_NORM":
        options["normalization_weights_tensor"] = ones(1, case.hidden)
    if case.fused_add:
        options["fused_add_tensor"] = ones(case.batch, case.tokens, case.hidden)
        options["store_fused_add_result"] = case.store_add
    if case.mode == "prefill":
        options["force_cte_mode"] = True
    else:
        options["use_tkg_gate_up_proj_column_tiling"], options["use_tkg_down_proj_column_tiling"] = (
            case.column_tiling
        )
    weights = (
        ones(case.hidden, case.intermediate),
        ones(case.hidden, case.intermediate),
        ones(case.intermediate, case.hidden),
    )
    with contextlib.redirect_stdout(io.StringIO()):  # the kernel reports its memory
        run = run_kernel(
            kernel,
            ones(case.batch, case.tokens, case.hidden),
            *weights,
            target="trn2",
            lnc=case.cores,
            **options,
        )
    timeline = predict(run)
    return timeline.latency_ns / 1e3, timeline.roofline.bound_ns / 1e3


def _print_order(label: str, results: list[tuple[float, float, float]]) -> None:
    """Pairs ordered right, and the median error, of (stated, model, roofline)."""
    pairs = [sorted(pair) for pair in itertools.combinations(results, 2)]
    pairs = [(fast, slow) for fast, slow in pairs if slow[0] > CLOSE * fast[0]]
    if not pairs:
        return
    model, roofline = (sum(fast[column] < slow[column] for fast, slow in pairs) for column in (1, 2))
    errors = [abs(model_us / stated - 1) for stated, model_us, _ in results]
    print(
        f"{label:20s} model {model:4d} of {len(pairs):4d} pairs   roofline {roofline:4d}   "
        f"median absolute error {statistics.median(errors):.1%}"
    )


def main() -> None:
    """Predict every case and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkout", type=Path, help="a checkout of aws-neuron/nki-library")
    checkout = parser.parse_args().checkout
    with tempfile.TemporaryDirectory() as folder:
        overlay(checkout, Path(folder))
        kernel = load_kernel(Path(folder) / KERNEL, "mlp", imports="any")
        cases = [*decode_cases(checkout / DECODE_TESTS), *prefill_cases(checkout / PREFILL_TESTS)]
        results: dict[str, list[tuple[float, float, float]]] = {}
        for case in dict.fromkeys(cases):
            weights = case.hidden * case.intermediate
            if weights > LARGEST_WEIGHTS or case.batch * case.tokens * weights > LARGEST_WORK:
                continue
            model_us, roofline_us = predicted_us(kernel, case)
            sizes = f"{case.batch} x {case.tokens} x {case.hidden} -> {case.intermediate}"
            print(
                f"{case.mode:8s}{case.cores} core{'s' if case.cores > 1 else ' '} {sizes:26s} {case.norm:9s} "
                f"stated {case.stated_us:7.1f} us  model {model_us:7.1f} ({model_us / case.stated_us - 1:+.0%})",
                flush=True,
            )
            for label in (f"{case.mode}, {case.cores} cores", case.mode, "all"):
                results.setdefault(label, []).append((case.stated_us, model_us, roofline_us))
    for label, found in sorted(results.items()):
        _print_order(label, found)


if __name__ == "__main__":
    main()
