"""Causal grouped-query attention in plain torch, with the casts of transformers' eager attention."""

import torch


def attention_prefill(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Returns [B, S, Q, D]: each token of q [B, S, Q, D] attends to k, v [B, S, G, D] up to its own."""
    sequence, query_heads = q.shape[1], q.shape[2]
    group = query_heads // k.shape[2]
    query = q.transpose(1, 2)
    key = k.transpose(1, 2).repeat_interleave(group, dim=1)
    value = v.transpose(1, 2).repeat_interleave(group, dim=1)
    scores = torch.matmul(query, key.transpose(2, 3)) * scale
    later = torch.ones(sequence, sequence, dtype=torch.bool, device=q.device).triu(diagonal=1)
    scores = scores.masked_fill(later, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    return torch.matmul(weights, value).transpose(1, 2).contiguous()
