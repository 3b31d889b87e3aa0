"""Fault injection: wrong kernels that the recipe's own cases must refuse. A recipe whose cases cannot tell is no proof.

Two kinds. Wrong answers: zeros, an echo, a 2 % error of scale, a dropped row (`parity/comparison.py` makes them).
Wrong reading: an argument moved by one element, two arguments of one shape swapped, run through the real kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any

import torch

from neuron_port.contributing.records import Check, Say, judged
from neuron_port.contributing.sizes import elements
from neuron_port.contributing.trials import Bench, Trial
from neuron_port.grading.oracle import TORCH_DTYPES
from neuron_port.parity.recipe_cases import case_inputs, run_case
from neuron_port.recipe import Case

Inputs = tuple[Any, ...]
Fault = Callable[[Inputs], Inputs | None]  # None: there is nothing to be wrong about in these inputs
NEEDED = ("scaled by 1.02", "dropped row")
CASES_TRIED = 6


def check_faults(bench: Bench, trials: Sequence[Trial], say: Say) -> Check:
    """Every fault is refused by some case, and none is accepted by a case that can tell it."""
    problems = [
        f"{trial.title}: a wrong answer was accepted: {name}" for trial in trials for name in trial.accepted
    ]
    problems += [f"no case tells `{name}` from the right answer" for name in _untold(bench)]
    caught, symmetric, impossible = [], [], []
    for number, (name, fault, must_tell) in enumerate(_reading_faults(bench)):
        say(f"{number + 1}: {name}")
        case = _telling_case(bench, fault)
        if case is not None:
            caught.append(name)
            problems += _accepted_by_kernel(bench, case, name, fault)
        elif must_tell and (_possible(bench, fault) or _is_constant(bench, number)):
            problems.append(f"no case tells that {name}: draw values that differ and matter")
        elif not _possible(bench, fault):
            impossible += [name] if must_tell else []
        else:
            symmetric.append(name)
    summary = (
        f"{sum(trial.refused for trial in trials)} wrong answers refused, of scale, rows, places and echoes; "
    )
    summary += f"{len(caught)} wrong readings refused: {', '.join(caught)}"
    if symmetric:
        summary += f"; no fault: {', '.join(symmetric)}"
    if impossible:
        summary += f"; too small to be tried: {', '.join(impossible)}"
    return judged("faults", "", problems, tried=summary)


def _untold(bench: Bench) -> list[str]:
    """Needed wrong answers that no case was ever asked to refuse."""
    told: set[str] = set()
    for case in _small_cases(bench):
        _, refused = run_case(bench.recipe, bench.found.reference, bench.found.reference, case, torch.float32)
        told |= {name.split(": ")[1] for name, comparison in refused.items() if not comparison.passed}
        if told >= set(NEEDED):
            break
    return [name for name in NEEDED if name not in told]


def _reading_faults(bench: Bench) -> Iterator[tuple[str, Fault, bool]]:
    """(what is wrong, how inputs become wrong, whether some case must tell): a swap may be no fault, as in a sum."""
    names = bench.recipe.tensor_arguments
    for place, name in enumerate(names):
        yield f"`{name}` is moved by one element", _moved(place), True
    for (first, one), (second, other) in combinations(enumerate(names), 2):
        yield f"`{one}` and `{other}` are swapped", _swapped(first, second), False


def _moved(place: int) -> Fault:
    def fault(inputs: Inputs) -> Inputs | None:
        tensor = inputs[place] if place < len(inputs) else None
        if tensor is None:
            return None
        moved = tensor.flatten().roll(1).reshape(tensor.shape)
        return None if torch.equal(moved, tensor) else (*inputs[:place], moved, *inputs[place + 1 :])

    return fault


def _swapped(first: int, second: int) -> Fault:
    def fault(inputs: Inputs) -> Inputs | None:
        one, other = (inputs[place] if place < len(inputs) else None for place in (first, second))
        if one is None or other is None or one.shape != other.shape or one.dtype != other.dtype:
            return None
        swapped = list(inputs)
        swapped[first], swapped[second] = other, one
        return tuple(swapped)

    return fault


def _small_cases(bench: Bench) -> list[Case]:
    cases = [case for case in bench.recipe.cases if case.kind != "large"]
    return sorted(cases, key=lambda case: elements(bench.recipe, case.sizes))


def _possible(bench: Bench, fault: Fault) -> bool:
    return any(fault(case_inputs(bench.recipe, case)) is not None for case in bench.recipe.cases)


def _is_constant(bench: Bench, place: int) -> bool:
    """Whether a tensor argument of several elements has one value throughout, in every case that has it."""
    drawn = [case_inputs(bench.recipe, case) for case in bench.recipe.cases]
    places = [inputs[place] for inputs in drawn if place < len(inputs)]
    tensors = [tensor for tensor in places if tensor is not None]
    return any(tensor.numel() > 1 for tensor in tensors) and all(
        torch.equal(tensor, tensor.flatten()[:1].reshape(()).expand_as(tensor))
        for tensor in tensors
        if tensor.numel()
    )


def _telling_case(bench: Bench, fault: Fault) -> Case | None:
    """A small case in which the reference, read with the fault, is refused."""
    possible = [case for case in _small_cases(bench) if fault(case_inputs(bench.recipe, case)) is not None]
    for case in possible[-CASES_TRIED:]:
        if not _passes(bench, case, fault, bench.found.reference):
            return case
    return None


def _accepted_by_kernel(bench: Bench, case: Case, name: str, fault: Fault) -> list[str]:
    """The real kernel with the fault must be refused too: else it does not read what it is given."""
    return [
        f"`{case.name}`, {generation}: the kernel gives the right answer although {name}"
        for generation, operator in bench.operators.items()
        if _passes(bench, case, fault, operator)
    ]


def _passes(bench: Bench, case: Case, fault: Fault, operator: Callable[..., Any]) -> bool:
    """Whether `operator`, called with wrong inputs, is taken for right; one that fails on them is not."""

    def faulty(*inputs: Any, **attributes: Any) -> Any:
        return operator(*(fault(inputs) or inputs), **attributes)

    dtype = TORCH_DTYPES[bench.recipe.dtypes[0]]
    try:
        comparisons, _ = run_case(bench.recipe, bench.found.reference, faulty, case, dtype)
    except Exception:  # an index out of range, sizes that do not go together: no wrong answer came out
        return False
    return all(comparison.passed for comparison in comparisons)
