"""What matmul computes, in plain torch."""

import torch


def matmul(a: torch.Tensor, b: torch.Tensor, wide: bool = False) -> torch.Tensor:
    """a [Z or 1, M, K] times b [Z or 1, K, N] at the same place. Returns [Z, M, N]; of 16-bit ones in float32 if wide."""
    if wide and a.dtype.itemsize < 4:
        return torch.matmul(a.float(), b.float())
    return torch.matmul(a, b)
