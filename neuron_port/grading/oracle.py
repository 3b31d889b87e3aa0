"""The truth of every case, computed and frozen before any candidate is seen, and the proof that the cases can tell.

The truth is the reference in float64 (float32 for 16-bit cases); the noise that is legal is the reference's own in the
case's dtype, on the case's inputs and on neighbouring ones. A task that zeros, a constant, an echo of an input or the
answer to other inputs would pass is refused here, before anybody pays for a draft.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from threading import Lock
from typing import Any

import ml_dtypes
import numpy as np
import torch

from neuron_port.errors import NeuronPortError
from neuron_port.execution import to_numpy, to_torch
from neuron_port.parity.comparison import Comparison, compare, shifted
from neuron_port.parity.draw import Draw
from neuron_port.parity.problems import nudged
from neuron_port.recipe import Case
from neuron_port.sandbox.job import KernelCall
from neuron_port.task import KernelTask
from neuron_port.types import digest

# One forward may be lucky: how many neighbouring inputs the reference's own rounding is looked at on. A large case
# has many outputs, so that one says enough, and each costs seconds.
NEIGHBOURS, NEIGHBOURS_OF_LARGE_CASE, LARGE_CASE_ELEMENTS = 6, 2, 1_000_000
# Limits of cases that nobody has looked at are twice as wide: of some thousand such draws a few exceeded the strict ones
# by 5 % with an honest kernel. They are there for errors of logic; the public cases bound the noise.
DRAWN_SLACK = 2.0
Inputs = tuple[
    torch.Tensor | None, ...
]  # a kernel's tensor arguments; None: an optional one that is not there
TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TaskError(NeuronPortError):
    """A task that cannot be graded: its reference or its inputs do not do what the task says."""


class DegenerateTaskError(TaskError):
    """A task whose cases a wrong answer would pass."""


@dataclass(frozen=True, kw_only=True)
class CaseTruth:
    """One case in one dtype: what the kernel is given, and what it must answer within its noise."""

    case: Case
    dtype: str
    seed: int
    arrays: tuple[
        np.ndarray | None, ...
    ]  # the kernel's tensor arguments, floating ones in `dtype`; read-only
    truths: tuple[torch.Tensor, ...]
    baselines: tuple[torch.Tensor, ...]  # the reference in `dtype`
    alternatives: tuple[tuple[torch.Tensor, ...], ...]  # for each output, other legal answers
    reduction_length: int
    r_ratio: float
    slack: float = 1.0  # multiplies every limit

    @property
    def call(self) -> KernelCall:
        return KernelCall(arrays=self.arrays, attributes=dict(self.case.attributes))

    @property
    def given(self) -> dict[int, np.ndarray]:
        """The tensor arguments that are there, by their place."""
        return {place: array for place, array in enumerate(self.arrays) if array is not None}

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(array.shape for array in self.given.values())

    @property
    def elements(self) -> int:
        """Of all inputs and outputs."""
        return sum(array.size for array in self.given.values()) + sum(truth.numel() for truth in self.truths)

    @cached_property
    def sha256(self) -> dict[str, str]:
        """Of the inputs, the truth and the baselines, as the manifest has them."""
        return {
            "inputs": _sha256(self.arrays),
            "truth": _sha256([truth.numpy() for truth in self.truths]),
            "baselines": _sha256([to_numpy(baseline) for baseline in self.baselines]),
        }

    def inputs_changed(self) -> bool:
        """Whether the inputs are no longer those that the truth was computed from."""
        return _sha256(self.arrays) != self.sha256["inputs"]

    def compare(self, number: int, output: torch.Tensor) -> Comparison:
        """Judge one output. Integers must be those of the truth, or those that rounding makes of it."""
        truth, baseline = self.truths[number], self.baselines[number]
        if not baseline.is_floating_point():
            return _compare_integers(output, [truth, baseline, *self.alternatives[number]])
        comparison = compare(
            output,
            truth,
            baseline,
            alternatives=self.alternatives[number],
            reduction_length=self.reduction_length,
            r_ratio_limit=self.r_ratio,
        )
        return _loosened(comparison, self.slack)


@dataclass(frozen=True, kw_only=True)
class Oracle:
    """Every case of a task in every dtype, frozen."""

    task: KernelTask
    truths: tuple[CaseTruth, ...]

    def of_dtype(self, dtype: str) -> tuple[CaseTruth, ...]:
        return tuple(truth for truth in self.truths if truth.dtype == dtype)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """SHA-256 of everything that decides a verdict, by dtype and case."""
        cases = {f"{truth.dtype} / {truth.case.name}": truth.sha256 for truth in self.truths}
        return {"task": self.task.key, "cases": cases}

    @cached_property
    def key(self) -> str:
        return digest(self.manifest)


def freeze(task: KernelTask, dtypes: Sequence[str], cases: Sequence[Case], seed: int | None = None) -> Oracle:
    """Compute the truth of `cases` in `dtypes`, the cheaper dtype first as given.

    Args:
        seed: None draws what the public cases have, the same for everybody; hidden cases have a seed of their own.

    Raises:
        TaskError: the reference fails, or does not return what the schema says.
    """
    with one_torch_thread():
        return Oracle(
            task=task,
            truths=tuple(case_truth(task, case, dtype, seed) for dtype in dtypes for case in cases),
        )


def case_seed(task: KernelTask, case: Case, seed: int | None) -> int:
    """The seed of a case's values: 64 bits of a digest, so that hidden values do not follow from public ones."""
    text = f"{task.name}/{case.name}" if seed is None else f"{task.name}/{case.name}/{seed}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def case_truth(task: KernelTask, case: Case, dtype: str, seed: int | None, slack: float = 1.0) -> CaseTruth:
    """Draw one case's inputs and compute everything that judging it takes.

    Args:
        slack: multiplies the limits of noise. Cases that are drawn at run time have DRAWN_SLACK.
    """
    number = case_seed(task, case, seed)
    inputs = draw_inputs(task, case, dtype, number)
    attributes = case.attributes
    compute = TORCH_DTYPES[dtype]
    baselines = answer_of(task, case, inputs, compute, attributes)
    # A 16-bit case may still return float32 (the logits of a router): its truth needs more than that.
    wide = compute is torch.float32 or any(baseline.dtype is torch.float32 for baseline in baselines)
    exact = torch.float64 if wide else torch.float32
    truths = answer_of(task, case, inputs, exact, attributes)
    alternatives = []
    large = sum(truth.numel() for truth in truths) >= LARGE_CASE_ELEMENTS
    for neighbour in range(NEIGHBOURS_OF_LARGE_CASE if large else NEIGHBOURS):
        nearby = _nudged(inputs, neighbour)
        exact_nearby = answer_of(task, case, nearby, exact, attributes)
        own_nearby = answer_of(task, case, nearby, compute, attributes)
        if all(baseline.is_floating_point() for baseline in baselines):
            alternatives.append(shifted(truths, exact_nearby, own_nearby))
    arrays = tuple(None if tensor is None else _frozen(to_numpy(tensor)) for tensor in inputs)
    return CaseTruth(
        case=case,
        dtype=dtype,
        seed=number,
        arrays=arrays,
        truths=truths,
        baselines=baselines,
        alternatives=tuple(
            _loudest(truth, [answers[place] for answers in alternatives])
            for place, truth in enumerate(truths)
        ),
        reduction_length=case.sizes.get(task.tolerance.reduction_length or "", 1),
        r_ratio=task.tolerance.r_ratio,
        slack=slack,
    )


def draw_inputs(task: KernelTask, case: Case, dtype: str, seed: int) -> Inputs:
    """The case's tensor arguments, floating ones rounded to `dtype`."""
    try:
        drawn = task.inputs(case.sizes, Draw(seed, case.scale, case.style))
    except Exception as error:
        raise TaskError(
            f"Task `{task.name}`: inputs({dict(case.sizes)}) fails: {type(error).__name__}: {error}"
        ) from error
    rounded = TORCH_DTYPES[dtype]
    tensors = tuple(None if array is None else to_torch(np.ascontiguousarray(array)) for array in drawn)
    return tuple(_floating_as(tensor, rounded) for tensor in tensors)


def _floating_as(tensor: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    return tensor.to(dtype) if tensor is not None and tensor.is_floating_point() else tensor


def answer_of(
    task: KernelTask,
    case: Case,
    inputs: Inputs,
    compute: torch.dtype,
    attributes: Mapping[str, Any],
) -> tuple[torch.Tensor, ...]:
    """The reference in `compute`, its outputs contiguous and apart from the inputs."""
    cast = [None if tensor is None else _floating_as(tensor.clone(), compute) for tensor in inputs]
    try:
        with torch.no_grad():
            result = task.reference(*cast, **attributes)
    except Exception as error:
        raise TaskError(
            f"Task `{task.name}`, case `{case.name}` in {compute}: the reference fails: "
            f"{type(error).__name__}: {error}"
        ) from error
    outputs = tuple(result) if isinstance(result, (tuple, list)) else (result,)
    if len(outputs) != task.result_count or not all(isinstance(output, torch.Tensor) for output in outputs):
        raise TaskError(
            f"Task `{task.name}`, case `{case.name}`: the reference returns {len(outputs)} values, the schema "
            f"promises {task.result_count} tensors: `{task.schema}`"
        )
    return tuple(_as_kernels_return(output) for output in outputs)


def _as_kernels_return(output: torch.Tensor) -> torch.Tensor:
    """Contiguous; integers in 32 bits, which is what the hardware has."""
    output = output.detach().contiguous().clone()
    return output.int() if output.dtype in (torch.int64, torch.bool) else output


def _loudest(truth: torch.Tensor, answers: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The legal answer with the most noise: `compare` looks at no other."""
    if not answers:
        return ()
    finite = torch.isfinite(truth)
    return (max(answers, key=lambda answer: torch.where(finite, answer - truth, 0).norm().item()),)


def _loosened(comparison: Comparison, slack: float) -> Comparison:
    """The same figures against limits that are `slack` times as wide; a wrong form stays wrong."""
    if slack == 1.0 or not comparison.metrics:
        return comparison
    limits = {name: limit * slack for name, limit in comparison.limits.items()}
    within = all(comparison.metrics[name] <= limit for name, limit in limits.items())
    return replace(comparison, limits=limits, detail="" if within else comparison.detail)


def _compare_integers(output: torch.Tensor, legal: list[torch.Tensor]) -> Comparison:
    """Every integer must be one of the legal ones at its place."""
    truth = legal[0]
    if output.shape != truth.shape:
        return Comparison(
            metrics={}, limits={}, detail=f"shape is {tuple(output.shape)}, must be {tuple(truth.shape)}"
        )
    if output.is_floating_point():
        return Comparison(metrics={}, limits={}, detail=f"dtype is {output.dtype}, must be an integer's")
    wrong = torch.stack([output != answer for answer in legal]).all(0)
    share = wrong.double().mean().item() if wrong.numel() else 0.0
    detail = ""
    if share:
        detail = f"wrong_elements is {share:.3g}, limit 0; first at {tuple(wrong.nonzero()[0].tolist())}"
    return Comparison(metrics={"wrong_elements": share}, limits={"wrong_elements": 0.0}, detail=detail)


def _nudged(inputs: Inputs, seed: int) -> Inputs:
    """The inputs with every value moved by up to two units in its last place."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        nudged(tensor, generator) if tensor is not None and tensor.is_floating_point() else tensor
        for tensor in inputs
    )


def _frozen(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


def _sha256(arrays: Sequence[np.ndarray | None]) -> str:
    state = hashlib.sha256()
    for array in arrays:
        if array is None:
            state.update(b"None")
            continue
        state.update(f"{array.dtype}{array.shape}".encode())
        data = array.view(np.int16) if array.dtype == ml_dtypes.bfloat16 else array
        state.update(np.ascontiguousarray(data).tobytes())
    return state.hexdigest()


_threads = Lock()
_inside = 0
_threads_outside = 0


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """torch on one thread, so that several graders side by side do not fight; the last one out restores the number."""
    global _inside, _threads_outside
    with _threads:
        if not _inside:
            _threads_outside = torch.get_num_threads()
            torch.set_num_threads(1)
        _inside += 1
    try:
        yield
    finally:
        with _threads:
            _inside -= 1
            if not _inside:
                torch.set_num_threads(_threads_outside)
