"""The ported model as static graphs: transformers' own forward, with kernels in place of the matched layers.

One graph per prefill bucket and one decode graph. The graphs are exported from a skeleton without data; weights are
named inputs, read from the checkpoint when the graph runs.  B = batch, S = bucket, C = cache length.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.export.graph_signature import InputKind, InputSpec
from transformers import PreTrainedModel

from neuron_port.port.operators import operator
from neuron_port.recipe import Recipe
from neuron_port.registry import Registry
from neuron_port.types import GraphInput, GraphOutput, GraphSpec, Match, WeightSource
from neuron_port.walk.cutpoints import Call, intercept, spec_of
from neuron_port.walk.inputs import example_inputs
from neuron_port.walk.step import CausalStep, Phase

LITERAL_LIMIT_BYTES = 1024  # the bundle's rule: nothing larger is written into a graph


@dataclass(frozen=True, kw_only=True)
class ExportedGraph:
    """One graph: its interface, and the torch program that is lowered, interpreted and shipped."""

    spec: GraphSpec
    program: torch.export.ExportedProgram
    derived: Mapping[str, torch.Tensor]  # computed buffers that are inputs: name without "derived:" -> values


def graph_id(phase: Phase, batch: int, sequence_length: int, cache_length: int) -> str:
    return (
        f"prefill_b{batch}_s{sequence_length}" if phase == "prefill" else f"decode_b{batch}_t{cache_length}"
    )


def export_graph(
    skeleton: PreTrainedModel,
    matches: Mapping[str, Match],
    registry: Registry,
    phase: Phase,
    *,
    canonical: Callable[[str], str],
    batch: int,
    sequence_length: int,
    cache_length: int,
) -> ExportedGraph:
    """Export one step with kernels substituted.

    Args:
        skeleton: parameters on the meta device, in the dtype of the graph; it is not changed.
        matches: the decision for each layer name of this phase.
        canonical: the checkpoint's name for a parameter: that of a tied weight's home, otherwise the same.
    """
    inputs = example_inputs(
        skeleton,
        phase,
        batch=batch,
        sequence_length=sequence_length,
        cache_length=cache_length,
        dtype=skeleton.dtype,
    )
    model = copy.deepcopy(skeleton)
    sources = _lay_out_weights(model, matches)
    with torch.no_grad(), intercept(model, _Substitution(matches, registry)):
        program = torch.export.export(CausalStep(model, phase), inputs, strict=False)
    spec = GraphSpec(
        id=graph_id(phase, batch, sequence_length, cache_length),
        phase=phase,
        batch=batch,
        sequence_length=sequence_length if phase == "prefill" else 1,
        cache_length=cache_length,
        inputs=_inputs(program, sources, canonical),
        outputs=_outputs(program),
    )
    return ExportedGraph(spec=spec, program=program, derived=dict(large_buffers(program)))


class _Substitution:
    """The port's handler: matched calls go to their recipe's op, all others run as they are."""

    def __init__(self, matches: Mapping[str, Match], registry: Registry) -> None:
        self.matches = matches
        self.registry = registry

    def __call__(self, call: Call) -> Any:
        match = self.matches.get(call.name)
        if match is None or match.recipe is None:
            return call.run()
        recipe: Recipe = self.registry[match.recipe].recipe
        weights = {role: call.module.get_parameter(source.name) for role, source in match.weights.items()}  # type: ignore[union-attr]
        return recipe.forward(operator(recipe.name), weights, match.attributes, *call.args, **call.kwargs)


def _lay_out_weights(model: PreTrainedModel, matches: Mapping[str, Match]) -> dict[str, WeightSource]:
    """Give transposed weights their kernel's shape; returns where each laid out parameter comes from."""
    sources: dict[str, WeightSource] = {}
    for layer_name, match in matches.items():
        if match.recipe is None:
            continue
        for source in match.weights.values():
            full_name = f"{layer_name}.{source.name}"
            sources[full_name] = WeightSource(name=full_name, transform=source.transform)
            if source.transform == "transpose":
                owner_name, _, leaf = full_name.rpartition(".")
                owner = model.get_submodule(owner_name)
                turned = getattr(owner, leaf).detach().t().contiguous()
                setattr(owner, leaf, torch.nn.Parameter(turned, requires_grad=False))
    return sources


def large_buffers(program: torch.export.ExportedProgram) -> Iterator[tuple[str, torch.Tensor]]:
    """Buffers and constants too large for a literal: they travel beside the checkpoint's weights."""
    for item in program.graph_signature.input_specs:
        if item.kind in (InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            tensor = buffer_value(program, item)
            if tensor.numel() * tensor.element_size() > LITERAL_LIMIT_BYTES:
                yield str(item.target).removeprefix("model."), tensor


def buffer_value(program: torch.export.ExportedProgram, item: InputSpec) -> torch.Tensor:
    """The real values of a buffer or constant of the program."""
    target = str(item.target)
    value = program.constants.get(target, program.state_dict.get(target))
    assert isinstance(value, torch.Tensor), f"{target} has no value"
    return value


def _inputs(
    program: torch.export.ExportedProgram,
    sources: Mapping[str, WeightSource],
    canonical: Callable[[str], str],
) -> tuple[GraphInput, ...]:
    """One record per placeholder that stays an input: parameters by their own name, then the step's own arguments."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    records = []
    cache_number = 0
    for item in program.graph_signature.input_specs:
        name = item.arg.name
        spec = spec_of(values[name])
        if item.kind is InputKind.PARAMETER:
            weight_name = str(item.target).removeprefix("model.")
            transform = sources[weight_name].transform if weight_name in sources else "none"
            records.append(
                GraphInput(
                    name=weight_name,
                    role="weight",
                    spec=spec,
                    source=canonical(weight_name),
                    transform=transform,
                )
            )
        elif item.kind in (InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            if spec.size_bytes > LITERAL_LIMIT_BYTES:
                target = str(item.target).removeprefix("model.")
                records.append(GraphInput(name=target, role="weight", spec=spec, source=f"derived:{target}"))
        elif item.kind is InputKind.USER_INPUT:
            if name.startswith("caches"):
                records.append(GraphInput(name=_cache_name(cache_number), role="state", spec=spec))
                cache_number += 1
            else:
                records.append(GraphInput(name=name, role="input", spec=spec))
    return tuple(records)


def _outputs(program: torch.export.ExportedProgram) -> tuple[GraphOutput, ...]:
    values = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    records = []
    for number, item in enumerate(program.graph_signature.output_specs):
        spec = spec_of(values[item.arg.name])
        if number == 0:
            records.append(GraphOutput(name="logits", role="output", spec=spec))
        else:
            name = _cache_name(number - 1)
            records.append(GraphOutput(name=f"{name}.new", role="state", spec=spec, alias_of=name))
    return tuple(records)


def _cache_name(number: int) -> str:
    """Caches alternate: keys [B, G, D, C], then values [B, G, C, D], layer by layer."""
    return f"{'value' if number % 2 else 'key'}_cache.{number // 2}"
