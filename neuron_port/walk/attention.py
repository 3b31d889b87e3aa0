"""The model's own attention over static shapes: what a matched kernel must equal, and what runs where none matches.

B = batch, Q = query heads, G = key/value heads, S = new tokens, C = keys (or cache slots), D = head dimension of
queries and keys, E = of values.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from neuron_port.walk.masks import EVERYTHING, MaskStructure, additive


def prefill_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    structure: MaskStructure,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The model's own eager attention: query [B, Q, S, D], key [B, G, C, D], value [B, G, C, E].

    bias: additive [B or 1, Q or 1, S or 1, C], or None; `structure` is the rule beside it.
    """
    mask = bias
    if structure != EVERYTHING:
        places = torch.arange(query.shape[2], device=query.device)
        keys = torch.arange(key.shape[2], device=query.device)
        mask = _additive(structure.allowed(places[:, None], keys[None, :])[None, None], query, bias)
    return _own_attention(module, query, key, value, mask, kwargs), None


def decode_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    keys_transposed: torch.Tensor,
    value: torch.Tensor,
    positions: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    structure: MaskStructure,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The model's own eager attention of one token over the cache.

    query: [B, Q, 1, D]; keys_transposed: [B, G, D, C]; value: [B, G, C, E]; positions: int32 [B], the token's slot;
    bias: additive [B or 1, Q or 1, 1, C], or None.
    """
    slots = torch.arange(value.shape[2], device=query.device)[None, :]
    here = positions[:, None]
    allowed = (slots <= here) & structure.allowed(here, slots)
    mask = _additive(allowed[:, None, None], query, bias)
    return _own_attention(module, query, keys_transposed.transpose(2, 3), value, mask, kwargs), None


def _additive(allowed: torch.Tensor, like: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The rule and the bias as one additive mask; the sum of two lowest numbers would be infinite."""
    rule = additive(allowed, like.dtype)
    return rule if bias is None else torch.where(allowed, bias, rule)


def _own_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    kwargs: Mapping[str, Any],
) -> torch.Tensor:
    """The function that the module's own file has for eager attention, else torch's; [B, S, Q, E]."""
    own = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    function: Callable[..., Any] = own if own is not None else ALL_ATTENTION_FUNCTIONS["sdpa"]
    if "s_aux" in kwargs:
        module = _with_parameter(module, "sinks", kwargs["s_aux"])
    output = function(module, query, key, value, mask, **kwargs)[0]
    assert isinstance(output, torch.Tensor)
    return output


def _with_parameter(module: torch.nn.Module, name: str, value: torch.Tensor) -> torch.nn.Module:
    """The module as seen by a function that reads a parameter off it, which the call hands over as well."""
    shown = object.__new__(type(module))
    shown.__dict__.update(module.__dict__)
    shown._parameters = {**module._parameters, name: value}  # type: ignore[dict-item]
    return shown
