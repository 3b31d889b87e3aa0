"""Running products, maxima and sums of exponentials: log2(n) steps of an axis shifted against itself."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from neuron_port.lower.rewrites.table import limits, rewrites

aten = torch.ops.aten


def _shifts(x: torch.Tensor, dim: int) -> Iterator[int]:
    step = 1
    while x.dim() and step < x.shape[dim]:
        yield step
        step *= 2


def _before(x: torch.Tensor, dim: int, step: int, fill: float) -> torch.Tensor:
    """x moved `step` places along an axis, `fill` where nothing comes from."""
    edges = [0, 0] * (x.dim() - 1 - dim % x.dim()) + [step, -step]
    return torch.nn.functional.pad(x, edges, value=fill)


@rewrites(aten.cumprod.default)
def cumprod(x: torch.Tensor, dim: int, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    kept = dtype or (x.dtype if x.dtype.is_floating_point else torch.int64)
    total = x.to(torch.float32 if kept.is_floating_point else kept)
    for step in _shifts(x, dim):
        total = total * _before(total, dim, step, 1.0)
    return total.to(kept)


@rewrites(aten.logcumsumexp.default)
def logcumsumexp(x: torch.Tensor, dim: int) -> torch.Tensor:
    total = x.to(torch.float32)
    for step in _shifts(x, dim):
        total = torch.logaddexp(total, _before(total, dim, step, torch.finfo(torch.float32).min))
    return total.to(x.dtype)


def _running_extreme(x: torch.Tensor, dim: int, largest: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(the extreme up to each place, where it stands); of equals the last, as torch has it."""
    worst = limits(x.dtype).min if largest else limits(x.dtype).max
    shape = [1] * x.dim()
    if x.dim():
        shape[dim] = x.shape[dim]
    places = torch.arange(x.shape[dim] if x.dim() else 1, device=x.device).reshape(shape).expand(x.shape)
    for step in _shifts(x, dim):
        earlier, earlier_places = _before(x, dim, step, worst), _before(places, dim, step, 0)
        stays = x >= earlier if largest else x <= earlier
        x, places = torch.where(stays, x, earlier), torch.where(stays, places, earlier_places)
    return x, places


@rewrites(aten.cummax.default)
def cummax(x: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    return _running_extreme(x, dim, True)


@rewrites(aten.cummin.default)
def cummin(x: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    return _running_extreme(x, dim, False)
