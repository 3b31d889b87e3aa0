"""The products of a mixture of experts, without shapes that depend on the routing.

Every row is multiplied with every expert's weight and one product is kept: experts x the necessary work, but static.
A mixture that should be fast is covered by a recipe; this is what stands behind it.
S = rows sorted by expert, E = experts, K, N = sizes of a weight.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers.integrations.moe  # noqa: F401 (defines transformers::grouped_mm_fallback)

from neuron_port.lower.rewrites.table import rewrites

aten = torch.ops.aten


@rewrites(torch.ops.transformers.grouped_mm_fallback.default)
def grouped_mm_fallback(x_SK: torch.Tensor, weight_EKN: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
    """Row s times the weight of the expert e with ends[e - 1] <= s < ends[e]; rows beyond the last end are zero."""
    products_ESN = torch.matmul(x_SK.unsqueeze(0), weight_EKN)
    rows_S = torch.arange(x_SK.shape[0], device=x_SK.device, dtype=ends_E.dtype)
    starts_E = torch.nn.functional.pad(ends_E[:-1], (1, 0))
    mine_ES = (rows_S >= starts_E[:, None]) & (rows_S < ends_E[:, None])
    return torch.where(mine_ES[:, :, None], products_ESN, 0.0).sum(0).to(x_SK.dtype)


@rewrites(aten._grouped_mm.default)
def grouped_mm(
    x: torch.Tensor,
    weight: torch.Tensor,
    offs: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Any:
    """The form with rows in groups and a weight for each; others are left as they are and refused by name."""
    if offs is None or bias is not None or (x.dim(), weight.dim()) != (2, 3):
        return NotImplemented
    return grouped_mm_fallback(x, weight, offs).to(out_dtype or x.dtype)


@rewrites(aten.histc.default)
def histc(x: torch.Tensor, bins: int = 100, min: float = 0, max: float = 0) -> Any:
    """How many elements lie in each of `bins` equal intervals of [min, max]; the last one includes its end."""
    if min >= max:
        return NotImplemented  # torch then takes the range from the data
    flat = x.reshape(-1, 1)
    number = torch.floor((flat - min) * (bins / (max - min))).clamp(max=bins - 1)
    inside = (flat >= min) & (flat <= max)
    hits = (number == torch.arange(bins, device=x.device, dtype=x.dtype)) & inside
    return hits.to(x.dtype).sum(0)
