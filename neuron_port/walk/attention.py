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

from neuron_port.walk.cache import is_cache_view
from neuron_port.walk.masks import CAUSAL, EVERYTHING, MaskStructure, additive, structure_of
from neuron_port.walk.program import step_or_none

IGNORED_ARGUMENTS = {
    "dropout", "use_cache", "output_attentions", "scaling", "sliding_window", "is_causal", "position_ids",
    "output_hidden_states", "return_dict", "cache_position",
}  # fmt: skip


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


def is_decode(structure: MaskStructure, query: torch.Tensor, key: torch.Tensor) -> bool:
    """Whether one new token looks at a cache: its slots themselves, or keys that were made of them (latent caches)."""
    step = step_or_none()
    return is_cache_view(key) or (
        step is not None
        and step.phase == "decode"
        and structure.is_causal
        and query.shape[2] == 1 < key.shape[2]
    )


def rule_of(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    kwargs: Mapping[str, Any],
) -> MaskStructure:
    """Which keys a query sees by rule. Without a mask the module says whether it is causal, as torch's own attention."""
    if mask is not None:
        structure = structure_of(mask)
        return EVERYTHING if structure.is_data else structure
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    window = kwargs.get("sliding_window")
    if not causal or (query.shape[2] != key.shape[2] and not is_cache_view(key)):
        return EVERYTHING
    return CAUSAL.both(MaskStructure(before=window - 1)) if window else CAUSAL


def attributes_of(
    structure: MaskStructure, query: torch.Tensor, options: Mapping[str, Any]
) -> dict[str, Any]:
    """What decides the result besides the tensors; tensors among the keywords are named `tensor:<name>`."""
    attributes: dict[str, Any] = {
        name: item
        for name, item in options.items()
        if name not in IGNORED_ARGUMENTS and isinstance(item, (bool, int, float, str))
    }
    attributes["scaling"] = float(options.get("scaling") or query.shape[-1] ** -0.5)
    attributes["is_causal"] = structure.is_causal
    bounds = {"window_before": structure.before, "chunk_size": structure.chunk}
    if not structure.is_causal:
        bounds["window_after"] = structure.after
    attributes |= {name: bound for name, bound in bounds.items() if bound is not None}
    tensors = sorted(name for name, item in options.items() if torch.is_tensor(item))
    return attributes | {f"tensor:{name}": True for name in tensors}
