"""Generation over static graphs: pick the smallest bucket that holds the prompt, then decode a token at a time.

One sequence at a time: in a graph of batch B every row carries it.  S = bucket, C = cache length, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from neuron_port.errors import UsageError
from neuron_port.types import GraphSpec


class Step(Protocol):
    """A graph that can be called: interpreted in torch, or executed on XLA-CPU."""

    spec: GraphSpec

    def __call__(
        self, input_ids: torch.Tensor, positions: torch.Tensor, caches: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]: ...


class Session:
    """One sequence: `start` runs the prompt, `advance` appends a token; both return the next token's logits [V]."""

    def __init__(self, prefills: Mapping[int, Step], decode: Step) -> None:
        self._prefills = dict(sorted(prefills.items()))
        self._decode = decode
        self._caches: list[torch.Tensor] = []
        self.length = 0

    def start(self, prompt_ids: Sequence[int]) -> torch.Tensor:
        """Run the prompt through the smallest bucket that holds it."""
        count = len(prompt_ids)
        bucket = next((size for size in self._prefills if size >= count), None)
        if bucket is None:
            raise UsageError(
                f"The prompt has {count} tokens, the largest bucket holds {max(self._prefills)}",
                hint="Convert with a larger --buckets.",
            )
        step = self._prefills[bucket]
        batch = step.spec.batch
        ids = torch.zeros((batch, bucket), dtype=torch.int32)
        ids[:, :count] = torch.tensor(prompt_ids, dtype=torch.int32)
        caches = [
            torch.zeros(item.spec.shape, dtype=getattr(torch, item.spec.dtype))
            for item in step.spec.inputs
            if item.role == "state"
        ]
        logits, self._caches = step(ids, torch.full((batch,), count - 1, dtype=torch.int32), caches)
        self.length = count
        return logits[0]

    def advance(self, token: int) -> torch.Tensor:
        """Append `token` and return the logits of what follows it."""
        if self.length >= self._decode.spec.cache_length:
            raise UsageError(
                f"The sequence fills all {self.length} cache slots",
                hint="Convert with a larger --cache-length.",
            )
        batch = self._decode.spec.batch
        ids = torch.full((batch, 1), token, dtype=torch.int32)
        positions = torch.full((batch,), self.length, dtype=torch.int32)
        logits, self._caches = self._decode(ids, positions, self._caches)
        self.length += 1
        return logits[0]

    def caches(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(keys, values) of each layer for the tokens seen so far, [G, L, D] each, as transformers lays them out."""
        pairs = zip(self._caches[::2], self._caches[1::2], strict=True)
        return [
            (keys[0, :, :, : self.length].transpose(1, 2), values[0, :, : self.length])
            for keys, values in pairs
        ]
