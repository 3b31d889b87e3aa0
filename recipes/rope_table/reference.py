"""What rope_table computes, in plain torch: the angle is one product of floats, as in transformers' layers."""

import torch


def rope_table(
    positions: torch.Tensor, frequencies: torch.Tensor, scaling: float, layout: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine [T, W] of positions [A, T] times frequencies [A, F], summed over A, times `scaling`."""
    dtype = torch.promote_types(frequencies.dtype, torch.float32)
    angles = (positions.to(dtype)[:, :, None] * frequencies.to(dtype)[:, None, :]).sum(0)
    if layout == "halves":
        angles = torch.cat((angles, angles), dim=-1)
    elif layout == "interleaved":
        angles = torch.stack((angles, angles), dim=-1).flatten(-2)
    return angles.cos() * scaling, angles.sin() * scaling
