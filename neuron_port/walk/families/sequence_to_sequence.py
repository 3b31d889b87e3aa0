"""Encoder-decoder models: one graph runs the encoder and the decoder's first token, one decodes a further token.

    prefill: (encoder inputs, decoder_input_ids [B, 1]) -> logits [B, V], self and cross caches
    decode:  (decoder_input_ids [B, 1], positions [B], attention_mask [B, S] of texts), caches -> logits [B, V], caches

The keys and values of cross attention are made once, by the prefill graph, and are states of the decode graph. S is the
encoder's largest bucket there; a shorter prefill's caches are padded, and the attention mask hides the padding.
All rows of a batch stand at the same position: these models count positions themselves.

B = batch, V = vocabulary, C = cache slots of self attention, G = heads, D = head dimension, S = encoder places.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from neuron_port.types import Phase
from neuron_port.walk.cache import FunctionalLayer
from neuron_port.walk.cutpoints import unobserved
from neuron_port.walk.families.encoder import example_inputs
from neuron_port.walk.masks import build_mask
from neuron_port.walk.program import GraphShapes, Program, StepState, running, takes


class CrossLayer(CacheLayerMixin):
    """Cross attention's keys and values of one layer, [B, G, S, D] each: written in prefill, only read in decode."""

    def __init__(self, keys: torch.Tensor | None, values: torch.Tensor | None) -> None:
        self.keys, self.values = keys, values
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep what the prefill made."""
        self.keys, self.values = key_states, value_states
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return (0 if self.keys is None else self.keys.shape[2]), 0

    def get_seq_length(self) -> int:
        return 0 if self.keys is None else self.keys.shape[2]

    def get_max_length(self) -> int:
        return self.get_seq_length()


class SequenceToSequenceStep(torch.nn.Module):
    """Wraps an encoder-decoder model; `forward` is one of the two steps above. It must run inside `intercept`.

    Args:
        names: the step's inputs in order.
        layers: decoder layers that keep caches.
        hidden: [B, S, H] of the encoder's answer; its values are not read in decode.
    """

    def __init__(
        self, model: PreTrainedModel, phase: Phase, names: Sequence[str], layers: int, hidden: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.model = model
        self.phase: Phase = phase
        self.names = tuple(names)
        self.layers = layers
        self.hidden = hidden

    def forward(
        self, inputs: Sequence[torch.Tensor], states: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        given: dict[str, Any] = dict(zip(self.names, inputs, strict=True))
        ids = given["decoder_input_ids"]
        prefill = self.phase == "prefill"
        positions = given.pop("positions") if not prefill else torch.zeros_like(ids[:, 0])
        cache = self._cache(states, positions)
        if not prefill:
            nothing = torch.zeros(self.hidden, dtype=self.model.dtype, device=ids.device)
            given["encoder_outputs"] = BaseModelOutput(last_hidden_state=nothing)
            if takes(self.model, "decoder_attention_mask"):
                given["decoder_attention_mask"] = self._mask(states[1], positions)
        with running(StepState(self.phase, positions)):
            logits = self.model(**given, past_key_values=cache, use_cache=True).logits
        updated = _tensors_of(cache.self_attention_cache)
        kept = [_padded(tensor, self.hidden[1]) for tensor in _tensors_of(cache.cross_attention_cache)]
        return (logits[:, -1], *updated, *kept)

    def _mask(self, values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The decoder's causal mask over the slots of `values` [B, G, C, D]: a model would count tokens for its own."""
        with running(StepState(self.phase, positions)):
            return build_mask(
                values.shape[0], 1, values.shape[2], device=values.device, dtype=self.model.dtype
            )

    def _cache(self, states: Sequence[torch.Tensor], positions: torch.Tensor) -> EncoderDecoderCache:
        prefill = self.phase == "prefill"
        own, cross = states[: 2 * self.layers], states[2 * self.layers :]
        layers = []
        for keys, values in zip(own[::2], own[1::2], strict=True):
            layer = FunctionalLayer(keys, values, positions, prefill=prefill)
            layer.tells_position = True
            layers.append(layer)
        pairs = zip(cross[::2], cross[1::2], strict=True)
        made = [CrossLayer(None, None) if prefill else CrossLayer(keys, values) for keys, values in pairs]
        cache = EncoderDecoderCache(Cache(layers=[*layers]), Cache(layers=[*made]))
        cache.is_updated = dict.fromkeys(range(self.layers), not prefill)
        return cache


def _tensors_of(cache: Cache) -> list[torch.Tensor]:
    """Keys and values of each layer in turn."""
    found: list[torch.Tensor | None] = []
    for layer in cache.layers:
        assert isinstance(layer, CacheLayerMixin)
        found += [layer.keys, layer.values]
    filled = [tensor for tensor in found if tensor is not None]
    assert len(filled) == len(found), "a layer of the decoder wrote no cache"
    return filled


def _padded(tensor: torch.Tensor, places: int) -> torch.Tensor:
    """[B, G, S, D] with zeros up to `places` along S."""
    missing = places - tensor.shape[2]
    return torch.nn.functional.pad(tensor, (0, 0, 0, missing)) if missing else tensor


def programs(model: PreTrainedModel, shapes: GraphShapes) -> list[Program]:
    """One prefill for each bucket (one, where the encoder's input has one size), then decode."""
    device, dtype = next(model.parameters()).device, model.dtype
    examples: list[dict[str, torch.Tensor]] = []
    for size in shapes.buckets:
        inputs = example_inputs(model, batch=shapes.batch, length=size)
        if not examples or any(inputs[name].shape != tensor.shape for name, tensor in examples[0].items()):
            examples.append(inputs)
    token = torch.zeros((shapes.batch, 1), dtype=torch.int32, device=device)
    hidden, sizes = _state_sizes(model, examples[-1] | {"decoder_input_ids": token})
    states = {}
    for number, (heads, size, _) in enumerate(sizes):
        for name, shape in (
            (f"key_cache.{number}", (shapes.batch, heads, size, shapes.cache_length)),
            (f"value_cache.{number}", (shapes.batch, heads, shapes.cache_length, size)),
        ):
            states[name] = torch.zeros(shape, dtype=dtype, device=device)
    for number, (heads, size, places) in enumerate(sizes):
        for name in (f"cross_key.{number}", f"cross_value.{number}"):
            states[name] = torch.zeros((shapes.batch, heads, places, size), dtype=dtype, device=device)

    def program(phase: Phase, inputs: dict[str, torch.Tensor], length: int) -> Program:
        return Program(
            phase=phase,
            step=SequenceToSequenceStep(model, phase, tuple(inputs), len(sizes), hidden),
            inputs=inputs,
            states=states,
            outputs=("logits",),
            batch=shapes.batch,
            sequence_length=length,
            cache_length=shapes.cache_length,
        )

    prefills = [
        program("prefill", inputs | {"decoder_input_ids": token}, next(iter(inputs.values())).shape[-1])
        for inputs in examples
    ]
    step = {
        "decoder_input_ids": token,
        "positions": torch.zeros((shapes.batch,), dtype=torch.int32, device=device),
    }
    if "attention_mask" in examples[-1]:
        step["attention_mask"] = examples[-1]["attention_mask"]
    return [*prefills, program("decode", step, 1)]


def _state_sizes(
    model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]
) -> tuple[tuple[int, ...], list[tuple[int, int, int]]]:
    """Shape of the encoder's answer, and (heads, head size, encoder places) of every decoder layer, read off a run."""
    own, cross = (Cache(layer_class_to_replicate=_Recording) for _ in range(2))
    cache = EncoderDecoderCache(own, cross)
    cache.is_updated = _Never()
    zero = torch.zeros_like(inputs["decoder_input_ids"][:, 0])
    with torch.no_grad(), unobserved(model), running(StepState("prefill", zero)):
        output = model(**inputs, past_key_values=cache, use_cache=True)
    sizes = [(keys.shape[1], keys.shape[3], keys.shape[2]) for keys in _tensors_of(cross)[::2]]
    return tuple(output.encoder_last_hidden_state.shape), sizes


class _Recording(CrossLayer):
    """Keeps whatever it is given, as a cache layer of a single step would."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(None, None)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0


class _Never(dict[int, bool]):
    """`is_updated` of a cache whose number of layers is not known yet."""

    def get(self, key: int, default: Any = None) -> bool:
        return super().get(key, False)

    def __missing__(self, key: int) -> bool:
        return False


def run_sample(
    model: PreTrainedModel,
    sample: Mapping[str, torch.Tensor],
    *,
    cache_length: int,
    begin: Callable[[Phase], None],
) -> None:
    """The encoder and the decoder's first token, and one further token."""
    length = next(iter(sample.values())).shape[-1]
    shapes = GraphShapes(batch=1, buckets=(length,), cache_length=cache_length)
    prefill, decode = programs(model, shapes)
    begin("prefill")
    logits, *states = prefill.step(
        tuple(sample[name] for name in prefill.inputs), tuple(prefill.states.values())
    )
    begin("decode")
    given = dict(sample) | {
        "decoder_input_ids": logits.argmax(-1, keepdim=True),
        "positions": torch.ones(1, dtype=torch.int32),
    }
    decode.step(tuple(given[name] for name in decode.inputs), tuple(states))
