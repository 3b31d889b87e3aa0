"""What causal_conv1d computes, in plain torch."""

import torch
from torch.nn import functional


def causal_conv1d(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, silu: bool = False
) -> torch.Tensor:
    """x [B, C, S], weight [C, K], bias [C] or none. Returns [B, C, S]: zeros come before each sequence."""
    channels, taps = weight.shape
    out = functional.conv1d(x, weight.unsqueeze(1), bias, padding=taps - 1, groups=channels)[
        ..., : x.shape[-1]
    ]
    return functional.silu(out) if silu else out
