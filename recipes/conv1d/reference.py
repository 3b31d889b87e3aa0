"""What conv1d computes, in plain torch."""

import torch
from torch.nn import functional


def conv1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> torch.Tensor:
    """x [B, C, L], weight [C / groups, K, O], bias [O] or none. Returns [B, O, N]."""
    return functional.conv1d(x, weight.permute(2, 0, 1), bias, stride, padding, dilation, groups)
