"""Rotary position embedding in plain torch, with the order and dtypes of `apply_rotary_pos_emb`."""

import torch


def rope(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, pairs: str = "half"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns q [B, S, Q, D] and k [B, S, G, D] rotated by cos and sin [B, S, R], in the inputs' dtype.

    pairs: "half" (i and i + R / 2), "interleaved" (2 i and 2 i + 1) or "interleaved to half".
    """
    cos_heads, sin_heads = cos.unsqueeze(2), sin.unsqueeze(2)
    return _rotate(q, cos_heads, sin_heads, pairs), _rotate(k, cos_heads, sin_heads, pairs)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, pairs: str) -> torch.Tensor:
    """Returns x [B, S, H, D] with its first R elements rotated; those beyond pass."""
    width = cos.shape[-1]
    turned, passed = x[..., :width], x[..., width:]
    if pairs != "half":
        turned = torch.cat((turned[..., 0::2], turned[..., 1::2]), dim=-1)
    first, second = turned.chunk(2, dim=-1)
    turned = (turned * cos) + (torch.cat((-second, first), dim=-1) * sin)
    if pairs == "interleaved":
        turned = torch.stack(turned.chunk(2, dim=-1), dim=-1).flatten(-2)
    turned = turned.to(x.dtype)
    return torch.cat((turned, passed), dim=-1) if passed.shape[-1] else turned
