"""What layer_scale computes, in plain torch."""

import torch


def layer_scale(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Multiply each feature of x [T, H] by its factor, scale [H]. Returns [T, H]."""
    return x * scale
