"""What residual_add computes, in plain torch."""

import torch


def residual_add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Sum of two activations. x, y: [T, H] of one dtype. Returns [T, H]."""
    return x + y
