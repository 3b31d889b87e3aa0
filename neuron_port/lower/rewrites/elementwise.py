"""Functions of one number in terms of exp, log, sqrt and atan2, in forms that keep small arguments exact."""

from __future__ import annotations

import math

import torch

from neuron_port.lower.rewrites.table import rewrites

aten = torch.ops.aten


def _floating(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype.is_floating_point else x.to(torch.float32)


@rewrites(aten.sinh.default)
def sinh(x: torch.Tensor) -> torch.Tensor:
    grown = torch.expm1(_floating(x).abs())
    return torch.sign(x) * (grown + grown / (grown + 1)) * 0.5


@rewrites(aten.cosh.default)
def cosh(x: torch.Tensor) -> torch.Tensor:
    grown = torch.exp(_floating(x).abs())
    return grown * 0.5 + 0.5 / grown


@rewrites(aten.asinh.default)
def asinh(x: torch.Tensor) -> torch.Tensor:
    size = _floating(x).abs()
    square = size * size
    return torch.sign(x) * torch.log1p(size + square / (torch.sqrt(square + 1) + 1))


@rewrites(aten.acosh.default)
def acosh(x: torch.Tensor) -> torch.Tensor:
    beyond = _floating(x) - 1
    return torch.log1p(beyond + torch.sqrt(beyond * (beyond + 2)))


@rewrites(aten.atanh.default)
def atanh(x: torch.Tensor) -> torch.Tensor:
    x = _floating(x)
    return 0.5 * (torch.log1p(x) - torch.log1p(-x))


@rewrites(aten.atan.default)
def atan(x: torch.Tensor) -> torch.Tensor:
    x = _floating(x)
    return torch.atan2(x, torch.ones_like(x))


@rewrites(aten.asin.default)
def asin(x: torch.Tensor) -> torch.Tensor:
    x = _floating(x)
    return torch.atan2(x, torch.sqrt((1 - x) * (1 + x)))


@rewrites(aten.acos.default)
def acos(x: torch.Tensor) -> torch.Tensor:
    x = _floating(x)
    return torch.atan2(torch.sqrt((1 - x) * (1 + x)), x)


@rewrites(aten.erfc.default)
def erfc(x: torch.Tensor) -> torch.Tensor:
    return 1 - torch.erf(x)


@rewrites(aten.hypot.default)
def hypot(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The length of (x, y), by the larger side: squares of large numbers would overflow."""
    x, y = x.abs(), y.abs()
    longer = torch.maximum(x, y)
    ratio = torch.where(longer > 0, torch.minimum(x, y) / longer, 0.0)
    return longer * torch.sqrt(1 + ratio * ratio)


@rewrites(aten.log10.default)
def log10(x: torch.Tensor) -> torch.Tensor:
    return torch.log(_floating(x)) * (1 / math.log(10))


@rewrites(aten.fmax.default)
def fmax(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The larger one; where one is no number, the other."""
    return torch.where(torch.isnan(x), y, torch.where(torch.isnan(y), x, torch.maximum(x, y)))


@rewrites(aten.fmin.default)
def fmin(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.isnan(x), y, torch.where(torch.isnan(y), x, torch.minimum(x, y)))


@rewrites(aten.round.decimals)
def round_decimals(x: torch.Tensor, *, decimals: int) -> torch.Tensor:
    factor = 10.0 ** abs(decimals)
    return torch.round(x * factor) / factor if decimals > 0 else torch.round(x / factor) * factor


@rewrites(aten.addbmm.default)
def addbmm(
    x: torch.Tensor, left: torch.Tensor, right: torch.Tensor, *, beta: float = 1, alpha: float = 1
) -> torch.Tensor:
    return beta * x + alpha * torch.bmm(left, right).sum(0)


@rewrites(aten._cdist_forward.default)
def cdist(left: torch.Tensor, right: torch.Tensor, p: float, mode: int | None) -> torch.Tensor:
    """[.., M, K], [.., N, K] -> [.., M, N]."""
    return torch.linalg.vector_norm(left.unsqueeze(-2) - right.unsqueeze(-3), p, -1)


@rewrites(aten._trilinear.default)
def trilinear(
    first: torch.Tensor,
    second: torch.Tensor,
    third: torch.Tensor,
    expand1: list[int],
    expand2: list[int],
    expand3: list[int],
    sumdim: list[int],
    unroll_dim: int = 1,
) -> torch.Tensor:
    """The product of three tensors, each with the named axes inserted, summed over `sumdim`."""
    for axes, number in ((expand1, 0), (expand2, 1), (expand3, 2)):
        for axis in sorted(axes):
            first, second, third = (
                tensor.unsqueeze(axis) if index == number else tensor
                for index, tensor in enumerate((first, second, third))
            )
    return (first * second * third).sum(sumdim)
