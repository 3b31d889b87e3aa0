"""A functional key/value cache for static graphs, and the two operators that write states.

transformers' caches mutate themselves; a Neuron graph takes the cache as input and returns it as (aliased) output.
Keys are kept transposed, [B, G, D, C], so that the decode kernel contracts over head dimensions without transposing;
values are [B, G, C, D].  B = batch, G = key/value heads, D = head dimension, C = cache length, S = new tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin


@torch.library.custom_op("neuron_port::kv_write", mutates_args=())
def kv_write(cache: torch.Tensor, new: torch.Tensor, positions: torch.Tensor, axis: int) -> torch.Tensor:
    """Return `cache` with `new` written along `axis`, row b starting at `positions[b]`.

    Args:
        cache: [B, G, ..]; new: the same but S along `axis`; positions: int32 [B], positions[b] + S <= size of `axis`.
    """
    written = cache.clone()
    for row, start in enumerate(positions.tolist()):
        written[row].narrow(axis - 1, start, new.shape[axis]).copy_(new[row])
    return written


@kv_write.register_fake
def _(cache: torch.Tensor, new: torch.Tensor, positions: torch.Tensor, axis: int) -> torch.Tensor:
    return torch.empty_like(cache)


@torch.library.custom_op("neuron_port::row_write", mutates_args=())
def row_write(state: torch.Tensor, row: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
    """Return `state` with `row` written over the beginning of its row `slot`; all other rows are as they were.

    Args:
        state: [B, ..] of any kind; row: [1, ..], of the state's dtype and along no axis longer than it; slot: int32 [1].
            Where `row` is shorter (keys of a prompt, in a cache with room for more) the rest of the row is left alone.
    """
    written = state.clone()
    part = written[int(slot)]
    for axis, size in enumerate(row.shape[1:]):
        part = part.narrow(axis, 0, size)
    part.copy_(row[0])
    return written


@row_write.register_fake
def _(state: torch.Tensor, row: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
    fits = row.shape[0] == 1 and all(part <= size for part, size in zip(row.shape, state.shape, strict=True))
    assert fits, f"a row of shape {tuple(row.shape)} is none of a state of shape {tuple(state.shape)}"
    assert row.dtype == state.dtype, f"a row of {row.dtype} is none of a state of {state.dtype}"
    return torch.empty_like(state)


CACHE_VIEW = "neuron_port_cache_view"  # name of the attribute of keys that are all slots of a cache


def is_cache_view(keys: torch.Tensor) -> bool:
    """Whether these keys are a cache's slots, of which the step's position says how many are filled."""
    return bool(getattr(keys, CACHE_VIEW, False))


class FunctionalLayer(CacheLayerMixin):
    """One layer's cache: `update` leaves the inputs alone and keeps the new tensors for the step to return.

    In prefill the model attends to the new keys alone (slots 0 .. S-1 hold exactly those); in decode to all slots.
    """

    keys: torch.Tensor  # [B, G, D, C]
    values: torch.Tensor  # [B, G, C, D]

    def __init__(
        self, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor, *, prefill: bool
    ) -> None:
        self.keys, self.values = keys, values
        self.positions = positions  # int32 [B]: where the new tokens go
        self.prefill = prefill
        self.tells_position = False  # to models that take no position ids: the same for every row
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the tensors are given."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write [B, G, S, D] keys and values; return what the queries attend to, [B, G, S or C, D] each."""
        keys = key_states.transpose(2, 3).contiguous()
        self.keys = torch.ops.neuron_port.kv_write(self.keys, keys, self.positions, 3)
        self.values = torch.ops.neuron_port.kv_write(
            self.values, value_states.contiguous(), self.positions, 2
        )
        if self.prefill:
            return key_states, value_states
        slots = self.keys.transpose(2, 3)
        setattr(slots, CACHE_VIEW, True)
        return slots, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return (query_length if self.prefill else self.values.shape[2]), 0

    def get_seq_length(self) -> Any:
        """How many tokens came before; 0 where the model is given position ids, so that it need not know."""
        return self.positions[0] if self.tells_position and not self.prefill else 0

    def get_max_length(self) -> int:
        return self.values.shape[2]
