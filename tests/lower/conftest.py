"""One way from a torch function to its results on XLA-CPU, shared by the tests of the lowering."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from neuron_port.lower import KernelCall, decompose, emit, program_inputs
from neuron_port.lower.interface import NARROWED
from neuron_port.types import GraphInput, GraphOutput, GraphSpec, TensorSpec


@dataclass(frozen=True)
class Graph:
    """An emitted graph and the interface it was emitted with."""

    hlo: bytes
    spec: GraphSpec
    module: torch.nn.Module

    def weights(self) -> dict[str, Any]:
        """Arrays for every input that is a parameter or buffer of the module."""
        from neuron_port.lower.execution import from_torch

        tensors = dict(self.module.named_parameters(remove_duplicate=False)) | dict(
            self.module.named_buffers()
        )
        return {
            item.name: from_torch(tensors[item.name]) for item in self.spec.inputs if item.role == "weight"
        }

    def run(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The results of the emitted bytes on XLA-CPU, as torch tensors."""
        pytest.importorskip("jaxlib", reason="executing HLO needs neuron-port[verify]")
        from neuron_port.lower import XlaExecutable
        from neuron_port.lower.execution import from_torch, to_torch

        results = XlaExecutable(self.hlo, optimize=False).bind(self.weights())(*map(from_torch, inputs))
        return tuple(map(to_torch, results))


def lower(
    module: torch.nn.Module | Callable[..., Any],
    inputs: Sequence[torch.Tensor],
    *,
    kernels: Mapping[str, KernelCall] | None = None,
    references: Mapping[str, Callable[..., Any]] | None = None,
    states: Mapping[int, str] | None = None,
    name: str = "graph",
) -> Graph:
    """Export, decompose and emit; `states` maps the index of an output to the input that it overwrites."""
    wrapped = module if isinstance(module, torch.nn.Module) else _Function(module)
    with torch.no_grad():
        program = decompose(torch.export.export(wrapped.eval(), tuple(inputs), strict=False), references)
    spec = interface(program, states or {}, name)
    return Graph(emit(program, spec, kernels=kernels or {}), spec, wrapped)


def interface(
    program: torch.export.ExportedProgram, states: Mapping[int, str], name: str = "graph"
) -> GraphSpec:
    """Names for everything: weights by their path, inputs by their argument, outputs out0, out1 .."""
    inputs = tuple(
        GraphInput(
            name=item.target or item.placeholder,
            role="weight" if item.target else "state" if item.placeholder in states.values() else "input",
            spec=item.spec,
            source=item.target,
        )
        for item in program_inputs(program)
    )
    results = next(node for node in program.graph.nodes if node.op == "output").args[0]
    outputs = tuple(
        GraphOutput(
            name=f"out{index}",
            role="state" if index in states else "output",
            spec=spec_of(node.meta["val"]),
            alias_of=states.get(index),
        )
        for index, node in enumerate(results)
    )
    return GraphSpec(
        id=name, phase="prefill", batch=1, sequence_length=1, cache_length=0, inputs=inputs, outputs=outputs
    )


def spec_of(tensor: torch.Tensor) -> TensorSpec:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorSpec(shape=tuple(tensor.shape), dtype=NARROWED.get(dtype, dtype))


class _Function(torch.nn.Module):
    """A module whose forward is the function itself, so that inputs keep the names of its arguments."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.forward = function


@pytest.fixture(scope="session", name="lower")
def lower_fixture() -> Callable[..., Graph]:
    """`lower(module or function, inputs, ...) -> Graph`."""
    return lower
