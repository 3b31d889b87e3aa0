"""Judges an output against the truth, in units of the dtype's own noise. There is no constant absolute tolerance.

Two contracts, after the noise that they measure against:

* float32: the truth is the layer's own forward in float64. Its forward in float32 shows the noise that is legal;
  a kernel sums in another order and gets four times that, with a floor of what rounding alone explains.
* 16 bit: the truth is the layer in float32 on the same rounded inputs. The layer's own 16-bit forward shows the
  legal noise; the kernel's error divided by it is the R-ratio, which must stay below 1.2.

One forward may be lucky: with few outputs and a nearly one-hot softmax its error can be a fortieth of the usual. So
the errors that the layer's own forward makes on neighbouring inputs count as legal too (`alternatives`): the same
rounding, other luck.

Both contracts also bound the worst 128-row slice, because one wrong tile is invisible in a global norm, and require that
non-finite values stand exactly where the truth has them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

ROWS_PER_SLICE = 128
SLICE_ALLOWANCE = 4.0  # a slice's noise scatters more than the whole tensor's
FLOAT32_ALLOWANCE = 4.0  # orders of summation differ; measured spread between legal orders is below 3
# Of a sabotage's error to the legal noise, by contract: beyond what each allows (float32: FLOAT32_ALLOWANCE).
TELLING_RATIO = {"float32": 5.0, "16 bit": 3.0}
EPSILON = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Figures, their limits, and a sentence on the first that is broken (empty when all hold)."""

    metrics: dict[str, float]
    limits: dict[str, float]
    detail: str

    @property
    def passed(self) -> bool:
        return not self.detail


def compare(
    candidate: torch.Tensor,
    truth: torch.Tensor,
    baseline: torch.Tensor,
    *,
    alternatives: Sequence[torch.Tensor] = (),
    reduction_length: int = 1,
    r_ratio_limit: float = 1.2,
) -> Comparison:
    """Compare a kernel's output with the truth.

    Args:
        candidate: the kernel's output, in the contract's dtype.
        truth: float64 (float32 contract) or float32 (16-bit contract), same shape.
        baseline: the layer's own output in the contract's dtype: it shows the noise that is legal.
        alternatives: other legal answers, in any dtype.
        reduction_length: over how many terms the kernel sums; rounding noise grows with its square root.
    """
    if baseline.is_complex():  # a table of rotations: its parts are numbers like others
        candidate, truth, baseline, *alternatives = map(_parts, (candidate, truth, baseline, *alternatives))
    problem = _different_form(candidate, truth, baseline.dtype)
    if problem:
        return Comparison(metrics={}, limits={}, detail=problem)
    if not baseline.is_floating_point():
        return _whole_numbers(candidate, (truth, baseline, *alternatives))
    finite = torch.isfinite(truth)
    exact = torch.where(finite, truth, 0).double()
    error = torch.where(finite, candidate.double() - truth.double(), 0)
    legal = (baseline, *alternatives)
    noises = [torch.where(finite, answer.double() - truth.double(), 0) for answer in legal]
    noise = max(noises, key=_norm)
    if baseline.dtype is torch.float32:
        metrics, limits = _float32_contract(error, noise, exact, reduction_length)
    else:
        metrics, limits = _r_ratio_contract(error, noise, exact, baseline.dtype, r_ratio_limit)
    in_float32 = baseline.dtype is torch.float32
    least = 0.0 if in_float32 else 0.25 * EPSILON[baseline.dtype]
    metrics["legal_l2"] = max(_ratio(_norm(noise), _norm(exact)), least)
    metrics["telling_l2"] = TELLING_RATIO["float32" if in_float32 else "16 bit"] * metrics["legal_l2"]
    metrics["max_abs"] = error.abs().max().item() if error.numel() else 0.0
    broken = [name for name, limit in limits.items() if not metrics[name] <= limit]
    detail = ""
    if broken:
        name = broken[0]
        detail = f"{name} is {metrics[name]:.3g}, limit {limits[name]:.3g}; worst at {_worst_place(error)}"
    return Comparison(metrics=metrics, limits=limits, detail=detail)


def _parts(tensor: torch.Tensor) -> torch.Tensor:
    """Real and imaginary parts along a last axis of their own."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _different_form(candidate: torch.Tensor, truth: torch.Tensor, dtype: torch.dtype) -> str:
    if candidate.shape != truth.shape:
        return f"shape is {tuple(candidate.shape)}, must be {tuple(truth.shape)}"
    if candidate.dtype is not dtype:
        return f"dtype is {candidate.dtype}, must be {dtype}"
    differs = torch.isfinite(candidate) != torch.isfinite(truth)
    if differs.any():
        place = tuple(differs.nonzero()[0].tolist())
        return f"{int(differs.sum())} elements are non-finite where the truth is not (or the reverse), first at {place}"
    return ""


def _whole_numbers(candidate: torch.Tensor, legal: Sequence[torch.Tensor]) -> Comparison:
    """Integers have no noise: each must be one that the layer itself gives, here or on neighbouring inputs.

    Where two scores are nearly tied, rounding decides which of them a top-k finds first.
    """
    agrees = torch.stack([answer.to(candidate.dtype) == candidate for answer in legal]).any(dim=0)
    wrong = int((~agrees).sum())
    detail = f"{wrong} integers differ, first at {tuple((~agrees).nonzero()[0].tolist())}" if wrong else ""
    return Comparison(metrics={"different": float(wrong)}, limits={"different": 0.0}, detail=detail)


def _float32_contract(
    error: torch.Tensor, noise: torch.Tensor, exact: torch.Tensor, reduction_length: int
) -> tuple[dict[str, float], dict[str, float]]:
    size = _norm(exact)
    root = math.sqrt(reduction_length)
    # What rounding every term of a sum once explains: eps/2 per term, added up in quadrature, on top of one ulp.
    floor = EPSILON[torch.float32] * (1 + root / 2)
    rms = size / math.sqrt(max(exact.numel(), 1))
    l2_limit = max(FLOAT32_ALLOWANCE * _ratio(_norm(noise), size), floor)
    # The worst of few elements is a draw: one honest softmax of a thousand came to 1.04 of the allowance alone.
    element_limit = 1.5 * FLOAT32_ALLOWANCE * max(_max(noise), floor * max(rms, _max(exact) / 8))
    metrics = {
        "relative_l2": _ratio(_norm(error), size),
        "worst_slice": _worst_slice(error, exact),
        "max_error_in_limits": _ratio(_max(error), element_limit),
    }
    return metrics, {
        "relative_l2": l2_limit,
        "worst_slice": max(SLICE_ALLOWANCE * l2_limit, FLOAT32_ALLOWANCE * _worst_slice(noise, exact)),
        "max_error_in_limits": 1.0,
    }


def _r_ratio_contract(
    error: torch.Tensor, noise: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype, r_ratio_limit: float
) -> tuple[dict[str, float], dict[str, float]]:
    size = _norm(exact)
    # One rounding of a uniform mantissa leaves 0.19 eps in relative L2; a baseline may be exact by luck.
    floor = 0.25 * EPSILON[dtype]
    legal = max(_ratio(_norm(noise), size), floor)
    slice_limit = SLICE_ALLOWANCE * max(legal, _worst_slice(noise, exact))
    metrics = {
        "r_ratio": _ratio(_norm(error), size) / legal,
        "worst_slice": _worst_slice(error, exact),
        "relative_l2": _ratio(_norm(error), size),
    }
    return metrics, {"r_ratio": r_ratio_limit, "worst_slice": slice_limit}


def _worst_slice(error: torch.Tensor, exact: torch.Tensor) -> float:
    """The largest relative L2 error of any 128 consecutive rows (all axes but the last are rows).

    Slices that are tiny beside the whole (padding, masked rows) are measured against a tenth of the mean slice.
    """
    rows = error.reshape(-1, error.shape[-1]) if error.ndim > 1 else error.reshape(1, -1)
    truth_rows = exact.reshape(rows.shape)
    errors = torch.stack([part.norm() for part in rows.split(ROWS_PER_SLICE)])
    sizes = torch.stack([part.norm() for part in truth_rows.split(ROWS_PER_SLICE)])
    least = 0.1 * sizes.mean()
    if least == 0:
        return 0.0 if errors.max() == 0 else math.inf
    return (errors / sizes.clamp(min=least.item())).max().item()


def _worst_place(error: torch.Tensor) -> tuple[int, ...]:
    return tuple(int(index) for index in torch.unravel_index(error.abs().argmax(), error.shape))


def _norm(tensor: torch.Tensor) -> float:
    return tensor.norm().item()


def _max(tensor: torch.Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() else 0.0


def _ratio(part: float, whole: float) -> float:
    if whole == 0:
        return 0.0 if part == 0 else math.inf
    return part / whole


def shifted(
    truths: Sequence[torch.Tensor],
    truths_nearby: Sequence[torch.Tensor],
    baselines_nearby: Sequence[torch.Tensor],
) -> list[torch.Tensor]:
    """The truth with the errors that a forward made on neighbouring inputs: another legal answer."""
    return [
        truth + (answer.to(truth.dtype) - exact)
        for truth, exact, answer in zip(truths, truths_nearby, baselines_nearby, strict=True)
    ]


def is_telling(comparison: Comparison) -> bool:
    """Whether a sabotage stands out of the legal noise at all.

    Where a layer's own rounding loses more than 1 %, a 2 % error is no error. Zeros, echoes and shuffles are wrong by
    all of the output's size, and tell nearly always.
    """
    if "telling_l2" not in comparison.metrics:  # it has another form than the truth, or is integers
        return True
    return comparison.metrics["relative_l2"] > comparison.metrics["telling_l2"]


def sabotages(truth: torch.Tensor, inputs: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
    """Wrong outputs that a sound comparison must refuse, those that differ from the truth at all."""
    wrong = {
        "zeros": torch.zeros_like(truth),
        "shuffled": truth.flatten().roll(1).reshape(truth.shape),
        "scaled by 1.02": truth * 1.02,
    }
    if truth.ndim > 1 and truth.shape[0] * truth.shape[-2] > 1:
        dropped = truth.clone().reshape(-1, truth.shape[-1])
        dropped[-1] = 0
        wrong["dropped row"] = dropped.reshape(truth.shape)
    for number, tensor in enumerate(inputs):
        if tensor.is_floating_point() and tensor.numel() == truth.numel():
            wrong[f"echo of input {number}"] = tensor.to(truth.dtype).reshape(truth.shape)
    return {name: tensor for name, tensor in wrong.items() if not torch.equal(tensor, truth)}
