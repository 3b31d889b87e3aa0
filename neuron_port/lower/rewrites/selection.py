"""Choosing, placing and finding elements by masks and by comparison, with shapes that do not depend on data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from neuron_port.lower.rewrites.table import rewrites

aten = torch.ops.aten


@rewrites(aten.masked_scatter.default)
def masked_scatter(x: torch.Tensor, mask: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """x with the elements under the mask replaced by those of the source, in order.

    A mask that is the same along the last axis (an image's embeddings take the place of its tokens) moves rows.
    """
    x, mask = torch.broadcast_tensors(x, mask)
    width = x.shape[-1] if x.dim() else 1
    rows = x.dim() > 1 and mask.stride(-1) == 0 and source.dim() > 1 and source.shape[-1] == width
    chosen = mask[..., 0] if rows else mask
    flat = chosen.reshape(-1)
    order = (flat.to(torch.int32).cumsum(0) - 1).clamp(min=0)
    taken = source.reshape(-1, width)[order] if rows else source.reshape(-1)[order]
    return torch.where(mask, taken.reshape(x.shape), x)


@rewrites(aten.index_put.default)
def index_put(
    x: torch.Tensor, indices: Sequence[torch.Tensor | None], values: torch.Tensor, accumulate: bool = False
) -> Any:
    """x[mask] = values without a shape that depends on the mask; integer positions are left to the lowering."""
    masks = [item for item in indices if item is not None and item.dtype == torch.bool]
    if not masks or len(indices) != 1 or accumulate:
        return NotImplemented
    mask = masks[0].reshape(*masks[0].shape, *[1] * (x.dim() - masks[0].dim())).expand(x.shape)
    if all(isinstance(size, int) and size == 1 for size in values.shape):
        return torch.where(mask, values.to(x.dtype), x)
    return masked_scatter(x, mask, values)


@rewrites(aten.searchsorted.Tensor)
def searchsorted(
    boundaries: torch.Tensor,
    x: torch.Tensor,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: torch.Tensor | None = None,
) -> Any:
    """How many boundaries lie below each element (right: at most as high)."""
    if sorter is not None:
        return NotImplemented
    right = right or side == "right"
    limits = boundaries if boundaries.dim() == 1 else boundaries.unsqueeze(-2)
    below = limits <= x.unsqueeze(-1) if right else limits < x.unsqueeze(-1)
    return below.sum(-1, dtype=torch.int32 if out_int32 else torch.int64)


@rewrites(aten.bucketize.Tensor)
def bucketize(
    x: torch.Tensor, boundaries: torch.Tensor, *, out_int32: bool = False, right: bool = False
) -> Any:
    return searchsorted(boundaries, x, out_int32=out_int32, right=right)


@rewrites(aten.kthvalue.default)
def kthvalue(
    x: torch.Tensor, k: int, dim: int = -1, keepdim: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    values, indices = torch.sort(x, dim=dim, stable=True)
    found = values.narrow(dim, k - 1, 1), indices.narrow(dim, k - 1, 1)
    return found if keepdim else (found[0].squeeze(dim), found[1].squeeze(dim))


@rewrites(aten.median.dim)
def median(x: torch.Tensor, dim: int, keepdim: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """The lower of the two in the middle."""
    return kthvalue(x, (x.shape[dim] + 1) // 2, dim, keepdim)


@rewrites(aten.median.default)
def median_of_all(x: torch.Tensor) -> torch.Tensor:
    return median(x.reshape(-1), 0)[0]


@rewrites(aten.diagonal.default)
def diagonal(x: torch.Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> torch.Tensor:
    """The diagonal of two axes, last in the result; one element of each row is kept and the others added as zero."""
    moved = x.movedim((dim1, dim2), (-2, -1))
    rows, columns = moved.shape[-2:]
    first_row, first_column = max(0, -offset), max(0, offset)
    length = max(0, min(rows - first_row, columns - first_column))
    part = moved[..., first_row : first_row + length, first_column : first_column + length]
    same = torch.eye(length, dtype=torch.bool, device=x.device)
    kept = torch.where(same, part, torch.zeros((), dtype=x.dtype, device=x.device))
    return kept.any(-1) if x.dtype == torch.bool else kept.sum(-1, dtype=x.dtype)


@rewrites(aten.prod.default)
def prod_of_all(x: torch.Tensor, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    return torch.prod(x.reshape(math.prod(x.shape)), 0, dtype=dtype)


@rewrites(aten.scatter_reduce.two)
def scatter_mean(
    x: torch.Tensor,
    dim: int,
    index: torch.Tensor,
    source: torch.Tensor,
    reduce: str,
    *,
    include_self: bool = True,
) -> Any:
    """The mean as a sum over a count; the other reductions are left to the lowering."""
    if reduce != "mean":
        return NotImplemented
    ones = torch.ones_like(source, dtype=torch.float32)
    started = torch.full_like(x, float(include_self), dtype=torch.float32)
    count = started.scatter_add(dim, index, ones)
    total = torch.where(started > 0, x, 0.0) if include_self else torch.zeros_like(x)
    total = total.scatter_add(dim, index, source)
    return torch.where(count > 0, total / count.clamp(min=1.0), x).to(x.dtype)
