"""Absorbed latent attention of one token over a compressed cache in plain torch, rounding where the kernel rounds."""

import torch


def mla_decode(
    q_nope: torch.Tensor,
    q_rope: torch.Tensor,
    latent_cache: torch.Tensor,
    rope_cache: torch.Tensor,
    key_up: torch.Tensor,
    value_up: torch.Tensor,
    positions: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Returns [B, Q, E]: q_nope [B, Q, N] and q_rope [B, Q, P] attend to slots 0..positions[b].

    latent_cache is [B, C, R], rope_cache [B, C, P], key_up [N, Q, R], value_up [R, Q, E].
    """
    latent_q = torch.einsum("bqn,nqr->bqr", q_nope, key_up)
    scores = torch.matmul(latent_q, latent_cache.transpose(1, 2))
    scores = (scores + torch.matmul(q_rope, rope_cache.transpose(1, 2))) * scale
    slot = torch.arange(latent_cache.shape[1], device=q_nope.device)
    scores = scores.masked_fill(slot > positions[:, None, None], float("-inf"))
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(q_nope.dtype, torch.float32))
    means = torch.matmul(weights.to(q_nope.dtype), latent_cache)
    return torch.einsum("bqr,rqe->bqe", means, value_up)
