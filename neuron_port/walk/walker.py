"""Finds every layer of a model by running it: once without data for structure, once with data for real values.

The structural walk runs on a skeleton (parameters on the meta device), so a model of any size costs nothing; the
capturing walk runs real prompts through real weights and keeps the inputs of the first layer of each signature.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import init_empty_weights
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from neuron_port.types import Layer, LayerGraph, TensorSpec
from neuron_port.walk.cutpoints import Call, dtype_name, flatten_tensors, intercept, spec_of
from neuron_port.walk.inputs import example_inputs
from neuron_port.walk.step import CausalStep, Phase


@dataclass(frozen=True, kw_only=True)
class Walk:
    """A layer graph, and for each signature the first call that had it (on the skeleton: shapes without values)."""

    graph: LayerGraph
    calls: Mapping[str, Call]


@dataclass(frozen=True, kw_only=True)
class Capture:
    """Real inputs of one layer: `args` and `kwargs` of its call, tensors detached and owned."""

    layer: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def build_skeleton(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model with parameters on the meta device and real (computed) buffers."""
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval().requires_grad_(False)


def walk(
    model: PreTrainedModel,
    checkpoint_revision: str,
    phase: Phase,
    *,
    batch: int,
    sequence_length: int,
    cache_length: int,
) -> Walk:
    """Every call of one step, in order, with shapes, TensorE FLOPs and bytes; parents come before their children."""
    recorder = _Recorder()
    inputs = example_inputs(
        model,
        phase,
        batch=batch,
        sequence_length=sequence_length,
        cache_length=cache_length,
        dtype=model.dtype,
    )
    with torch.no_grad(), intercept(model, recorder), recorder.counter:
        CausalStep(model, phase)(*inputs)
    graph = LayerGraph(
        checkpoint=checkpoint_revision,
        phase=phase,
        batch=batch,
        sequence_length=sequence_length if phase == "prefill" else 1,
        layers=tuple(layer for layer in recorder.layers if layer is not None),
        flops=recorder.counter.get_total_flops(),
    )
    return Walk(graph=graph, calls=recorder.calls)


@dataclass
class _Recorder:
    """The walker's handler: lets each call run and notes what went in and out."""

    layers: list[Layer | None] = field(default_factory=list)
    calls: dict[str, Call] = field(default_factory=dict)
    counter: FlopCounterMode = field(default_factory=lambda: FlopCounterMode(display=False))

    def __call__(self, call: Call) -> Any:
        place = len(self.layers)
        self.layers.append(None)  # a parent stands before its children
        flops_before = self.counter.get_total_flops()
        result = call.run()
        layer = describe(call, result, self.counter.get_total_flops() - flops_before)
        self.layers[place] = layer
        self.calls.setdefault(layer.signature, call)
        return result


def describe(call: Call, result: Any, flops: int) -> Layer:
    """The record of one call."""
    parameters: dict[str, TensorSpec] = {}
    if call.operation == "module" and call.module is not None:
        parameters = {name: spec_of(tensor) for name, tensor in call.module.named_parameters()}
    inputs = call.inputs
    outputs = tuple(spec_of(tensor) for tensor in flatten_tensors(result))
    touched = (*inputs, *outputs, *parameters.values())
    return Layer(
        name=call.name,
        operation=call.operation,
        module_class=call.owner,
        inputs=inputs,
        outputs=outputs,
        parameters=parameters,
        attributes=dict(call.attributes),
        flops=flops,
        hbm_bytes=sum(spec.size_bytes for spec in touched),
    )


def capture(
    model: PreTrainedModel,
    wanted: Collection[str],
    input_ids: torch.Tensor,
    *,
    cache_length: int,
) -> dict[tuple[Phase, str], Capture]:
    """Run one real prompt and one further token; keep the inputs of the layers named in `wanted`, for each phase.

    Args:
        input_ids: int64 [1, S], S < cache_length.
    """
    captured: dict[tuple[Phase, str], Capture] = {}
    phase: Phase = "prefill"

    def keep(call: Call) -> Any:
        if call.name in wanted and (phase, call.name) not in captured:
            captured[phase, call.name] = Capture(
                layer=call.name, args=own(call.args), kwargs=own(dict(call.kwargs))
            )
        return call.run()

    length = input_ids.shape[1]
    _, positions, caches = example_inputs(
        model, "prefill", batch=1, sequence_length=length, cache_length=cache_length, dtype=model.dtype
    )
    with torch.no_grad(), intercept(model, keep):
        logits, *caches = CausalStep(model, "prefill")(input_ids, positions, caches)
        phase = "decode"
        next_ids = logits.argmax(-1, keepdim=True)
        CausalStep(model, "decode")(next_ids, torch.tensor([length], dtype=torch.int32), caches)
    return captured


def own(value: Any) -> Any:
    """A copy of nested values whose tensors nobody else can change."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: own(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(own(item) for item in value)
    return value


__all__ = ["Capture", "Walk", "build_skeleton", "capture", "describe", "dtype_name", "walk"]
