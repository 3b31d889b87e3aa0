"""A tensor-parallel conversion's graphs as steps: all ranks on XLA-CPU, and all ranks with kernels on the simulator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from neuron_port.execution import to_numpy, to_torch
from neuron_port.lower import ParallelExecutable
from neuron_port.pipeline.lowering import LoweredGraph
from neuron_port.port.export import ExportedGraph
from neuron_port.port.ranks import RankedStep, Tensors, interpreted
from neuron_port.port.run import GraphRunner, WeightBank
from neuron_port.types import GraphInput


def xla_step(graph: LoweredGraph, bank: WeightBank, ranks: int) -> RankedStep:
    """The emitted graph on as many CPU devices as it has ranks, each with its weights bound."""
    weights = {
        item.name: [_weight(graph, bank, item, rank) for rank in range(ranks)]
        for item in graph.spec.inputs
        if item.role == "weight"
    }
    executable = ParallelExecutable(graph.reference_hlo, ranks=ranks).bind(weights)

    def run(inputs: Sequence[torch.Tensor], states: list[Tensors]) -> list[tuple[Tensors, Tensors]]:
        given = [[to_numpy(item)] * ranks for item in inputs]
        given += [[to_numpy(own) for own in parts] for parts in zip(*states, strict=True)]
        results = executable(*given)
        count = len(results) - len(states[0])
        of_rank = [[to_torch(parts[rank]) for parts in results] for rank in range(ranks)]
        return [(own[:count], own[count:]) for own in of_rank]

    return RankedStep(graph.spec, ranks, run)


def _weight(graph: LoweredGraph, bank: WeightBank, item: GraphInput, rank: int) -> np.ndarray:
    if item.source is not None and item.source.removeprefix("derived:") in graph.derived:
        return graph.derived[item.source.removeprefix("derived:")]
    return to_numpy(bank.get(item, rank))


def simulator_step(
    exported: ExportedGraph, bank: WeightBank, operators: Mapping[str, Any], ranks: int
) -> RankedStep:
    """The exported graph with kernels on the simulator, all ranks in lockstep."""
    return interpreted([GraphRunner(exported, bank, operators, rank) for rank in range(ranks)])
