"""Rotary position embedding in plain torch, with the order and dtypes of `apply_rotary_pos_emb`."""

import torch


def rope(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns q [B, S, Q, D] and k [B, S, G, D] rotated by cos and sin [B, S, D], in the inputs' dtype."""
    cos_heads, sin_heads = cos.unsqueeze(2), sin.unsqueeze(2)
    q_rotated = (q * cos_heads) + (_rotate_half(q) * sin_heads)
    k_rotated = (k * cos_heads) + (_rotate_half(k) * sin_heads)
    return q_rotated, k_rotated


def _rotate_half(x: torch.Tensor) -> torch.Tensor:
    """Returns (-x2, x1) for x = (x1, x2) along the last axis."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)
