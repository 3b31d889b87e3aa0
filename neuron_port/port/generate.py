"""Generation over static graphs: pick the smallest bucket that holds the prompt, then decode a token at a time.

`Batch` has a sequence of its own in every row of the decode graph. `Session` has one sequence alone: in graphs of more
rows all of them carry it, and the first one's answer counts.

B = rows, S = bucket, C = cache length, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
        bucket = _bucket(self._prefills, count)
        if bucket < count:
            ids = sample["input_ids"]
            head = {"input_ids": ids[:, :bucket]}
            logits = self._prefill(head, bucket, bucket) if bucket else self._begin_empty()
            for token in ids[0, bucket:].tolist():
                logits = self.advance(token)
            return logits
        return self._prefill(sample, bucket, 1 if "decoder_input_ids" in sample else count)

    def _prefill(self, sample: Sample, bucket: int, length: int) -> torch.Tensor:
        spec = self._prefills[bucket].spec
        self.length = length
        given = {**sample, "positions": torch.full((1,), length - 1), "slot": torch.zeros(1)}
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
        _check_room(spec, self.length)
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
        return _caches_of(self._decode.spec, self._caches, 0, self.length)


@dataclass
class _Row:
    """What stands in one row of a batch: how many of its cache slots are filled, and the prompt's tokens to come."""

    length: int
    coming: list[int]


class Batch:
    """A sequence in each row of the decode graph: prompts come and go while other rows are in the middle of theirs.

    Every row that has a sequence takes part in every step. A row that has none is given token 0 at position 0, which
    writes into that row alone; the next prompt that comes there writes over it.
    """

    def __init__(self, prefills: Mapping[int, Step], decode: Step) -> None:
        self._prefills = dict(sorted(prefills.items()))
        self._decode = decode
        self._states = _empty_states(decode.spec)
        self._rows: dict[int, _Row] = {}

    @property
    def idle(self) -> list[int]:
        """The rows without a sequence."""
        return [row for row in range(self._decode.spec.batch) if row not in self._rows]

    def start(self, row: int, prompt: Sequence[int], *, only: int | None = None) -> torch.Tensor | None:
        """Put a prompt into an idle row, through the `only` bucket if one is named; returns the logits [V] that follow.

        None where prompts must fill their bucket and this one goes beyond it: the next steps take what is left of it,
        a token each, and the first that returns logits for the row has taken the last.
        """
        assert row in self.idle, f"row {row} already has a sequence"
        prefills = self._prefills if only is None else {only: self._prefills[only]}
        bucket = _bucket(prefills, len(prompt))
        length = min(bucket, len(prompt))
        self._rows[row] = _Row(length, list(prompt[length:]))
        if not bucket:
            self._clear(row)
            return None
        logits = self._prefill(row, self._prefills[bucket], prompt[:length])
        return logits if length == len(prompt) else None

    def _prefill(self, row: int, step: Step, prompt: Sequence[int]) -> torch.Tensor:
        given = {
            "input_ids": torch.tensor([list(prompt)]),
            "positions": torch.tensor([len(prompt) - 1]),
            "slot": torch.tensor([row]),
        }
        (logits,), self._states = step(_inputs(step.spec, given), self._states)
        return logits[0]

    def _clear(self, row: int) -> None:
        """States of zero, from which decoding begins where no prefill has run, whoever was here before."""
        self._states = [state.clone() for state in self._states]
        for state in self._states:
            state[row] = 0

    def advance(self, tokens: Mapping[int, int]) -> dict[int, torch.Tensor]:
        """One step of all rows that have a sequence; returns the logits [V] of those whose prompt is over, by row.

        Args:
            tokens: what each row appends; of a row whose prompt is still coming it is not asked.
        """
        spec = self._decode.spec
        ids = torch.zeros((spec.batch, 1), dtype=torch.int32)
        positions = torch.zeros(spec.batch, dtype=torch.int32)
        for number, row in self._rows.items():
            _check_room(spec, row.length)
            ids[number, 0] = row.coming[0] if row.coming else tokens[number]
            positions[number] = row.length
        given = {"input_ids": ids, "positions": positions}
        inputs = [given[item.name] for item in spec.inputs if item.role == "input"]
        (logits,), self._states = self._decode(inputs, self._states)
        for row in self._rows.values():
            row.coming = row.coming[1:]
            row.length += 1
        return {number: logits[number] for number, row in self._rows.items() if not row.coming}

    def finish(self, row: int) -> None:
        """The row's sequence is over; another may come."""
        del self._rows[row]

    def caches(self, row: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """As `Session.caches`, of one row."""
        return _caches_of(self._decode.spec, self._states, row, self._rows[row].length)


def _caches_of(
    spec: GraphSpec, states: Sequence[torch.Tensor], row: int, length: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(keys, values) of each layer that has them, [G, L, D] each: the first `length` slots of one row."""
    names = [item.name for item in spec.inputs if item.role == "state"]
    named = dict(zip(names, states, strict=True))
    return [
        (
            keys[row, :, :, :length].transpose(1, 2),
            named[name.replace("key_cache", "value_cache")][row, :, :length],
        )
        for name, keys in named.items()
        if name.startswith("key_cache")
    ]


def _bucket(prefills: Mapping[int, Step], count: int) -> int:
    """The smallest bucket that holds the prompt; where prompts must fill theirs, the largest that is filled, or 0.

    Raises:
        UsageError: the prompt is longer than every bucket.
    """
    sizes = sorted(prefills)
    if prefills[sizes[0]].spec.fills_bucket:
        return max((size for size in sizes if size <= count), default=0)
    bucket = next((size for size in sizes if size >= count), None)
    if bucket is None:
        raise UsageError(
            f"The prompt has {count} tokens, the largest bucket holds {sizes[-1]}",
            hint="Convert with a larger --buckets.",
        )
    return bucket


def _check_room(spec: GraphSpec, length: int) -> None:
    if length >= spec.cache_length:
        raise UsageError(
            f"The sequence fills all {length} cache slots", hint="Convert with a larger --cache-length."
        )


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
