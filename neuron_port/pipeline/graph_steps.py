"""A conversion's graphs as steps that can be called: on XLA-CPU as emitted, and with their kernels on the simulator.

What every whole-model proof stands on. Weights are read and laid out once for all graphs of a dtype, and freed by
`release` before the next dtype's come.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from neuron_port.errors import ParityError
from neuron_port.execution import simulated_operator, to_numpy, to_torch
from neuron_port.lower import XlaExecutable
from neuron_port.pipeline import parallel_steps
from neuron_port.pipeline.lowering import LoweredGraph, export_one
from neuron_port.pipeline.planning import Plan
from neuron_port.pipeline.workbench import Workbench
from neuron_port.port.generate import Step
from neuron_port.port.run import GraphRunner, WeightBank
from neuron_port.simulator import SimulatorError
from neuron_port.types import GraphSpec

GRAPH_STAGE, MODEL_STAGE = "graph-proof", "model-proof"  # where proofs 2 and 3 are kept in the store
# What decides how a graph runs, for the keys under which proofs are kept: emitted, and interpreted in torch, where the
# operators that write states and join ranks are walk's own.
_STEPS_CODE = (
    "parity",
    "port",
    "pipeline/graph_steps",
    "pipeline/parallel_steps",
    "walk/cutting",
    "walk/sharding",
)
XLA_CODE = ("lower/execution", "lower/parallel_execution", *_STEPS_CODE)
SIMULATOR_CODE = ("simulator", "execution", "walk/cache", "walk/collectives", *_STEPS_CODE)
Progress = Callable[[str, int, int], None]


class XlaStep:
    """An emitted graph on XLA-CPU with its weights bound, called like a step."""

    def __init__(self, graph: LoweredGraph, bank: WeightBank) -> None:
        self.spec: GraphSpec = graph.spec
        weights = {
            item.name: graph.derived[item.source.removeprefix("derived:")]
            if item.source is not None and item.source.removeprefix("derived:") in graph.derived
            else to_numpy(bank.get(item))
            for item in graph.spec.inputs
            if item.role == "weight"
        }
        self._executable = XlaExecutable(graph.reference_hlo).bind(weights)

    def __call__(
        self, inputs: Sequence[torch.Tensor], states: Sequence[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        results = [to_torch(item) for item in self._executable(*map(to_numpy, (*inputs, *states)))]
        count = len(results) - len(states)
        return results[:count], results[count:]


@dataclass
class GraphSteps:
    """The graphs of one dtype, and both ways to run them, each made when it is first asked for."""

    work: Workbench
    plan: Plan
    dtype: torch.dtype
    graphs: Sequence[LoweredGraph]

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def recipes(self) -> list[str]:
        """Names of the recipes whose kernels are in the graphs."""
        return sorted({match.recipe for match in self.plan.matches.matches if match.recipe is not None})

    @property
    def kernel_digests(self) -> dict[str, str]:
        """What runs on the simulator: recipe -> digest of its kernel's source."""
        return {name: self.work.registry[name].kernel.sha256 for name in self.recipes}

    @cached_property
    def bank(self) -> WeightBank:
        return WeightBank(lambda name, dtype: self.work.reader.get(name, dtype))

    @cached_property
    def xla_steps(self) -> Sequence[Step]:
        """The graphs as emitted, references inlined."""
        ranks = self.work.options.tensor_parallel
        if ranks > 1:
            return [parallel_steps.xla_step(graph, self.bank, ranks) for graph in self.graphs]
        return [XlaStep(graph, self.bank) for graph in self.graphs]

    @cached_property
    def simulator_steps(self) -> Sequence[Step]:
        """The graphs with every kernel on the simulator; weights are brought into its form once."""
        target = self.work.options.target
        operators = {name: simulated_operator(self.work.registry[name], target) for name in self.recipes}
        ranks = self.work.options.tensor_parallel
        exported = [
            export_one(self.work, self.plan, number, self.dtype) for number in range(len(self.plan.graphs))
        ]
        steps: Sequence[Step] = (
            [parallel_steps.simulator_step(graph, self.bank, operators, ranks) for graph in exported]
            if ranks > 1
            else [GraphRunner(graph, self.bank, operators) for graph in exported]
        )
        if self.dtype is not torch.float32:
            for operator in operators.values():
                operator.share_weights(self.bank.values())
        return steps

    def release(self) -> None:
        """Free the weights and everything bound to them."""
        for name in ("bank", "xla_steps", "simulator_steps"):
            self.__dict__.pop(name, None)


def refused(where: str, error: SimulatorError) -> ParityError:
    """A kernel that passed by itself, and that the model calls with values which the hardware would not take."""
    place = f" ({error.location})" if error.location else ""
    return ParityError(
        f"The simulator refused a kernel inside the ported model, {where}: {error.message}{place}",
        hint="A recipe can be left to the compiler with --compiler NAME.",
    )
