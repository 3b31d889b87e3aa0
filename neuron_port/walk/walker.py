"""Finds every layer of a model by running it: once without data for structure, once with data for real values.

The structural walk runs on a skeleton (parameters on the meta device), so a model of any size costs nothing; the
capturing walk runs real prompts through real weights and keeps the inputs of the first layer of each signature.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from neuron_port.types import Layer, LayerGraph, Phase, TensorSpec
from neuron_port.walk.calls import Call, dtype_name, flatten_tensors, spec_of, stored_tensors
from neuron_port.walk.cutpoints import intercept
from neuron_port.walk.families import run_sample
from neuron_port.walk.program import Program


@dataclass(frozen=True, kw_only=True)
class Walk:
    """A layer graph, and for each signature the first call that had it (on the skeleton: shapes without values).

    `touched`: parameters that the code between the layers reads itself (class tokens, scales).
    `tied`: parameters that transformers ties -> the one whose values they have. On a skeleton they are two tensors.
    """

    graph: LayerGraph
    calls: Mapping[str, Call]
    touched: frozenset[str] = frozenset()
    tied: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Capture:
    """Real inputs of one layer: `args` and `kwargs` of its call, tensors detached and owned."""

    layer: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def walk(model: PreTrainedModel, checkpoint_revision: str, program: Program) -> Walk:
    """Every call of one step, in order, with shapes, TensorE FLOPs and bytes; parents come before their children."""
    recorder = _Recorder()
    with torch.no_grad(), intercept(model, recorder) as touched, recorder.counter:
        program.step(*program.arguments)
    graph = LayerGraph(
        checkpoint=checkpoint_revision,
        phase=program.phase,
        batch=program.batch,
        sequence_length=program.sequence_length,
        layers=tuple(layer for layer in recorder.layers if layer is not None),
        flops=recorder.counter.get_total_flops(),
    )
    return Walk(
        graph=graph, calls=recorder.calls, touched=touched(), tied=dict(model.all_tied_weights_keys or {})
    )


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
        if _is_view(call, result):
            return result  # dropout, identity, flatten: nothing is computed
        flops = self.counter.get_total_flops() - flops_before
        with torch._C.DisableTorchFunction():  # looking at a parameter's shape is no use of it by the model
            layer = describe(call, result, flops)
        self.layers[place] = layer
        self.calls.setdefault(layer.signature, call)
        return result


def _is_view(call: Call, result: Any) -> bool:
    """Whether a module gave back its input, as it is or in another shape."""
    if call.operation != "module" or not call.args or not torch.is_tensor(call.args[0]):
        return False
    given = call.args[0]
    home = given if given._base is None else given._base
    return result is given or (
        torch.is_tensor(result) and result._base is home and result.numel() == given.numel()
    )


def describe(call: Call, result: Any, flops: int) -> Layer:
    """The record of one call."""
    parameters: dict[str, TensorSpec] = {}
    if call.operation == "module" and call.module is not None:
        parameters = {name: spec_of(tensor) for name, tensor in stored_tensors(call.module).items()}
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
    sample: Mapping[str, torch.Tensor],
    *,
    cache_length: int,
) -> dict[tuple[Phase, str], Capture]:
    """Run one real input (and, of a model that generates, one further token); keep the inputs of the layers in `wanted`.

    Args:
        sample: the model's inputs by name, one row each; of a causal model `input_ids` int64 [1, S], S < cache_length.
    """
    captured: dict[tuple[Phase, str], Capture] = {}
    phase: list[Phase] = []

    def keep(call: Call) -> Any:
        if phase and call.name in wanted and (phase[-1], call.name) not in captured:
            captured[phase[-1], call.name] = Capture(
                layer=call.name, args=own(call.args), kwargs=own(dict(call.kwargs))
            )
        return call.run()

    with torch.no_grad(), intercept(model, keep):
        run_sample(model, sample, cache_length=cache_length, begin=phase.append)
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


__all__ = ["Capture", "Walk", "capture", "describe", "dtype_name", "walk"]
