"""What rms_norm computes, in plain torch, with the casts of transformers' LlamaRMSNorm."""

import torch


def rms_norm(x: torch.Tensor, gamma: torch.Tensor, eps: float) -> torch.Tensor:
    """Normalise rows of x [T, H] in float32, round to the dtype of x, scale by gamma [H]. Returns [T, H]."""
    x_float = x.to(torch.float32)
    variance = x_float.pow(2).mean(-1, keepdim=True)
    return gamma * (x_float * torch.rsqrt(variance + eps)).to(x.dtype)
