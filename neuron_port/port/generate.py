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
        self, inputs: Sequence[torch.Tensor], states: Sequence[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]: ...


class Session:
    """One sequence: `start` runs the prompt, `advance` appends a token; both return the next token's logits [V]."""

    def __init__(self, prefills: Mapping[int, Step], decode: Step) -> None:
        self._prefills = dict(sorted(prefills.items()))
        self._decode = decode
        self._caches: list[torch.Tensor] = []
        self.length = 0

    def start(self, prompt_ids: Sequence[int]) -> torch.Tensor:
        """Run the prompt through the smallest bucket that holds it.

        Of a model whose prompts must fill their bucket: through the largest that they fill, then token by token.
        """
        count = len(prompt_ids)
        sizes = list(self._prefills)
        if self._prefills[sizes[0]].spec.fills_bucket:
            filled = [size for size in sizes if size <= count]
            head = filled[-1] if filled else 0
            logits = self._prefill(prompt_ids[:head], head) if head else self._begin_empty()
            for token in prompt_ids[head:]:
                logits = self.advance(token)
            return logits
        bucket = next((size for size in sizes if size >= count), None)
        if bucket is None:
            raise UsageError(
                f"The prompt has {count} tokens, the largest bucket holds {max(self._prefills)}",
                hint="Convert with a larger --buckets.",
            )
        return self._prefill(prompt_ids, bucket)

    def _prefill(self, prompt_ids: Sequence[int], bucket: int) -> torch.Tensor:
        step = self._prefills[bucket]
        batch, count = step.spec.batch, len(prompt_ids)
        ids = torch.zeros((batch, bucket), dtype=torch.int32)
        ids[:, :count] = torch.tensor(prompt_ids, dtype=torch.int32)
        positions = torch.full((batch,), count - 1, dtype=torch.int32)
        (logits,), self._caches = step((ids, positions), _empty_states(step.spec))
        self.length = count
        return logits[0]

    def _begin_empty(self) -> torch.Tensor:
        """Nothing has run yet: decoding begins from states of zero."""
        self._caches = _empty_states(self._decode.spec)
        self.length = 0
        return torch.empty(0)

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
        (logits,), self._caches = self._decode((ids, positions), self._caches)
        self.length += 1
        return logits[0]

    def caches(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(keys, values) of each layer that has them for the tokens seen so far, [G, L, D] each, as in transformers."""
        names = [item.name for item in self._decode.spec.inputs if item.role == "state"]
        states = dict(zip(names, self._caches, strict=True))
        return [
            (
                keys[0, :, :, : self.length].transpose(1, 2),
                states[name.replace("key_cache", "value_cache")][0, :, : self.length],
            )
            for name, keys in states.items()
            if name.startswith("key_cache")
        ]


def _empty_states(spec: GraphSpec) -> list[torch.Tensor]:
    return [
        torch.zeros(item.spec.shape, dtype=getattr(torch, item.spec.dtype))
        for item in spec.inputs
        if item.role == "state"
    ]
