"""What layer_norm computes, in plain torch: in float32, rounded once, as torch's own layer_norm does on every device."""

import torch


def layer_norm(
    x: torch.Tensor, gamma: torch.Tensor | None, beta: torch.Tensor | None, eps: float, offset: float = 0.0
) -> torch.Tensor:
    """Normalise rows of x [T, H], scale by offset + gamma [H] and shift by beta [H]. Returns [T, H]."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    x_float = x.to(dtype)
    centred = x_float - x_float.mean(-1, keepdim=True)
    out = centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + eps)
    if gamma is not None:
        out = out * (offset + gamma.to(dtype))
    if beta is not None:
        out = out + beta.to(dtype)
    return out.to(x.dtype)
