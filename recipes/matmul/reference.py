"""What matmul computes, in plain torch."""

import torch


def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a [Z or 1, M, K] times b [Z or 1, K, N] at the same place. Returns [Z, M, N]."""
    return torch.matmul(a, b)
