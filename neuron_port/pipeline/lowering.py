"""Stage `graphs`: every graph exported, emitted twice (kernels as custom calls, and references inlined) and linted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from neuron_port.build.finishing.hlo_edit import without_kernels
from neuron_port.errors import LoweringError, NeuronPortError
from neuron_port.execution import to_numpy
from neuron_port.lower import KernelCall, decompose, emit, lint
from neuron_port.pipeline.planning import Plan
from neuron_port.pipeline.workbench import Workbench, code_digest
from neuron_port.port.export import ExportedGraph, export_graph
from neuron_port.port.operators import register
from neuron_port.store import write_json
from neuron_port.types import GraphSpec, digest, from_json, to_json
from neuron_port.walk.calls import dtype_name
from neuron_port.walk.sharding import check_joined

STAGE = "graphs"


@dataclass(frozen=True, kw_only=True)
class LoweredGraph:
    """One graph in one dtype, with its interface. What does not ship has no kernel form (`hlo`) and no lint."""

    spec: GraphSpec
    hlo: bytes | None
    reference_hlo: bytes
    lint: Mapping[str, Any]
    derived: Mapping[str, np.ndarray]


def export_one(work: Workbench, plan: Plan, number: int, dtype: torch.dtype) -> ExportedGraph:
    """The plan's graph of that number, kernels substituted as it says; exported once per process."""
    key = (number, dtype)
    if key not in work.exported:
        work.exported[key] = _export(work, plan, number, dtype)
    return work.exported[key]


def _export(work: Workbench, plan: Plan, number: int, dtype: torch.dtype) -> ExportedGraph:
    register(work.registry)
    graph = plan.graphs[number]
    try:
        exported = export_graph(
            work.skeleton(dtype),
            lambda model: work.programs(model)[number],
            plan.matches.by_layer(graph),
            work.registry,
            stored=work.checkpoint.weights,
            canonical=work.reader.canonical,
            shards={} if work.sharding is None else {**work.sharding.tensors, **work.sharding.states},
        )
        if work.sharding is not None:
            check_joined(work.sharding, exported.program.graph, exported.spec.id)
        return exported
    except NeuronPortError:
        raise
    except Exception as error:  # torch.export raises whatever the model's own code does under it
        reason = " ".join(str(error).split()[:30])
        step = f"The {graph.phase} step of `{work.checkpoint.architecture}`"
        raise LoweringError(
            f"{step} cannot be exported in {dtype_name(dtype)}: {reason}",
            hint="Excluding a recipe with --compiler NAME may help; otherwise its code is not exportable yet.",
        ) from error


def lower_all(
    work: Workbench, plan: Plan, dtype: torch.dtype, progress: Callable[[str, int, int], None]
) -> tuple[list[LoweredGraph], bool]:
    """All graphs in `dtype`, and whether all of them were stored already."""
    lowered, all_reused = [], True
    for number, graph in enumerate(plan.graphs):
        progress(f"{graph.phase} of {graph.sequence_length}, {dtype_name(dtype)}", number, len(plan.graphs))
        result, reused = lower_one(work, plan, number, dtype)
        lowered.append(result)
        all_reused &= reused
    return lowered, all_reused


def lower_one(work: Workbench, plan: Plan, number: int, dtype: torch.dtype) -> tuple[LoweredGraph, bool]:
    graph = plan.graphs[number]
    ships = dtype is work.dtype
    key = digest(
        plan.key,
        graph.phase,
        number,
        str(dtype),
        ships,
        torch.__version__,
        code_digest("lower", "port", "walk", "build/finishing/hlo_edit"),
    )

    def write(folder: Path) -> None:
        exported = export_one(work, plan, number, dtype)
        used = {match.recipe for match in plan.matches.by_layer(graph).values() if match.recipe is not None}
        kernels = {
            name: KernelCall(
                name=work.registry[name].kernel.entry_point, sha256=work.registry[name].kernel.sha256
            )
            for name in used
        }
        references = {name: work.registry[name].reference for name in used}
        findings: Any = {}
        hlo = emit(decompose(exported.program), exported.spec, kernels=kernels, references=references)
        if ships:
            findings = to_json(lint(hlo, work.options.target, exported.spec))
            (folder / "graph.hlo.pb").write_bytes(hlo)
        (folder / "graph.ref.hlo.pb").write_bytes(without_kernels(hlo))
        write_json(folder / "spec.json", to_json(exported.spec))
        write_json(folder / "lint.json", findings)
        save_file(
            {name: to_numpy(tensor) for name, tensor in exported.derived.items()},
            folder / "derived.safetensors",
        )

    folder, reused = work.store.build(STAGE, key, write)
    return LoweredGraph(
        spec=from_json(GraphSpec, work.store.read_json(STAGE, key, "spec.json")),
        hlo=(folder / "graph.hlo.pb").read_bytes() if ships else None,
        reference_hlo=(folder / "graph.ref.hlo.pb").read_bytes(),
        lint=work.store.read_json(STAGE, key, "lint.json"),
        derived=load_file(folder / "derived.safetensors"),
    ), reused
