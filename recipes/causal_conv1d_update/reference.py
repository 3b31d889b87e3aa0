"""What causal_conv1d_update computes, in plain torch."""

import torch
from torch.nn import functional


def causal_conv1d_update(
    x: torch.Tensor,
    state: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    silu: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """x [B, C, 1], state [B, C, L], weight [C, K], bias [C] or none. Returns the result [B, C, 1] and the new state."""
    channels, taps = weight.shape
    recent = torch.cat((state, x), dim=-1)
    out = functional.conv1d(recent[..., -taps:], weight.unsqueeze(1), bias, groups=channels)
    return (functional.silu(out) if silu else out), recent[..., 1:]
