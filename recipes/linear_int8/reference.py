"""What linear_int8 computes, in plain torch, with the casts of torchao's weight-only int8."""

import torch


def linear_int8(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """x [T, K] times int8 weight [K, N], times scale [N], plus bias [N] if there is one. Returns [T, N]."""
    scaled = torch.matmul(x, weight.to(x.dtype)) * scale
    return (scaled if bias is None else scaled + bias).to(x.dtype)
