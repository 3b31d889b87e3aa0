"""Example inputs of a step: the caches' shapes are read off the model itself, not guessed from its configuration."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from neuron_port.errors import CheckpointError
from neuron_port.walk.cutpoints import Call, intercept
from neuron_port.walk.step import Phase, StepState, running


def cache_shapes(model: PreTrainedModel) -> list[tuple[int, int, int]]:
    """(key/value heads, key head dimension, value head dimension) of every layer, read off a two-token run.

    Raises:
        CheckpointError: the model keeps state that is not a key/value cache, or none at all.
    """
    device = next(model.parameters()).device
    cache = DynamicCache(config=model.config)
    ids = torch.zeros((1, 2), dtype=torch.int64, device=device)
    state = StepState("prefill", torch.ones(1, dtype=torch.int32, device=device))
    with torch.no_grad(), intercept(model, Call.run), running(state):
        model(input_ids=ids, past_key_values=cache, use_cache=True)
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
        raise CheckpointError(
            f"{type(model).__name__} used no key/value cache", hint="Is it a causal language model?"
        )
    return shapes


def example_inputs(
    model: PreTrainedModel,
    phase: Phase,
    *,
    batch: int,
    sequence_length: int,
    cache_length: int,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Zero inputs of a step's shapes, on the model's device."""
    device = next(model.parameters()).device
    length = sequence_length if phase == "prefill" else 1
    ids = torch.zeros((batch, length), dtype=torch.int32, device=device)
    positions = torch.full(
        (batch,), length - 1 if phase == "prefill" else 0, dtype=torch.int32, device=device
    )
    caches = []
    for heads, key_size, value_size in cache_shapes(model):
        caches.append(torch.zeros((batch, heads, key_size, cache_length), dtype=dtype, device=device))
        caches.append(torch.zeros((batch, heads, cache_length, value_size), dtype=dtype, device=device))
    return ids, positions, caches
