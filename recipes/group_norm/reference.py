"""What group_norm computes, in plain torch: in float32, rounded once, as torch's own group_norm does."""

import torch


def group_norm(
    x: torch.Tensor, gamma: torch.Tensor | None, beta: torch.Tensor | None, groups: int, eps: float
) -> torch.Tensor:
    """Normalise groups of channels of x [N, C, S], scale and shift channels by gamma, beta [C]. Returns [N, C, S]."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    grouped = x.to(dtype).reshape(x.shape[0], groups, -1)
    centred = grouped - grouped.mean(-1, keepdim=True)
    out = centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + eps)
    out = out.reshape(x.shape)
    if gamma is not None:
        out = out * gamma.to(dtype)[None, :, None]
    if beta is not None:
        out = out + beta.to(dtype)[None, :, None]
    return out.to(x.dtype)
