"""One step of a causal language model as a pure function with static shapes: the thing that becomes a graph.

    prefill: (input_ids [B, S], positions [B], caches) -> (logits [B, V] of token `positions[b]`, caches)
    decode:  (input_ids [B, 1], positions [B], caches) -> (logits [B, V], caches)

B = batch, S = tokens of the bucket, V = vocabulary. In prefill `positions[b]` is the index of row b's last prompt
token: prompts are padded on the right, where causality makes padding harmless. In decode it is the slot that the new
token takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from neuron_port.errors import CheckpointError
from neuron_port.walk.cache import functional_cache

Phase = Literal["prefill", "decode"]


@dataclass(frozen=True)
class StepState:
    """What attention must know of the step in which it runs."""

    phase: Phase
    positions: torch.Tensor  # int32 [B]


_CURRENT: ContextVar[StepState] = ContextVar("neuron_port_step")


def current_step() -> StepState:
    """The step that is running; attention is only ever called inside one."""
    return _CURRENT.get()


class CausalStep(torch.nn.Module):
    """Wraps a transformers causal language model; `forward` is the pure step described above."""

    def __init__(self, model: PreTrainedModel, phase: Phase) -> None:
        super().__init__()
        self.model = model
        self.phase: Phase = phase

    def forward(
        self, input_ids: torch.Tensor, positions: torch.Tensor, caches: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        batch, length = input_ids.shape
        prefill = self.phase == "prefill"
        if prefill:
            position_ids = torch.arange(length, device=input_ids.device)[None].expand(batch, -1)
            starts = torch.zeros_like(positions)
        else:
            position_ids, starts = positions[:, None].long(), positions
        cache = functional_cache(caches, starts, prefill=prefill)
        token = _CURRENT.set(StepState(self.phase, positions))
        try:
            with self._last_token_only(positions if prefill else None):
                logits = self.model(
                    input_ids=input_ids, position_ids=position_ids, past_key_values=cache, use_cache=True
                ).logits
        finally:
            _CURRENT.reset(token)
        updated = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        return (logits[:, -1], *updated)

    @contextmanager
    def _last_token_only(self, positions: torch.Tensor | None) -> Iterator[None]:
        """Let the language-model head see each row's last prompt token alone: S - 1 rows of its work are unused."""
        if positions is None:
            yield
            return

        def select(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            hidden_BSH = arguments[0]
            rows = torch.arange(hidden_BSH.shape[0], device=hidden_BSH.device)
            return (hidden_BSH[rows, positions.long()][:, None], *arguments[1:])

        hook = self.model.get_output_embeddings().register_forward_pre_hook(select)
        try:
            yield
        finally:
            hook.remove()


def cache_shapes(model: PreTrainedModel) -> list[tuple[int, int, int]]:
    """(key/value heads, key head dimension, value head dimension) of every layer, read off a two-token run.

    Raises:
        CheckpointError: the model keeps state that is not a key/value cache, or none at all.
    """
    device = next(model.parameters()).device
    cache = DynamicCache(config=model.config)
    ids = torch.zeros((1, 2), dtype=torch.int64, device=device)
    token = _CURRENT.set(StepState("prefill", torch.ones(1, dtype=torch.int32, device=device)))
    try:
        with torch.no_grad():
            model(input_ids=ids, past_key_values=cache, use_cache=True)
    finally:
        _CURRENT.reset(token)
    shapes = []
    for index, layer in enumerate(cache.layers):
        if not isinstance(layer, DynamicLayer) or layer.keys is None or layer.values is None:
            raise CheckpointError(
                f"Layer {index} of {type(model).__name__} keeps its state in `{type(layer).__name__}`, "
                "which is no key/value cache",
                hint="State-space and hybrid models cannot be converted yet.",
            )
        shapes.append((layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3]))
    if not shapes:
        raise CheckpointError(f"{type(model).__name__} used no key/value cache", hint="Is it a causal language model?")
    return shapes


def example_inputs(
    model: PreTrainedModel, phase: Phase, *, batch: int, sequence_length: int, cache_length: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Zero inputs of a step's shapes, on the model's device."""
    device = next(model.parameters()).device
    length = sequence_length if phase == "prefill" else 1
    ids = torch.zeros((batch, length), dtype=torch.int32, device=device)
    positions = torch.full((batch,), length - 1 if phase == "prefill" else 0, dtype=torch.int32, device=device)
    caches = []
    for heads, key_size, value_size in cache_shapes(model):
        caches.append(torch.zeros((batch, heads, key_size, cache_length), dtype=dtype, device=device))
        caches.append(torch.zeros((batch, heads, cache_length, value_size), dtype=dtype, device=device))
    return ids, positions, caches
