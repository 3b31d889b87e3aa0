"""Refuses a task that a wrong answer would pass: what cannot fail proves nothing, and would be found out by a cheat.

A single case may be weak (one row cannot be shuffled); the set of them decides. Only zeros, which broken hardware and
lazy kernels give alike, must be refused by every ordinary case.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from neuron_port.execution import to_numpy
from neuron_port.grading.oracle import (
    TORCH_DTYPES,
    CaseTruth,
    DegenerateTaskError,
    Inputs,
    Oracle,
    TaskError,
    answer_of,
    case_seed,
    draw_inputs,
    one_torch_thread,
)
from neuron_port.task import KernelTask

OTHER_VALUES = 1  # the seed of the draw that stands for another call


def refuse_degenerate(oracle: Oracle) -> None:
    """Try wrong answers on the public cases.

    Raises:
        DegenerateTaskError: one of them would pass; the message names it.
        TaskError: there is no ordinary case, or the reference breaks an invariant of its own task.
    """
    ordinary = [truth for truth in oracle.truths if truth.case.kind == "ordinary"]
    if not ordinary:
        raise TaskError(f"Task `{oracle.task.name}` has no case of kind `ordinary`", hint="Add one.")
    with one_torch_thread():
        for truth in ordinary:
            _refuse_zeros(oracle.task, truth)
        for dtype in dict.fromkeys(truth.dtype for truth in oracle.truths):
            _refuse_wrong_answers(oracle.task, oracle.of_dtype(dtype))
        _refuse_idle_inputs(oracle.task, [truth for truth in ordinary if truth.dtype == ordinary[0].dtype])
    for truth in oracle.truths:
        _refuse_own_invariants(oracle.task, truth)


def wrong_answers(truth: CaseTruth, number: int) -> Iterator[tuple[str, torch.Tensor]]:
    """What a kernel that does not do the work may return for an output, in the dtype that is asked for."""
    right = truth.baselines[number]
    finite = torch.where(torch.isfinite(right), right, 0) if right.is_floating_point() else right
    yield "zeros", torch.zeros_like(right)
    yield "ones", torch.ones_like(right)
    if right.is_floating_point():
        yield "NaN everywhere", torch.full_like(right, torch.nan)
    # Of a single number, row or column, the next wrong answers would be the answer itself.
    if right.numel() > 1:
        yield "the mean of the answer, everywhere", torch.full_like(right, finite.double().mean().item())
        yield "the answer, moved by one element", right.flatten().roll(1).reshape(right.shape)
    rows = right.reshape(-1, right.shape[-1]) if right.ndim > 1 else right.reshape(1, -1)
    if rows.shape[0] > 1:
        yield "the answer, moved by one row", rows.roll(1, 0).reshape(right.shape)
        yield "the first row of the answer, repeated", rows[:1].expand_as(rows).reshape(right.shape)
    if rows.shape[1] > 1 and right.ndim > 1:
        yield "the first column of the answer, repeated", rows[:, :1].expand_as(rows).reshape(right.shape)
    for name, tensor in _echoes(truth, right):
        yield f"an echo of input `{name}`", tensor


def _echoes(truth: CaseTruth, right: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    for place, array in truth.given.items():
        if array.size == right.numel():
            values = torch.from_numpy(array.astype(np.float64)).reshape(right.shape)
            yield str(place), values.to(right.dtype)


def _refuse_zeros(task: KernelTask, truth: CaseTruth) -> None:
    for number, right in enumerate(truth.baselines):
        if truth.compare(number, torch.zeros_like(right)).passed:
            raise DegenerateTaskError(
                f"Task `{task.name}`, ordinary case `{truth.case.name}` in {truth.dtype}: zeros would pass "
                f"as output {number}",
                hint="Draw inputs for which the output is not zero within its own rounding.",
            )


def _refuse_wrong_answers(task: KernelTask, truths: tuple[CaseTruth, ...]) -> None:
    """Every wrong answer to every output must be refused by some case."""
    for number in range(task.result_count):
        refused: dict[str, bool] = {}
        for truth in truths:
            for place, array in truth.given.items():
                if array.size != truth.baselines[number].numel():  # the echo would have another shape
                    refused[f"an echo of input `{place}`"] = True
            for name, wrong in wrong_answers(truth, number):
                if not refused.get(name):
                    refused[name] = not truth.compare(number, wrong).passed
        for name, done in refused.items():
            if not done:
                raise DegenerateTaskError(
                    f"Task `{task.name}` in {truths[0].dtype}: {_named(task, name)} would pass every case "
                    f"as output {number}",
                    hint="Change the inputs, the sizes or the task, so that this answer is wrong.",
                )


def _named(task: KernelTask, wrong: str) -> str:
    for place, name in enumerate(task.tensor_arguments):
        wrong = wrong.replace(f"input `{place}`", f"input `{name}`")
    return wrong


def _refuse_idle_inputs(task: KernelTask, ordinary: list[CaseTruth]) -> None:
    """Other values must change the answer: those of all inputs together in every case, of each input in some case."""
    idle = set(task.tensor_arguments[: max(len(truth.arrays) for truth in ordinary)])
    for truth in ordinary:
        other = draw_inputs(task, truth.case, truth.dtype, case_seed(task, truth.case, OTHER_VALUES))
        own = draw_inputs(task, truth.case, truth.dtype, truth.seed)
        if not _changes(task, truth, other):
            raise DegenerateTaskError(
                f"Task `{task.name}`, ordinary case `{truth.case.name}`: the answer to other inputs would pass",
                hint="Draw inputs on whose values the output depends.",
            )
        for place, name in enumerate(task.tensor_arguments[: len(own)]):
            swapped = (*own[:place], other[place], *own[place + 1 :])
            if name in idle and own[place] is not None and _changes(task, truth, swapped):
                idle.discard(name)
    if idle:
        raise DegenerateTaskError(
            f"Task `{task.name}`: input `{min(idle)}` changes the output in no ordinary case",
            hint="Leave it out of the schema, or draw inputs for which it matters.",
        )


def _changes(task: KernelTask, truth: CaseTruth, inputs: Inputs) -> bool:
    answers = answer_of(task, truth.case, inputs, TORCH_DTYPES[truth.dtype], truth.case.attributes)
    return any(not truth.compare(number, answer).passed for number, answer in enumerate(answers))


def _refuse_own_invariants(task: KernelTask, truth: CaseTruth) -> None:
    for invariant in task.invariants:
        problem = invariant.check(
            as_float32(truth.given.values()),
            truth.case.attributes,
            as_float32([to_numpy(baseline) for baseline in truth.baselines]),
        )
        if problem:
            raise TaskError(
                f"Task `{task.name}`, case `{truth.case.name}` in {truth.dtype}: the reference itself breaks "
                f"the invariant `{invariant.name}`: {problem}"
            )


def as_float32(arrays: Iterable[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Floating arrays in float32, as invariants take them; others as they are."""
    return tuple(array if array.dtype.kind in "iub" else array.astype(np.float32) for array in arrays)
