"""Every architecture of the zoo through the compiler's lowering alone: `python benchmarks/zoo_lowering.py [NAME ..]`.

A model's plain forward (no cache, eager attention) is exported, lowered to HLO and executed on XLA-CPU; every tensor
that it returns is compared with torch's, in float32. No recipe takes part: this is what stands behind a layer that
none covers. Printed for each architecture: whether it exports and lowers, how many operators and HLO instructions it
has, the worst difference relative to a tensor's largest element, and what the Neuron compiler would refuse.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch.export import ExportedProgram
from transformers import PreTrainedModel
from zoo import Entry, build, choose

from neuron_port.errors import LoweringError
from neuron_port.lower import LintReport, XlaExecutable, decompose, emit, lint, program_inputs
from neuron_port.lower.execution import from_torch, to_torch
from neuron_port.lower.interface import shape_of
from neuron_port.types import GraphInput, GraphOutput, GraphSpec
from neuron_port.walk.known_values import KnownValues

RELATIVE_LIMIT = 1e-5
TARGET = "trn2"


@dataclass(kw_only=True)
class Row:
    """What became of one architecture; a stage that failed says why, and those after it say nothing."""

    name: str
    operators: int = 0
    instructions: int = 0
    worst: float | None = None
    seconds: float = 0.0
    report: LintReport | None = None
    failure: str | None = None

    @property
    def passed(self) -> bool:
        return self.failure is None and self.worst is not None and self.worst <= RELATIVE_LIMIT


class PlainForward(torch.nn.Module):
    """A model's forward as a function of tensors alone: [inputs, in order] -> every tensor of the answer.

    `fixed`: integer inputs that are constants of the graph, as nested lists.
    """

    def __init__(self, model: PreTrainedModel, names: Sequence[str], fixed: Mapping[str, list[Any]]) -> None:
        super().__init__()
        self.model, self.names, self.fixed = model, tuple(names), dict(fixed)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = dict(zip(self.names, tensors, strict=True))
        constants = {name: torch.tensor(values) for name, values in self.fixed.items()}
        answer = self.model(**given, **constants)
        return tuple(item for item in answer.to_tuple() if isinstance(item, torch.Tensor))


def plain_forward(entry: Entry) -> tuple[PlainForward, tuple[torch.Tensor, ...]]:
    """The entry's forward without caches, and the tensors that it takes."""
    model = build(entry)
    model.set_attn_implementation("eager")
    for module in model.modules():
        if hasattr(getattr(module, "config", None), "use_cache"):
            module.config.use_cache = False
    inputs = entry.inputs()
    indexer = next((module for module in model.modules() if hasattr(module, "get_rope_index")), None)
    if (
        indexer is not None
    ):  # positions follow from where the images stand in the prompt: the host computes them
        given = {name: value for name, value in inputs.items() if name != "pixel_values"}
        inputs["position_ids"] = indexer.get_rope_index(**given)[0]
    fixed = {name: inputs.pop(name).tolist() for name in entry.constants}
    return PlainForward(model, tuple(inputs), fixed), tuple(inputs.values())


def _known(module: PlainForward, ids: torch.Tensor) -> KnownValues:
    """What is a constant of a graph for pictures of one size: what follows from it, and how many tokens are theirs."""
    is_image = ids == module.model.config.image_token_id
    return KnownValues({is_image.numel(): int(is_image.sum())})


def interface(program: ExportedProgram, name: str) -> GraphSpec:
    """Weights by their path, inputs by their placeholder, results counted."""
    inputs = tuple(
        GraphInput(
            name=item.target or item.placeholder,
            role="weight" if item.target else "input",
            spec=item.spec,
            source=item.target,
        )
        for item in program_inputs(program)
    )
    results = next(node for node in program.graph.nodes if node.op == "output").args[0]
    outputs = tuple(
        GraphOutput(name=f"out{index}", role="output", spec=shape_of(node).spec)
        for index, node in enumerate(results)
    )
    return GraphSpec(
        id=name, phase="prefill", batch=1, sequence_length=1, cache_length=0, inputs=inputs, outputs=outputs
    )


def weights_of(program: ExportedProgram, spec: GraphSpec) -> dict[str, Any]:
    """Arrays of every weight and large constant that the graph reads."""
    values = {**program.state_dict, **program.constants}
    return {item.name: from_torch(values[item.name]) for item in spec.inputs if item.role == "weight"}


def worst_difference(actual: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """The largest difference, relative to the largest element of its tensor; integers must be equal."""
    worst = 0.0
    for left, right in zip(actual, expected, strict=True):
        scale = right.double().abs().max().item() or 1.0
        worst = max(worst, (left.double() - right.double()).abs().max().item() / scale)
    return worst


def measure(entry: Entry) -> Row:
    """Export, lower, execute and compare one architecture."""
    row, started, stage = Row(name=entry.name), time.perf_counter(), "export"
    try:
        module, inputs = plain_forward(entry)
        with torch.no_grad():
            expected = module(*inputs)
            with (
                _known(module, inputs[module.names.index("input_ids")]) if entry.constants else nullcontext()
            ):
                program = torch.export.export(module, copy.deepcopy(inputs), strict=False)
        stage = "lower"
        program = decompose(program)
        row.operators = sum(node.op == "call_function" for node in program.graph.nodes)
        spec = interface(program, entry.name)
        hlo = emit(program, spec, kernels={})
        row.report = lint(hlo, TARGET, spec)
        row.instructions = sum(row.report.opcodes.values())
        stage = "execute"
        executable = XlaExecutable(hlo, optimize=False).bind(weights_of(program, spec))
        results = [to_torch(result) for result in executable(*map(from_torch, inputs))]
        row.worst = worst_difference(results, expected)
    except LoweringError as error:
        row.failure = f"{stage}: {error.message}"
    except Exception as error:  # whatever a model raises is its row's result, not the end of the matrix
        row.failure = f"{stage}: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
    row.seconds = time.perf_counter() - started
    return row


def table(rows: Sequence[Row]) -> Table:
    """The matrix, one line for each architecture."""
    shown = Table(title=f"Lowering of the zoo, without recipes (float32, target {TARGET})")
    for heading in ("architecture", "operators", "HLO", "worst relative difference", "lint", "seconds"):
        shown.add_column(heading, justify="left" if heading in ("architecture", "lint") else "right")
    for row in rows:
        findings = (
            ", ".join(f"{item.code} x{item.count}: {item.cause}" for item in row.report.findings)
            if row.report
            else ""
        )
        worst = row.failure or f"{row.worst:.1e}"
        shown.add_row(
            row.name,
            str(row.operators),
            str(row.instructions),
            worst,
            findings or "clean",
            f"{row.seconds:.1f}",
        )
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="architectures or families; default: all")
    entries = choose(parser.parse_args().names)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    rows = []
    for entry in entries:
        rows.append(measure(entry))
        print(f"{entry.name}: {rows[-1].failure or rows[-1].worst}", file=sys.stderr, flush=True)
    Console(width=160).print(table(rows))
    passed = sum(row.passed for row in rows)
    clean = sum(row.report is not None and row.report.passed for row in rows)
    print(f"{passed} of {len(rows)} within {RELATIVE_LIMIT:g}; {clean} that lint finds nothing against")
    return 0 if passed == len(rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
