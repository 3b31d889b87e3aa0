"""What norm_linear computes, in plain torch, with the casts of transformers' LlamaRMSNorm before a linear layer."""

import torch
from torch.nn import functional


def norm_linear(
    x: torch.Tensor,
    gamma: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    eps: float = 1e-6,
) -> torch.Tensor:
    """Normalise rows of x [T, K] by their root mean square, scale by gamma [K], project by weight [K, N]; plus bias."""
    x_float = x.to(torch.float32) if x.dtype is not torch.float64 else x
    variance = x_float.pow(2).mean(-1, keepdim=True)
    normal = gamma * (x_float * torch.rsqrt(variance + eps)).to(x.dtype)
    return functional.linear(normal, weight.t(), bias)
