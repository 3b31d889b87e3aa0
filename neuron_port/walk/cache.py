"""A functional key/value cache for static graphs, and the one operator that writes it.

transformers' caches mutate themselves; a Neuron graph takes the cache as input and returns it as (aliased) output.
Keys are kept transposed, [B, G, D, C], so that the decode kernel contracts over head dimensions without transposing;
values are [B, G, C, D].  B = batch, G = key/value heads, D = head dimension, C = cache length, S = new tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        return (key_states, value_states) if self.prefill else (self.keys.transpose(2, 3), self.values)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return (query_length if self.prefill else self.values.shape[2]), 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return self.values.shape[2]


def functional_layers(
    caches: Sequence[torch.Tensor], positions: torch.Tensor, *, prefill: bool
) -> list[FunctionalLayer]:
    """One cache layer for each pair in `caches`: keys and values of layer 0, of layer 1, and so on."""
    pairs = zip(caches[::2], caches[1::2], strict=True)
    return [FunctionalLayer(keys, values, positions, prefill=prefill) for keys, values in pairs]
