"""Attention of one token over a key/value cache in plain torch, with the casts of eager attention."""

import torch


def attention_decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    positions: torch.Tensor,
    bias: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    scale: float = 1.0,
    window_before: int | None = None,
    chunk_size: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Returns [B, Q, E]: each q [B, Q, D] attends to those of the cache slots 0..positions[b] that it sees.

    k_cache is [B, G, D, C], v_cache [B, G, C, E]; biases are [B|1, Q|1, C], sinks [Q].
    """
    batch, query_heads, head_dim = q.shape
    kv_heads, slots = k_cache.shape[1], k_cache.shape[3]
    grouped = q.reshape(batch, kv_heads, query_heads // kv_heads, head_dim)
    scores = (torch.matmul(grouped, k_cache) * scale).reshape(batch, query_heads, slots)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    for added in (bias, position_bias):
        if added is not None:
            scores = scores + added
    slot, here = torch.arange(slots, device=q.device), positions[:, None, None]
    hidden = slot > here
    if window_before is not None:
        hidden = hidden | (here - slot > window_before)
    if chunk_size is not None:
        hidden = hidden | (slot // chunk_size != here // chunk_size)
    scores = scores.masked_fill(hidden, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.reshape(1, query_heads, 1).expand(batch, query_heads, 1)], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype)
    grouped_weights = weights[..., :slots].reshape(batch, kv_heads, query_heads // kv_heads, slots)
    return torch.matmul(grouped_weights, v_cache).reshape(batch, query_heads, -1)
