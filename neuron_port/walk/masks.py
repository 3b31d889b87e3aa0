"""Masks as structure: which keys a query sees, told by the model's own mask functions instead of a tensor of zeros.

transformers composes a mask from small functions (causal, sliding window, chunked, padding). While a model is walked
they carry what they mean, so that a mask that is a rule (causal, within a window) reaches the kernel as a rule, and
only one that is data (padding, the image prefix of a prompt) as a tensor.

i = place of a query, j = place of a key.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import masking_utils

from neuron_port.walk.program import step_or_none

# Names of the attributes that mask functions and mask tensors carry.
STRUCTURE = "neuron_port_structure"
PADDING = "neuron_port_padding"


@dataclass(frozen=True, kw_only=True)
class MaskStructure:
    """A query at i sees the keys j with i - before <= j <= i + after, and of its own chunk; None: no such bound.

    `is_data`: that is not all of it; the mask's tensor says the rest.
    """

    before: int | None = None
    after: int | None = None
    chunk: int | None = None
    is_data: bool = False

    @property
    def is_causal(self) -> bool:
        return self.after == 0

    def both(self, other: MaskStructure) -> MaskStructure:
        """The structure of a key that must be seen under this one and the other."""
        chunks = {chunk for chunk in (self.chunk, other.chunk) if chunk is not None}
        return MaskStructure(
            before=_least(self.before, other.before),
            after=_least(self.after, other.after),
            chunk=chunks.pop() if len(chunks) == 1 else None,
            is_data=self.is_data or other.is_data or len(chunks) > 1,
        )

    def allowed(self, query_index: torch.Tensor, key_index: torch.Tensor) -> torch.Tensor:
        """Which keys are seen: both arguments are integer places that broadcast against each other."""
        distance = query_index - key_index
        allowed = torch.ones_like(distance, dtype=torch.bool)
        if self.before is not None:
            allowed = allowed & (distance <= self.before)
        if self.after is not None:
            allowed = allowed & (-distance <= self.after)
        if self.chunk is not None:
            allowed = allowed & (query_index // self.chunk == key_index // self.chunk)
        return allowed


EVERYTHING = MaskStructure()
CAUSAL = MaskStructure(after=0)
DATA = MaskStructure(is_data=True)


def structure_of(mask: object) -> MaskStructure:
    """What a mask function or a mask tensor means; DATA when it does not say."""
    if mask is None or mask is masking_utils.bidirectional_mask_function:
        return EVERYTHING
    if mask is masking_utils.causal_mask_function:
        return CAUSAL
    found = getattr(mask, STRUCTURE, DATA)
    assert isinstance(found, MaskStructure)
    return found


def build_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: Any = 0,
    mask_function: Callable[..., Any] = masking_utils.causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    *,
    device: Any = "cpu",
    dtype: torch.dtype = torch.float32,
    **_: Any,
) -> torch.Tensor:
    """transformers' mask interface: an additive mask [B, 1, S, C] that carries its structure and its padding.

    Where attention is cut through the interface the rule alone is used; a model whose attention is code of its own
    reads the tensor. In a decode step the queries stand at the step's positions.
    """
    structure = structure_of(mask_function)
    step = step_or_none()
    padding = None
    if structure.is_data:
        allowed = masking_utils.sdpa_mask(
            batch_size=batch_size,
            q_length=q_length,
            kv_length=kv_length,
            q_offset=q_offset,
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            allow_is_causal_skip=False,
            allow_is_bidirectional_skip=False,
            use_vmap=False,  # by places that broadcast: vmap cannot be exported
            device=device,
        )
        assert allowed is not None
    else:
        keys = torch.arange(kv_length, device=device)[None, None, None]
        if step is not None and step.phase == "decode" and structure.is_causal:
            places = step.positions[:, None, None, None]
        else:
            places = torch.arange(q_length, device=device)[None, None, :, None]
        allowed = structure.allowed(places, keys).expand(batch_size, 1, q_length, kv_length)
        if attention_mask is not None:
            padding = masking_utils.prepare_padding_mask(attention_mask, kv_length, kv_offset)
            assert padding is not None
            padding = padding[:, None, None, kv_offset : kv_offset + kv_length].to(torch.bool)
            allowed = allowed & padding
    mask = additive(allowed, dtype)
    setattr(mask, STRUCTURE, structure)
    setattr(mask, PADDING, None if padding is None else additive(padding, dtype))
    return mask


def additive(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where attention is allowed, the lowest finite number elsewhere (infinities poison the chip's transposes)."""
    zero = torch.zeros((), dtype=dtype, device=allowed.device)
    lowest = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=allowed.device)
    return torch.where(allowed, zero, lowest)


def data_of(mask: torch.Tensor | None) -> torch.Tensor | None:
    """The part of a mask that no rule says: its padding, or all of it; None when the rule says everything."""
    if mask is None:
        return None
    return mask if structure_of(mask).is_data else getattr(mask, PADDING, None)


@contextmanager
def structured_masks() -> Iterator[None]:
    """Let the functions that transformers makes masks of say what they mean, until the block ends."""
    originals = {name: getattr(masking_utils, name) for name in _REPLACED}
    try:
        for name, replacement in _REPLACED.items():
            setattr(masking_utils, name, functools.partial(replacement, originals[name]))
        yield
    finally:
        for name, original in originals.items():
            setattr(masking_utils, name, original)


def _window(original: Callable[..., Any], sliding_window: int) -> Any:
    """A query sees the `sliding_window` - 1 keys before it (causality is another function's)."""
    return _telling(original(sliding_window), MaskStructure(before=sliding_window - 1))


def _bidirectional_window(original: Callable[..., Any], sliding_window: int) -> Any:
    """A query sees as many keys on each side."""
    made = original(sliding_window)
    reach = max(j for j in range(sliding_window + 2) if bool(made(0, 0, torch.tensor(0), torch.tensor(j))))
    return _telling(made, MaskStructure(before=reach, after=reach))


def _chunked(original: Callable[..., Any], chunk_size: int, left_padding: torch.Tensor) -> Any:
    return _telling(original(chunk_size, left_padding), MaskStructure(chunk=chunk_size))


def _all_of(original: Callable[..., Any], *mask_functions: Any) -> Any:
    structures = [structure_of(function) for function in mask_functions]
    return _telling(original(*mask_functions), functools.reduce(MaskStructure.both, structures, EVERYTHING))


def _telling(function: Any, structure: MaskStructure) -> Any:
    setattr(function, STRUCTURE, structure)
    return function


def _least(one: int | None, other: int | None) -> int | None:
    given = [bound for bound in (one, other) if bound is not None]
    return min(given, default=None)


_REPLACED: dict[str, Callable[..., Any]] = {
    "sliding_window_overlay": _window,
    "sliding_window_bidirectional_overlay": _bidirectional_window,
    "chunked_overlay": _chunked,
    "and_masks": _all_of,
}
