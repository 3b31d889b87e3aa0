"""What softmax computes, in plain torch."""

import torch


def softmax(x: torch.Tensor) -> torch.Tensor:
    """Softmax of x [T, C] over the last axis, in float32 inside. Returns [T, C] in the dtype of x."""
    return torch.softmax(x, dim=-1)
