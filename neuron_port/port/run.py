"""Runs an exported graph node by node in this process: glue in torch, kernels through whatever backend is chosen.

It is the very program that is lowered and shipped, so what is proven here is what will run there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.export.graph_signature import InputKind

from neuron_port.match.probe import laid_out
from neuron_port.port.export import ExportedGraph, buffer_value
from neuron_port.port.operators import use_backend
from neuron_port.types import GraphInput
from neuron_port.walk.sharding import part_of

ReadWeight = Callable[[str, torch.dtype], torch.Tensor]
Operator = Callable[..., Any]


class WeightBank:
    """Graph weights in the kernels' layout, each read and laid out once for all graphs of one dtype."""

    def __init__(self, read: ReadWeight) -> None:
        self._read = read
        self._weights: dict[tuple[str, str, str, int], torch.Tensor] = {}

    def get(self, wanted: GraphInput, rank: int = 0) -> torch.Tensor:
        """The weight of a graph; of one that several ranks run, the part of `rank`."""
        assert wanted.source is not None, f"graph input {wanted.name} is not a weight"
        part = wanted.shard.part(rank) if wanted.shard is not None else -1
        key = (wanted.source, wanted.transform, wanted.spec.dtype, part)
        if key not in self._weights:
            tensor = self._read(wanted.source, getattr(torch, wanted.spec.dtype))
            own = part_of(tensor, wanted.shard, rank)
            self._weights[key] = laid_out(own, wanted.transform).contiguous()
        return self._weights[key]

    def values(self) -> Iterable[torch.Tensor]:
        return self._weights.values()


class GraphRunner:
    """One graph with its weights bound: called like the step that it was exported from. It takes the program over."""

    def __init__(
        self,
        exported: ExportedGraph,
        bank: WeightBank,
        operators: Mapping[str, Operator] | None = None,
        rank: int = 0,
    ) -> None:
        self.spec = exported.spec
        self._rank = rank
        self._operators = operators or {}
        _bring_to_cpu(exported.program)
        self._interpreter = torch.fx.Interpreter(exported.program.graph_module)
        self._bound = self._bind(exported, bank)

    def _bind(self, exported: ExportedGraph, bank: WeightBank) -> list[torch.Tensor]:
        """Values of the placeholders that come before the step's own arguments, in order."""
        weights = {item.name: item for item in self.spec.inputs if item.role == "weight"}
        bound = []
        for item in exported.program.graph_signature.input_specs:
            if item.kind is InputKind.USER_INPUT:
                break
            weight = weights.get(str(item.target).removeprefix("model."))
            if weight is not None and str(weight.source).removeprefix("derived:") not in exported.derived:
                bound.append(bank.get(weight, self._rank))
            else:
                bound.append(buffer_value(exported.program, item))
        return bound

    def __call__(
        self, inputs: Sequence[torch.Tensor], states: Sequence[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The graph's inputs and states, in its order -> (outputs, new states)."""
        with torch.no_grad(), use_backend(self._operators):
            results = list(self._interpreter.run(*self._bound, *inputs, *states))
        count = len(results) - len(states)
        return results[:count], results[count:]


def _bring_to_cpu(program: torch.export.ExportedProgram) -> None:
    """The graph was traced on the meta device; say "cpu" wherever it says so, and drop checks of it."""
    graph = program.graph_module.graph

    def moved(item: Any) -> Any:
        return torch.device("cpu") if isinstance(item, torch.device) and item.type == "meta" else item

    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph.erase_node(node)
            continue
        node.args = tuple(moved(item) for item in node.args)
        node.kwargs = {key: moved(item) for key, item in node.kwargs.items()}
    program.graph_module.recompile()
