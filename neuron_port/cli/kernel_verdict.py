"""The verdict on a kernel's outputs: how far they are from the reference's, and how far they may be, and why.

The reference runs in wider precision for the truth; what it loses when it rounds as the kernel's dtype does is the noise
that is legal (`neuron_port.parity.comparison`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import torch

from neuron_port.cli.kernel_call import KernelError
from neuron_port.cli.kernel_reference import Reference, as_torch
from neuron_port.errors import UsageError
from neuron_port.parity.comparison import EPSILON, compare

# A stranger's reference often computes in float32 and rounds once, where the kernel rounds intermediates too. The
# recipes' own limit, 1.2, is for a baseline that rounds where the kernel does.
NOISE_LIMIT = 4.0
# Between neighbouring values, relative to the smaller: 3 mantissa bits, or 2.
_FLOAT8_STEPS = {
    np.dtype(ml_dtypes.float8_e4m3): 2.0**-3,
    np.dtype(ml_dtypes.float8_e4m3fn): 2.0**-3,
    np.dtype(ml_dtypes.float8_e5m2): 2.0**-2,
}
_NAMES = {
    torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16", torch.float16: "float16",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OutputVerdict:
    """How one output compares with the reference's; `explanation` says what the limit is made of."""

    index: int
    max_abs: float
    max_relative: float  # of the elements that are at least a thousandth of the largest
    cosine: float
    relative_l2: float
    passed: bool
    detail: str  # which limit is broken; empty when passed
    explanation: str


def judge(
    outputs: Sequence[np.ndarray],
    reference: Reference,
    arguments: Mapping[str, Any],
    tolerance: tuple[float, float] | None,
) -> list[OutputVerdict]:
    """Compare every output with the reference's.

    Args:
        tolerance: (relative, absolute) for each element; None for a limit in units of the dtype's own noise.

    Raises:
        KernelError: the reference fails, or has fewer outputs than the kernel.
    """
    candidates = [as_torch(output) for output in outputs]
    wide = torch.float64 if any(output.dtype is torch.float32 for output in candidates) else torch.float32
    truths = reference.answers(arguments, wide)
    if len(truths) < len(candidates):
        raise KernelError(
            f"Reference `{reference.name}` returns {len(truths)} outputs, the kernel {len(candidates)}",
            hint="Return a tuple with one array for each output of the kernel.",
        )
    # A NumPy reference has no 16-bit arithmetic worth the name: what it loses is the one rounding at the end.
    as_given = reference.answers(arguments, None) if reference.framework == "torch" else truths
    return [
        _judge_one(
            index,
            candidate,
            truths[index],
            as_given[index].to(candidate.dtype),
            tolerance,
            _FLOAT8_STEPS.get(outputs[index].dtype),
            _longest_sum(arguments),
        )
        for index, candidate in enumerate(candidates)
    ]


def _judge_one(
    index: int,
    candidate: torch.Tensor,
    truth: torch.Tensor,
    baseline: torch.Tensor,
    tolerance: tuple[float, float] | None,
    float8_step: float | None,
    longest_sum: int,
) -> OutputVerdict:
    figures = _figures(candidate, truth)
    if tolerance is not None:
        passed, detail, explanation = _by_tolerance(candidate, truth, tolerance)
    elif float8_step is not None:
        passed, detail, explanation = _by_tolerance(candidate, truth, (float8_step, 0.0))
        explanation = f"one step of the 8-bit float: {explanation}"
    elif candidate.dtype in EPSILON:
        passed, detail, explanation = _by_noise(candidate, truth, baseline, longest_sum)
    else:
        passed, detail = _exactly(candidate, truth)
        explanation = "integers must be equal"
    return OutputVerdict(index=index, passed=passed, detail=detail, explanation=explanation, **figures)


def _figures(candidate: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    """Distances of two outputs; all are NaN where the shapes differ."""
    if candidate.shape != truth.shape:
        return dict.fromkeys(("max_abs", "max_relative", "cosine", "relative_l2"), math.nan)
    finite = torch.isfinite(truth.double()) & torch.isfinite(candidate.double())
    one, other = candidate.double()[finite], truth.double()[finite]
    if one.numel() == 0:
        return {"max_abs": 0.0, "max_relative": 0.0, "cosine": 1.0, "relative_l2": 0.0}
    error = (one - other).abs()
    large = other.abs() >= 1e-3 * other.abs().max()
    relative = (error[large] / other[large].abs()).nan_to_num(nan=0.0, posinf=math.inf)
    norms = one.norm() * other.norm()
    cosine = (one @ other / norms).item() if norms > 0 else float(one.norm() == other.norm())
    size = other.norm().item()
    distance = error.norm().item()
    return {
        "max_abs": error.max().item(),
        "max_relative": relative.max().item() if relative.numel() else 0.0,
        "cosine": min(cosine, 1.0),
        "relative_l2": distance / size if size else (0.0 if distance == 0 else math.inf),
    }


def _longest_sum(arguments: Mapping[str, Any]) -> int:
    """The widest axis of the inputs: how many terms a sum may have. Axes of 65536 and more are vocabularies."""
    sizes = [size for value in arguments.values() if isinstance(value, np.ndarray) for size in value.shape]
    return max((size for size in sizes if size < 65536), default=1)


def _by_noise(
    candidate: torch.Tensor, truth: torch.Tensor, baseline: torch.Tensor, longest_sum: int
) -> tuple[bool, str, str]:
    comparison = compare(candidate, truth, baseline, reduction_length=longest_sum, r_ratio_limit=NOISE_LIMIT)
    name = _NAMES[candidate.dtype]
    if not comparison.metrics:
        return False, comparison.detail, f"same shape and finite elements as the reference, in {name}"
    error, legal = comparison.metrics["relative_l2"], comparison.metrics["legal_l2"]
    if candidate.dtype is torch.float32:
        limit = comparison.limits["relative_l2"]
        if limit <= 4.001 * legal:
            why = f"4 x what the reference loses in float32 ({legal:.2g})"
        else:
            why = f"what rounding explains in a sum of {longest_sum} terms"
    else:
        noise = max(legal, 0.25 * EPSILON[candidate.dtype])
        limit = NOISE_LIMIT * noise
        why = f"{NOISE_LIMIT:g} x what the reference loses by rounding to {name} ({noise:.2g})"
    return comparison.passed, comparison.detail, f"relative L2 {error:.2g}, limit {limit:.2g} = {why}"


def _by_tolerance(
    candidate: torch.Tensor, truth: torch.Tensor, tolerance: tuple[float, float]
) -> tuple[bool, str, str]:
    relative, absolute = tolerance
    explanation = f"each element within {absolute:g} + {relative:g} x |reference|"
    if candidate.shape != truth.shape:
        return (
            False,
            f"shape is {tuple(candidate.shape)}, the reference's is {tuple(truth.shape)}",
            explanation,
        )
    one, other = candidate.double(), truth.double()
    same = (one == other) | (torch.isnan(one) & torch.isnan(other))
    outside = ~same & ~((one - other).abs() <= absolute + relative * other.abs())
    count = int(outside.sum())
    if count == 0:
        return True, "", explanation
    excess = torch.where(outside, (one - other).abs() - relative * other.abs(), -math.inf)
    place = tuple(
        int(at) for at in torch.unravel_index(excess.nan_to_num(nan=math.inf).argmax(), excess.shape)
    )
    detail = (
        f"{count} of {one.numel()} elements are outside; "
        f"worst at {place}: {one[place]:.6g}, must be {other[place]:.6g}"
    )
    return False, detail, explanation


def _exactly(candidate: torch.Tensor, truth: torch.Tensor) -> tuple[bool, str]:
    if candidate.shape != truth.shape:
        return False, f"shape is {tuple(candidate.shape)}, the reference's is {tuple(truth.shape)}"
    differs = candidate.double() != truth.double()
    if not differs.any():
        return True, ""
    place = tuple(differs.nonzero()[0].tolist())
    return False, (
        f"{int(differs.sum())} of {candidate.numel()} elements differ, first at {place}: "
        f"{candidate[place].item()}, must be {truth[place].item()}"
    )


def parse_tolerance(text: str | None) -> tuple[float, float] | None:
    """(relative, absolute) from `R` or `R,A`; None for `auto` and for nothing.

    Raises:
        UsageError: neither.
    """
    if text is None or text == "auto":
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
        relative, absolute = numbers if len(numbers) == 2 else (*numbers, 0.0)
    except ValueError:
        raise UsageError(
            f"Tolerance `{text}` is neither auto, a number, nor two",
            hint="For example 1e-2 (relative), or 1e-2,1e-3 (relative, absolute).",
        ) from None
    return relative, absolute
