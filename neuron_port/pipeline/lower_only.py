"""`neuron-port lower`: the graphs of a model without proofs. No weight is read, so a model of any size takes minutes.

<output>/lowered.json              what was lowered, and what neuronx-cc is expected to refuse
         graphs/<id>/graph.hlo.pb  graph.ref.hlo.pb  io.json  lint.json      as in a bundle (docs/bundle.md)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuron_port.build.bundle import interface
from neuron_port.build.storage import replacing, write_json
from neuron_port.checkpoint import quantized, resolve
from neuron_port.pipeline.degree import with_degree
from neuron_port.pipeline.lowering import LoweredGraph, lower_all
from neuron_port.pipeline.options import ConvertOptions
from neuron_port.pipeline.planning import make_plan
from neuron_port.pipeline.refusals import check_output, check_positions
from neuron_port.pipeline.workbench import Workbench
from neuron_port.report import LiveView
from neuron_port.store import Store

SUMMARY = "lowered.json"
_KIND = "lowered model"


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """What `lower` wrote: `summary` is lowered.json."""

    folder: Path
    summary: dict[str, Any]


def lower_only(options: ConvertOptions, view: LiveView, store: Store | None = None) -> Lowered:
    """Plan, lower and write the graphs to `options.output`. Nothing is proven.

    Raises:
        UsageError: the place is taken by something else, or the model cannot be lowered as asked.
    """
    check_output(options.output, SUMMARY, _KIND)
    work = _workbench(options, view, store or Store())
    with view.stage("plan") as stage:
        plan, reused = make_plan(work, view.update)
        if reused:
            stage.skip("unchanged, taken from the store")
    with view.stage("lower to HLO") as stage:
        graphs, reused = lower_all(work, plan, work.dtype, view.update)
        if reused:
            stage.skip("unchanged, taken from the store")
    summary = _summary(work, graphs)
    with replacing(options.output, SUMMARY, _KIND) as folder:
        for graph in graphs:
            _write(folder / "graphs" / graph.spec.id, graph)
        write_json(folder / SUMMARY, summary)
    return Lowered(folder=options.output, summary=summary)


def _workbench(options: ConvertOptions, view: LiveView, store: Store) -> Workbench:
    with view.stage("checkpoint"):
        checkpoint = resolve(
            options.model,
            store=store,
            random_weights=options.random_weights,
            revision=options.revision,
            progress=_shown(view),
        )
    if options.weight_format:
        checkpoint = quantized(checkpoint, options.weight_format)
    work = Workbench(with_degree(options, checkpoint, store, view.note), checkpoint, store)
    check_positions(work)
    return work


def _shown(view: LiveView) -> Callable[[str], None]:
    return lambda text: view.update(text, 0, 0)


def _summary(work: Workbench, graphs: Sequence[LoweredGraph]) -> dict[str, Any]:
    """lowered.json."""
    return {
        "model": work.checkpoint.name,
        "revision": work.checkpoint.revision,
        "target": work.options.target,
        "dtype": work.options.dtype,
        "weight_format": work.checkpoint.weight_format or work.options.dtype,
        "tensor_parallel": work.options.tensor_parallel,
        "proven": False,
        "graphs": [_entry(graph) for graph in graphs],
        "notes": [] if work.sharding is None else list(work.sharding.notes),
    }


def _entry(graph: LoweredGraph) -> dict[str, Any]:
    assert graph.hlo is not None, "only what ships is lowered here"
    opcodes = graph.lint["opcodes"]
    return {
        "id": graph.spec.id,
        "hlo_sha256": hashlib.sha256(graph.hlo).hexdigest(),
        "bytes": len(graph.hlo),
        "instructions": sum(opcodes.values()),
        "all_reduces": opcodes.get("all-reduce", 0),
        "all_gathers": opcodes.get("all-gather", 0),
        "kernel_calls": sum(graph.lint["kernel_calls"].values()),
        "weight_bytes_per_rank": graph.lint["weight_bytes"],
        "state_bytes_per_rank": graph.lint["state_bytes"],
        "findings": graph.lint["findings"],
    }


def _write(folder: Path, graph: LoweredGraph) -> None:
    assert graph.hlo is not None, "only what ships is lowered here"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "graph.hlo.pb").write_bytes(graph.hlo)
    (folder / "graph.ref.hlo.pb").write_bytes(graph.reference_hlo)
    write_json(folder / "io.json", interface(graph.spec))
    write_json(folder / "lint.json", dict(graph.lint))
