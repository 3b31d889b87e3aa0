"""What pool2d computes, in plain torch."""

import torch
from torch.nn import functional


def pool2d(
    x: torch.Tensor,
    maximum: bool,
    window_y: int,
    window_x: int,
    stride_y: int,
    stride_x: int,
    padding_y: int,
    padding_x: int,
    ceil: bool,
    count_padding: bool,
) -> torch.Tensor:
    """x [B, C, H, W]. Returns the maximum, or the mean, of each window: [B, C, M, N]."""
    window, stride, padding = (window_y, window_x), (stride_y, stride_x), (padding_y, padding_x)
    if maximum:
        return functional.max_pool2d(x, window, stride, padding, ceil_mode=ceil)
    if window == x.shape[2:] and padding == (0, 0):  # one window: a mean is easier to lower than a pooling
        return x.mean((2, 3), keepdim=True)
    return functional.avg_pool2d(x, window, stride, padding, ceil_mode=ceil, count_include_pad=count_padding)
