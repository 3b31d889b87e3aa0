"""The ported model as static graphs: transformers' own forward, with kernels in place of the matched layers.

One graph per program (walk/program.py). The graphs are exported from a skeleton without data; weights are named
inputs, read from the checkpoint when the graph runs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.export.graph_signature import InputKind, InputSpec
from torch.utils._pytree import tree_map
from transformers import PreTrainedModel

from neuron_port.match.probe import laid_out, tensor_of
from neuron_port.port.operators import operator
from neuron_port.recipe import Recipe
from neuron_port.registry import Registry
from neuron_port.types import GraphInput, GraphOutput, GraphSpec, Match, Shard, TensorSpec, WeightSource
from neuron_port.walk.calls import Call, content_name, flatten_tensors, spec_of
from neuron_port.walk.cutpoints import intercept
from neuron_port.walk.program import Program

LITERAL_LIMIT_BYTES = 1024  # the bundle's rule: nothing larger is written into a graph


@dataclass(frozen=True, kw_only=True)
class ExportedGraph:
    """One graph: its interface, and the torch program that is lowered, interpreted and shipped."""

    spec: GraphSpec
    program: torch.export.ExportedProgram
    derived: Mapping[str, torch.Tensor]  # computed buffers that are inputs: name without "derived:" -> values


def export_graph(
    skeleton: PreTrainedModel,
    program_of: Callable[[PreTrainedModel], Program],
    matches: Mapping[str, Match],
    registry: Registry,
    *,
    stored: Collection[str],
    canonical: Callable[[str], str],
    shards: Mapping[str, Shard] | None = None,
) -> ExportedGraph:
    """Export one program with kernels substituted.

    Args:
        skeleton: parameters on the meta device, in the dtype of the graph; it is not changed.
        program_of: the program to export, of a given copy of the skeleton.
        matches: the decision for each layer name of this phase.
        stored: names of the tensors that the checkpoint holds; other buffers are computed.
        canonical: the checkpoint's name for a parameter: that of a tied weight's home, otherwise the same.
        shards: of a skeleton that was cut over ranks: parameter or state -> which part of it a rank has.
    """
    model = copy.deepcopy(skeleton)
    program = program_of(model)
    sources = _lay_out_weights(model, matches)
    with torch.no_grad(), intercept(model, _Substitution(matches, registry)):
        exported = torch.export.export(program.step, program.arguments, strict=False)
    names = _Names(exported, program, sources, stored, canonical, shards or {})
    spec = GraphSpec(
        id=program.id,
        phase=program.phase,
        batch=program.batch,
        sequence_length=program.sequence_length,
        cache_length=program.cache_length,
        fills_bucket=program.fills_bucket,
        inputs=names.inputs(),
        outputs=names.outputs(),
    )
    derived = {
        name.removeprefix("derived:"): buffer_value(exported, item)
        for item, name in names.buffers()
        if name.startswith("derived:")
    }
    return ExportedGraph(spec=spec, program=exported, derived=derived)


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
        weights = {}
        if call.module is not None:
            weights = {role: _attribute(call.module, source.name) for role, source in match.weights.items()}
        weights, args, kwargs = _in_one_place((weights, call.args, dict(call.kwargs)))
        return recipe.forward(operator(recipe.name), weights, match.attributes, *args, **kwargs)


def _in_one_place(values: Any) -> Any:
    """Nested values with all tensors on the meta device if one is: computed buffers have values, parameters have none."""
    if all(tensor.device.type != "meta" for tensor in flatten_tensors(values)):
        return values
    return tree_map(lambda item: item.to("meta") if torch.is_tensor(item) else item, values)


def _lay_out_weights(model: PreTrainedModel, matches: Mapping[str, Match]) -> dict[str, WeightSource]:
    """Give transposed weights their kernel's shape; returns where each laid out parameter comes from."""
    sources: dict[str, WeightSource] = {}
    for layer_name, match in matches.items():
        if match.recipe is None:
            continue
        for source in match.weights.values():
            full_name = f"{layer_name.split('#')[0]}.{source.name}"
            sources[full_name] = WeightSource(name=full_name, transform=source.transform)
            if source.transform != "none":
                owner_name, _, leaf = full_name.rpartition(".")
                owner = model.get_submodule(owner_name)
                turned = laid_out(tensor_of(model, full_name), source.transform).contiguous()
                setattr(owner, leaf, torch.nn.Parameter(turned, requires_grad=False))
    return sources


def _attribute(module: torch.nn.Module, name: str) -> Any:
    """The parameter or buffer of that (dotted) name, as it is."""
    owner_name, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(owner_name), leaf)


def narrow(spec: TensorSpec) -> TensorSpec:
    """Integers of 64 bits are of 32 in a graph: a NeuronCore has no others."""
    return TensorSpec(shape=spec.shape, dtype="int32") if spec.dtype == "int64" else spec


def buffer_value(program: torch.export.ExportedProgram, item: InputSpec) -> torch.Tensor:
    """The real values of a buffer or constant of the program."""
    target = str(item.target)
    value = program.constants.get(target, program.state_dict.get(target))
    assert isinstance(value, torch.Tensor), f"{target} has no value"
    return value


class _Names:
    """The interface of an exported program: what each placeholder and each result is, in order."""

    def __init__(
        self,
        exported: torch.export.ExportedProgram,
        program: Program,
        sources: Mapping[str, WeightSource],
        stored: Collection[str],
        canonical: Callable[[str], str],
        shards: Mapping[str, Shard],
    ) -> None:
        self.exported = exported
        self.shards = shards
        self.signature = exported.graph_signature
        self.program = program
        self.sources = sources
        self.stored = stored
        self.canonical = canonical
        self.values = {node.name: node.meta["val"] for node in exported.graph.nodes if "val" in node.meta}

    def inputs(self) -> tuple[GraphInput, ...]:
        """One record per placeholder that stays an input: weights by their own name, then the step's arguments."""
        own = iter(
            [(name, "input") for name in self.program.inputs]
            + [(name, "state") for name in self.program.states]
        )
        buffers = {id(item): name for item, name in self.buffers()}
        records = []
        for item in self.signature.input_specs:
            if item.arg.name not in self.values or not torch.is_tensor(self.values[item.arg.name]):
                continue
            spec = narrow(spec_of(self.values[item.arg.name]))
            if item.kind is InputKind.USER_INPUT:
                name, role = next(own)
                part = self.shards.get(name) if role == "state" else None
                records.append(GraphInput(name=name, role=role, spec=spec, shard=part))  # type: ignore[arg-type]
            elif item.kind is InputKind.PARAMETER or id(item) in buffers:
                name = str(item.target).removeprefix("model.")
                source = buffers[id(item)] if id(item) in buffers else self._source(name)
                transform = self.sources[name].transform if name in self.sources else "none"
                records.append(
                    GraphInput(
                        name=name,
                        role="weight",
                        spec=spec,
                        source=source,
                        transform=transform,
                        shard=self.shards.get(name),
                    )
                )
        return tuple(records)

    def _source(self, name: str) -> str:
        """The checkpoint's name of a parameter; a tied one that is cut differently from its home keeps its own."""
        home = self.canonical(name)
        return home if self.shards.get(home) == self.shards.get(name) else name

    def buffers(self) -> Iterator[tuple[InputSpec, str]]:
        """Buffers and constants that are inputs, each with its source: the checkpoint, or our own computation."""
        for item in self.signature.input_specs:
            if item.kind not in (InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
                continue
            name = str(item.target).removeprefix("model.")
            if name in self.stored:
                yield item, self.canonical(name)
            elif spec_of(self.values[item.arg.name]).size_bytes > LITERAL_LIMIT_BYTES:
                yield (
                    item,
                    f"derived:{name if item.kind is InputKind.BUFFER else self._by_content(name, item)}",
                )

    def _by_content(self, name: str, item: InputSpec) -> str:
        """A name for a constant that torch numbered: graphs number their own, and a bundle holds those of all graphs."""
        return f"{name.rpartition('.')[0]}.{content_name(buffer_value(self.exported, item))}"

    def outputs(self) -> tuple[GraphOutput, ...]:
        records = []
        names = [*self.program.outputs, *self.program.states]
        for name, item in zip(names, self.signature.output_specs, strict=True):
            spec = narrow(spec_of(self.values[item.arg.name]))
            if name in self.program.states:
                records.append(GraphOutput(name=f"{name}.new", role="state", spec=spec, alias_of=name))
            else:
                records.append(GraphOutput(name=name, role="output", spec=spec))
        return tuple(records)
