"""What conv2d computes, in plain torch."""

import torch
from torch.nn import functional


def conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride_y: int = 1,
    stride_x: int = 1,
    padding_y: int = 0,
    padding_x: int = 0,
    dilation_y: int = 1,
    dilation_x: int = 1,
    groups: int = 1,
) -> torch.Tensor:
    """x [B, C, H, W], weight [C / groups, R, S, O], bias [O] or none. Returns [B, O, M, N]."""
    return functional.conv2d(
        x,
        weight.permute(3, 0, 1, 2),
        bias,
        stride=(stride_y, stride_x),
        padding=(padding_y, padding_x),
        dilation=(dilation_y, dilation_x),
        groups=groups,
    )
