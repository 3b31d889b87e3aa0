"""What batch_norm computes, in plain torch: in float32, rounded once, as torch's own batch_norm does in eval mode."""

import torch


def batch_norm(
    x: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    gamma: torch.Tensor | None,
    beta: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    """Normalise channels of x [N, C, S] by the statistics [C] of training. Returns [N, C, S]."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    scale = torch.rsqrt(variance.to(dtype) + eps)
    if gamma is not None:
        scale = scale * gamma.to(dtype)
    out = (x.to(dtype) - mean.to(dtype)[None, :, None]) * scale[None, :, None]
    if beta is not None:
        out = out + beta.to(dtype)[None, :, None]
    return out.to(x.dtype)
