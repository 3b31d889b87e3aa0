"""What depthwise_conv computes, in plain torch."""

import torch
from torch.nn import functional


def depthwise_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride_y: int = 1,
    stride_x: int = 1,
    padding_y: int = 0,
    padding_x: int = 0,
    dilation_y: int = 1,
    dilation_x: int = 1,
) -> torch.Tensor:
    """x [B, C, H, W], weight [C, R, S], bias [C] or none. Returns [B, C, M, N]."""
    return functional.conv2d(
        x,
        weight.unsqueeze(1),
        bias,
        stride=(stride_y, stride_x),
        padding=(padding_y, padding_x),
        dilation=(dilation_y, dilation_x),
        groups=x.shape[1],
    )
