"""What one core holds: weights, states and scratch of the model cut over N cores, by the product's own cutter.

A trimmed copy of the model is cut as `convert --tensor-parallel N` cuts the whole (walk/sharding.py), so a degree is
offered only where the model's own plan and heads allow it; blocks are then multiplied (blocks.py).
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from neuron_port.errors import NeuronPortError, UsageError
from neuron_port.preflight.anatomy import Tables, tables_of, weight_bytes
from neuron_port.preflight.blocks import Trimmed, skeleton
from neuron_port.preflight.records import Anatomy, Share
from neuron_port.types import DTYPE_BYTES, Layer
from neuron_port.walk.families import programs_of
from neuron_port.walk.program import GraphShapes
from neuron_port.walk.recurrent_cache import StateLayout, state_layout
from neuron_port.walk.sharding import shard
from neuron_port.walk.walker import Walk, walk

# Degrees that AWS's documents list: about-neuron/transformers/generative-llm-inference-with-neuron.rst and the Neuron
# calculator for Inf2 and Trn1. For Trn2 no list was found; its tutorials use powers of two.
LISTED_DEGREES = {
    "inf2": (1, 2, 4, 8, 12, 24),
    "trn1": (1, 2, 8, 32),
    "trn2": (1, 2, 4, 8, 16, 32, 64),
}
PROBE_TOKENS = 512  # of the prompt whose walk says what attention costs
AUDIO_SAMPLES = 160_000  # ten seconds at 16 kHz: what an encoder of sounds is sized with


@dataclass(frozen=True, kw_only=True)
class Cut:
    """The trimmed model on one of N cores, and what cutting it took."""

    degree: int
    model: PreTrainedModel
    tables: Tables
    all_reduces: float  # per step, whole model
    notes: tuple[str, ...]


class Sizes:
    """Sizes of one model at one batch, context and weight format; each degree is cut when it is first asked for."""

    def __init__(
        self,
        whole: PreTrainedModel,
        trimmed: Trimmed,
        found: Anatomy,
        *,
        batch: int,
        context: int,
        weight_format: str,
    ) -> None:
        self.whole = whole
        self.trimmed = trimmed
        self.anatomy = found
        self.batch = batch
        self.context = context
        self.weight_format = weight_format
        self.dtype = torch.float32 if weight_format == "float32" else torch.bfloat16
        self.refusals: dict[int, str] = {}  # degree -> why the model cannot be cut so

    @functools.cached_property
    def shapes(self) -> GraphShapes:
        """The graphs that are walked: one prompt of a modest length, and a step at the asked batch and length."""
        if self.anatomy.family == "encoder":
            return GraphShapes(batch=self.batch, buckets=(self.context,), cache_length=self.context)
        bucket = min(PROBE_TOKENS, self.context)
        if self.anatomy.family == "sequence to sequence":
            bucket = min(8, self.context)
        return GraphShapes(batch=self.batch, buckets=(bucket,), cache_length=self.context)

    @functools.cache  # noqa: B019 - lives as long as the check
    def cut(self, degree: int) -> Cut:
        """The trimmed model for one of `degree` cores. Raises UsageError where the model cannot be cut so."""
        model = skeleton(self.trimmed.config, self.dtype)
        sums = 0.0
        notes: tuple[str, ...] = ()
        if degree == 1:
            model.tie_weights()  # cut over cores, the head has its part and the table of tokens stays whole
        tables = tables_of(model)
        if degree > 1:
            if self.anatomy.family != "causal":
                raise UsageError(
                    f"{self.anatomy.architecture} is not cut over cores: only causal language models are"
                )
            sharding = shard(model, degree)
            sums = sum(self.trimmed.repeat_of(place) for place in sharding.sums)
            notes = sharding.notes
        return Cut(degree=degree, model=model, tables=tables, all_reduces=sums, notes=notes)

    @functools.cached_property
    def walks(self) -> tuple[Walk, ...]:
        """Every graph of the trimmed model on one core, run without data."""
        model = self.cut(1).model
        return tuple(walk(model, "preflight", program) for program in programs_of(model, self.shapes))

    def share(self, degree: int, listed: tuple[int, ...], weight_format: str | None = None) -> Share:
        """What one of `degree` cores holds; in another 8- or 16-bit weight format, if one is named."""
        cut = self.cut(degree)
        weights = weight_bytes(cut.model, self.trimmed, weight_format or self.weight_format, cut.tables)
        return Share(
            degree=degree,
            weight_bytes=sum(weights.values()),
            state_bytes=self.state_bytes(degree),
            scratch_bytes=self.scratch_bytes(degree),
            all_reduces=round(cut.all_reduces),
            listed=degree in listed,
        )

    def shares(self, target: str, largest: int, weight_format: str | None = None) -> tuple[Share, ...]:
        """Every degree up to `largest` that the target's documents list or the heads allow; 1 comes first."""
        listed = LISTED_DEGREES[target]
        heads = getattr(self.whole.config.get_text_config(), "num_attention_heads", 1) or 1
        powers = {2**power for power in range(largest.bit_length())}
        degrees = sorted({*listed, *(number for number in powers if heads % number == 0)})
        found = []
        for degree in degrees:
            if degree > largest:
                continue
            try:
                found.append(self.share(degree, listed, weight_format))
            except NeuronPortError as error:
                self.refusals[degree] = error.message
        return tuple(found)

    # -- states ---------------------------------------------------------------------------------------------

    def state_bytes(self, degree: int = 1) -> int:
        """Caches and recurrent states of the whole batch, on one of `degree` cores."""
        per_slot, fixed = self.state_parts(degree)
        return self.batch * (per_slot * self.context + fixed)

    @functools.cache  # noqa: B019
    def state_parts(self, degree: int = 1) -> tuple[int, int]:
        """(bytes of one more cached token, bytes that do not grow), of one sequence, on one core of `degree`."""
        if self.anatomy.family == "encoder":
            return 0, 0
        if self.anatomy.family == "causal":
            layout = state_layout(self.cut(degree).model)
            if type(layout) is StateLayout:
                return self._parts_of(layout)
        return self._parts_by_difference()

    def _parts_of(self, layout: StateLayout) -> tuple[int, int]:
        """From the layout of the trimmed model: each layer's state stands for those of the blocks like it."""
        repeats = self._repeats_by_layer(layout.layers)
        per_slot = fixed = 0.0
        for item in layout.tensors:
            size = _product(item.shape) * item.dtype.itemsize * repeats[item.layer]
            if None in item.shape:
                per_slot += size
            else:
                fixed += size
        return round(per_slot), round(fixed)

    def _repeats_by_layer(self, layers: int) -> list[float]:
        """How many layers of the model each layer of the trimmed cache stands for."""
        by_place: dict[str, list[float]] = {}
        for block, repeat in self.trimmed.repeats.items():
            by_place.setdefault(block.rpartition(".")[0], []).append(repeat)
        return next((repeats for repeats in by_place.values() if len(repeats) == layers), [1.0] * layers)

    def _parts_by_difference(self) -> tuple[int, int]:
        """From the graphs of the whole model at two lengths of its cache."""
        lengths = (self.context, max(1, self.context // 2))
        sizes = []
        for length in lengths:
            bucket = min(self.shapes.buckets[0], length)
            programs = programs_of(self.whole, GraphShapes(batch=1, buckets=(bucket,), cache_length=length))
            states = programs[-1].states.values()
            sizes.append(sum(tensor.numel() * DTYPE_BYTES["bfloat16"] for tensor in states))
        per_slot = (sizes[0] - sizes[1]) // max(1, lengths[0] - lengths[1])
        return per_slot, sizes[0] - per_slot * lengths[0]

    # -- scratch and work -----------------------------------------------------------------------------------

    def scratch_bytes(self, degree: int = 1) -> int:
        """Twice the inputs and results of the largest call: the next call's are being made meanwhile.

        What a core has of it shrinks with the degree down to the sum of two residual streams, which every core has
        whole. Products with gathered experts are left out: `gathered_bytes` says what they would take.
        """
        calls = [layer for one in self.walks for layer in one.graph.layers if not _inside_experts(layer)]
        largest = max((_touched_bytes(layer) for layer in calls), default=0)
        residual = max((spec.size_bytes for layer in calls for spec in layer.outputs[:1]), default=0)
        residual = min(residual, self._boundary_bytes())
        return max(2 * largest // degree, 6 * residual)

    def gathered_bytes(self, phase: str) -> int:
        """What the experts' products touch in one step where each token's own weights are gathered for it."""
        return max(
            (
                _touched_bytes(layer)
                for one in self.walks
                if one.graph.phase == phase
                for layer in one.graph.layers
                if _inside_experts(layer)
            ),
            default=0,
        )

    def _boundary_bytes(self) -> int:
        """The largest tensor between two blocks: tokens of the graph times the hidden size."""
        hidden = hidden_size(self.whole)
        tokens = max((one.graph.batch * one.graph.sequence_length for one in self.walks), default=1)
        return tokens * hidden * self.dtype.itemsize

    def flops(self, phase: str) -> float:
        """TensorE operations of one step of the walked graphs, whole model."""
        for one in self.walks:
            if one.graph.phase == phase:
                inside = {layer.name: layer.flops for layer in one.graph.layers}
                blocks = {name: float(inside.get(name, 0)) for name in self.trimmed.repeats}
                return one.graph.flops - sum(blocks.values()) + self.trimmed.scaled(blocks)
        return 0.0


def hidden_size(model: PreTrainedModel) -> int:
    """Width of the stream between blocks."""
    config: Any = model.config.get_text_config()
    return int(getattr(config, "hidden_size", None) or getattr(config, "d_model", None) or 1)


def _touched_bytes(layer: Layer) -> int:
    return sum(spec.size_bytes for spec in (*layer.inputs, *layer.outputs))


def _inside_experts(layer: Layer) -> bool:
    return re.search(r"\.experts(?:[.#]|$)", layer.name) is not None


def _product(shape: tuple[Any, ...]) -> int:
    result = 1
    for size in shape:
        result *= 1 if size is None else size
    return result
