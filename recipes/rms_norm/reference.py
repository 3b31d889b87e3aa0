"""What rms_norm computes, in plain torch, with the casts of transformers' layers.

A gain w multiplies what was rounded to the dtype of x (LlamaRMSNorm); a gain 1 + w multiplies in float32, and the
product is rounded (GemmaRMSNorm).
"""

import torch


def rms_norm(x: torch.Tensor, gamma: torch.Tensor | None, eps: float, offset: float = 0.0) -> torch.Tensor:
    """Normalise rows of x [T, H] in float32 and scale by offset + gamma [H]. Returns [T, H]."""
    x_float = x.to(torch.promote_types(x.dtype, torch.float32))
    normal = x_float * torch.rsqrt(x_float.pow(2).mean(-1, keepdim=True) + eps)
    if gamma is None:
        return normal.to(x.dtype)
    if offset == 0.0:
        return gamma * normal.to(x.dtype)
    return (normal * (offset + gamma.to(x_float.dtype))).to(x.dtype)
