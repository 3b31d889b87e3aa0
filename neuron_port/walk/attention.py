"""The model's own attention over static shapes: what a matched kernel must equal, and what runs where none matches.

B = batch, Q = query heads, G = key/value heads, S = new tokens, C = cache slots, D = head dimension.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def prefill_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The model's own eager attention over S new tokens: query [B, Q, S, D], key and value [B, G, S, D]."""
    length = query.shape[2]
    index = torch.arange(length, device=query.device)
    allowed = (
        index[None, :] <= index[:, None]
        if _is_causal(module, kwargs)
        else torch.ones_like(index[:, None] >= index)
    )
    allowed = allowed & _within_window(index[:, None], index[None, :], kwargs)
    output, _ = _eager(module)(module, query, key, value, _additive(allowed[None, None], query), **kwargs)
    return output, None


def decode_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    keys_transposed: torch.Tensor,
    value: torch.Tensor,
    positions: torch.Tensor,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The model's own eager attention of one token over the cache.

    query: [B, Q, 1, D]; keys_transposed: [B, G, D, C]; value: [B, G, C, D]; positions: int32 [B], the token's slot.
    """
    slots = torch.arange(value.shape[2], device=query.device)[None, :]
    here = positions[:, None]
    allowed = (slots <= here) & _within_window(here, slots, kwargs)
    mask = _additive(allowed[:, None, None], query)
    output, _ = _eager(module)(module, query, keys_transposed.transpose(2, 3), value, mask, **kwargs)
    return output, None


def _is_causal(module: torch.nn.Module, kwargs: Mapping[str, Any]) -> bool:
    causal = kwargs.get("is_causal")
    return bool(getattr(module, "is_causal", True) if causal is None else causal)


def _within_window(
    query_index: torch.Tensor, key_index: torch.Tensor, kwargs: Mapping[str, Any]
) -> torch.Tensor:
    """transformers' sliding window of W: a query sees itself and the W - 1 keys before it."""
    window = kwargs.get("sliding_window")
    distance = query_index - key_index
    return distance < window if window is not None else torch.ones_like(distance, dtype=torch.bool)


def _additive(allowed: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """0 where attention is allowed, the lowest finite number elsewhere (infinities poison the chip's transposes)."""
    zero = torch.zeros((), dtype=like.dtype, device=like.device)
    lowest = torch.full((), torch.finfo(like.dtype).min, dtype=like.dtype, device=like.device)
    return torch.where(allowed, zero, lowest)


def _eager(module: torch.nn.Module) -> Callable[..., Any]:
    own = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return own if own is not None else ALL_ATTENTION_FUNCTIONS["sdpa"]
