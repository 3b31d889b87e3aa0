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


Sample = Mapping[str, torch.Tensor]  # a prompt as the model takes it: inputs by name, one row each


class Session:
    """One sequence: `start` runs the prompt, `advance` appends a token; both return the next token's logits [V].

    What a graph is given is decided by the names of its inputs, so that text, speech and pictures go the same way.
    """

    def __init__(self, prefills: Mapping[int, Step], decode: Step) -> None:
        self._prefills = dict(sorted(prefills.items()))
        self._decode = decode
        self._caches: list[torch.Tensor] = []
        self._sample: Sample = {}
        self.length = 0

    def start(self, sample: Sample) -> torch.Tensor:
        """Run the prompt through the smallest bucket that holds it.

        Of a model whose prompts must fill their bucket: through the largest that they fill, then token by token.
        Of an encoder-decoder model the decoder's first token, `decoder_input_ids`, is part of the prompt.
        """
        self._sample = sample
        count = next(iter(sample.values())).shape[-1]
        sizes = list(self._prefills)
        if self._prefills[sizes[0]].spec.fills_bucket:
            filled = [size for size in sizes if size <= count]
            head = filled[-1] if filled else 0
            ids = sample["input_ids"]
            logits = self._prefill({"input_ids": ids[:, :head]}, head, head) if head else self._begin_empty()
            for token in ids[0, head:].tolist():
                logits = self.advance(token)
            return logits
        bucket = next((size for size in sizes if size >= count), None)
        if bucket is None:
            raise UsageError(
                f"The prompt has {count} tokens, the largest bucket holds {max(self._prefills)}",
                hint="Convert with a larger --buckets.",
            )
        return self._prefill(sample, bucket, 1 if "decoder_input_ids" in sample else count)

    def _prefill(self, sample: Sample, bucket: int, length: int) -> torch.Tensor:
        spec = self._prefills[bucket].spec
        self.length = length
        given = {**sample, "positions": torch.full((1,), length - 1)}
        (logits,), self._caches = self._prefills[bucket](_inputs(spec, given), _empty_states(spec))
        return logits[0]

    def _begin_empty(self) -> torch.Tensor:
        """Nothing has run yet: decoding begins from states of zero."""
        self._caches = _empty_states(self._decode.spec)
        self.length = 0
        return torch.empty(0)

    def advance(self, token: int) -> torch.Tensor:
        """Append `token` and return the logits of what follows it."""
        spec = self._decode.spec
        if self.length >= spec.cache_length:
            raise UsageError(
                f"The sequence fills all {self.length} cache slots",
                hint="Convert with a larger --cache-length.",
            )
        ids, here = torch.full((1, 1), token), torch.full((1,), self.length)
        given = {**self._sample, "input_ids": ids, "decoder_input_ids": ids, "positions": here}
        if "position_ids" in self._sample:  # places on several axes: a text goes on by one on each
            last = self._sample["position_ids"].max() + 1 + self.length - self._sample["input_ids"].shape[-1]
            given["position_ids"] = last.expand(self._sample["position_ids"].shape[:-1])[..., None]
        (logits,), self._caches = self._decode(_inputs(spec, given), self._caches)
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


def _inputs(spec: GraphSpec, sample: Sample) -> list[torch.Tensor]:
    """The graph's inputs in its order: zeros beyond the sample's own sizes, the same row in the whole batch."""
    return [
        padded(sample[item.name], item.spec.shape, getattr(torch, item.spec.dtype), spec.batch)
        for item in spec.inputs
        if item.role == "input"
    ]


def padded(own: torch.Tensor, shape: Sequence[int], dtype: torch.dtype, batch: int) -> torch.Tensor:
    """`own` as a graph takes it: cast, zeros beyond its own sizes, repeated along the axis on which it counts rows.

    That is the first axis of `batch` times its own size (one row; of a picture in patches: all its patches).
    """
    rows = next((axis for axis, size in enumerate(shape) if size == batch * own.shape[axis]), None)
    full = torch.zeros(
        [own.shape[axis] if axis == rows else size for axis, size in enumerate(shape)], dtype=dtype
    )
    full[tuple(slice(0, size) for size in own.shape)] = own.to(dtype)
    return full.repeat([batch if axis == rows else 1 for axis in range(len(shape))])
