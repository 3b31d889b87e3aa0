"""Attention of one token over a key/value cache in plain torch, with the casts of eager attention."""

import torch


def attention_decode(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, positions: torch.Tensor, scale: float
) -> torch.Tensor:
    """Returns [B, Q, D]: each q [B, Q, D] attends to cache slots 0..positions[b].

    k_cache is [B, G, D, C], v_cache [B, G, C, D].
    """
    batch, query_heads, head_dim = q.shape
    kv_heads, slots = k_cache.shape[1], k_cache.shape[3]
    grouped = q.reshape(batch, kv_heads, query_heads // kv_heads, head_dim)
    scores = torch.matmul(grouped, k_cache) * scale
    beyond = torch.arange(slots, device=q.device) > positions[:, None, None, None]
    scores = scores.masked_fill(beyond, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    return torch.matmul(weights, v_cache).reshape(batch, query_heads, head_dim)
