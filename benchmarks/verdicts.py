"""What a verdict costs: every recipe's kernel through the grader, beside an unguarded check of the same cases.

    python benchmarks/verdicts.py [RECIPE ...]

The unguarded check is what one would write first: run the kernel in this process on the public cases in float32 and
compare with `torch.allclose`. The grader does that in a sandbox, in all dtypes, on hidden cases too, and judges by the
noise of the dtype; the ratio is the price of not being fooled. Seconds are processor seconds, children included.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import torch

from neuron_port.execution import simulated_operator
from neuron_port.grading.gates import check_source_cheaply
from neuron_port.grading.grader import Grader
from neuron_port.grading.recipe_task import task_from_recipe
from neuron_port.parity.recipe_cases import case_inputs
from neuron_port.registry import RegisteredRecipe, Registry

SEED = 17
GATE_TURNS = 5


def processor_seconds(work: Callable[[], object]) -> float:
    """User and system time that `work` takes, of this process and of the children that it waits for."""
    before = os.times()
    work()
    after = os.times()
    return sum(after[:4]) - sum(before[:4])


def unguarded(found: RegisteredRecipe) -> None:
    """The kernel in this process, float32, public cases, one constant tolerance."""
    operator = simulated_operator(found, "trn2")
    for case in found.recipe.cases:
        inputs = case_inputs(found.recipe, case)
        ours, truth = operator(*inputs, **case.attributes), found.reference(*inputs, **case.attributes)
        pairs = zip(ours, truth, strict=True) if isinstance(ours, tuple) else ((ours, truth),)
        for output, expected in pairs:
            torch.allclose(output, expected, atol=1e-2, rtol=1e-2)


def gate_milliseconds(source: str, name: str) -> float:
    """The best of some turns, on the wall: what a refused draft costs before anything runs."""
    best = float("inf")
    for _ in range(GATE_TURNS):
        started = time.perf_counter()
        check_source_cheaply(source, name)
        best = min(best, time.perf_counter() - started)
    return 1e3 * best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="*", help="names; all if none is given")
    names = parser.parse_args().recipes
    torch.set_num_threads(1)
    registry = Registry()
    columns = (
        ("gates ms", 9), ("oracle s", 10), ("grade s", 9), ("admit s", 9), ("unguarded s", 13),
        ("grade / unguarded", 19),
    )  # fmt: skip
    print(f"{'recipe':<20}" + "".join(f"{name:>{width}}" for name, width in columns))
    for name in names or registry:
        found = registry[name]
        task, source = task_from_recipe(found), found.kernel.source
        made: list[Grader] = []
        oracle = processor_seconds(lambda task=task, made=made: made.append(Grader(task, hidden_seed=SEED)))
        grader = made[0]
        first = processor_seconds(lambda grader=grader, source=source: grader.grade(source))
        grade = processor_seconds(lambda grader=grader, source=source: grader.grade(source))
        admit = processor_seconds(lambda grader=grader, source=source: grader.admit(source, seed=SEED))
        plain = processor_seconds(lambda found=found: unguarded(found))
        gates = gate_milliseconds(source, name)
        oracle += first - grade  # the hidden cases' truth is computed when it is first needed
        print(
            f"{name:<20}{gates:>9.1f}{oracle:>10.2f}{grade:>9.2f}{admit:>9.2f}{plain:>13.2f}{grade / plain:>19.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
