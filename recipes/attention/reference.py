"""Attention over whole sequences in plain torch, with the casts of transformers' eager attention."""

import torch


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    scale: float = 1.0,
    is_causal: bool = True,
    window_before: int | None = None,
    window_after: int | None = None,
    chunk_size: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Returns [B, S, Q, E] for q [B, S, Q, D], k [B, C, G, D] and v [B, C, G, E]; biases are [B|1, Q|1, S|1, C]."""
    queries, query_heads, keys = q.shape[1], q.shape[2], k.shape[1]
    group = query_heads // k.shape[2]
    key = k.transpose(1, 2).repeat_interleave(group, dim=1)
    value = v.transpose(1, 2).repeat_interleave(group, dim=1)
    scores = torch.matmul(q.transpose(1, 2), key.transpose(2, 3)) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    for added in (bias, position_bias):
        if added is not None:
            scores = scores + added
    place, other = torch.arange(queries, device=q.device)[:, None], torch.arange(keys, device=q.device)[None]
    if is_causal:
        scores = scores.masked_fill(other > place, float("-inf"))
    if window_before is not None:
        scores = scores.masked_fill(place - other > window_before, float("-inf"))
    if window_after is not None:
        scores = scores.masked_fill(other - place > window_after, float("-inf"))
    if chunk_size is not None:
        scores = scores.masked_fill(place // chunk_size != other // chunk_size, float("-inf"))
    if sinks is not None:
        columns = sinks.reshape(1, query_heads, 1, 1).expand(q.shape[0], query_heads, queries, 1)
        scores = torch.cat([scores, columns], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype)
    return torch.matmul(weights[..., :keys], value).transpose(1, 2).contiguous()
