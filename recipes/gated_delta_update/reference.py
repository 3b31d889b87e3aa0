"""One token through the gated delta rule in plain torch, with the casts of transformers' own function."""

import torch

NORM_EPSILON = 1e-6


def gated_delta_update(
    state: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    normalize: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns out [B, H, E] in the dtype of q, and the new state [B, H, D, E] in that of state.

    q and k are [B, K, D], v [B, H, E], g and beta [B, H].
    """
    dtype, wide = q.dtype, torch.promote_types(q.dtype, torch.float32)
    share = v.shape[1] // k.shape[1]
    q, k = q.to(wide).repeat_interleave(share, 1), k.to(wide).repeat_interleave(share, 1)
    if normalize:
        q = q * torch.rsqrt((q * q).sum(-1, keepdim=True) + NORM_EPSILON)
        k = k * torch.rsqrt((k * k).sum(-1, keepdim=True) + NORM_EPSILON)
    q = q * q.shape[-1] ** -0.5
    decayed = state.to(wide) * torch.exp(g.to(wide))[..., None, None]
    known = (k[:, :, None] @ decayed).squeeze(2)
    written = (v.to(wide) - known) * beta.to(wide)[..., None]
    new = decayed + k[..., None] * written[:, :, None]
    out = (q[:, :, None] @ new).squeeze(2)
    return out.to(dtype), new.to(state.dtype)
