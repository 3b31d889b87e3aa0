"""What linear computes, in plain torch."""

import torch
from torch.nn import functional


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [T, K] times weight [K, N], plus bias [N] if there is one. Returns [T, N]."""
    return functional.linear(x, weight.t(), bias)
