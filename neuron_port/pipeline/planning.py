"""Stage `plan`: walk the model's structure and decide for every layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from neuron_port.match.matcher import match
from neuron_port.pipeline.workbench import Workbench, code_digest, oracle_name, recipe_digest
from neuron_port.store import write_json
from neuron_port.types import LayerGraph, MatchPlan, digest, from_json, to_json


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The layer graphs (one for each prefill bucket, then decode) and the decisions."""

    graphs: tuple[LayerGraph, ...]
    matches: MatchPlan
    key: str


def decided_layers(graph: LayerGraph, matches: MatchPlan) -> LayerGraph:
    """The graph without containers, and without what is inside a layer that a recipe takes whole."""
    decided = matches.by_layer(graph)
    return replace(graph, layers=tuple(layer for layer in graph.layers if layer.name in decided))


def make_plan(work: Workbench, progress: Callable[[str, int, int], None]) -> tuple[Plan, bool]:
    """The plan, and whether it was in the store already."""
    options = work.options
    key = digest(
        work.checkpoint.revision,
        options.target,
        options.dtype,
        list(options.buckets),
        options.cache_length,
        options.batch,
        options.tensor_parallel,
        sorted(options.compiler_layers),
        {name: recipe_digest(found) for name, found in work.registry.items()},
        oracle_name(),  # the layers are transformers' own
        code_digest("walk", "match", "types", "recipe", "checkpoint/quantization", "pipeline/planning"),
    )

    def write(folder: Path) -> None:
        walks = work.walks(work.dtype)
        skeleton_parameters = {name for name, _ in work.skeleton(work.dtype).named_parameters()}
        matches = match(
            walks,
            work.registry,
            target=options.target,
            generation=options.generation,
            parameters=skeleton_parameters,
            refused=options.compiler_layers,
            progress=progress,
        )
        write_json(folder / "plan.json", to_json(matches))
        write_json(folder / "graphs.json", to_json([decided_layers(walk.graph, matches) for walk in walks]))

    _, reused = work.store.build("plan", key, write)
    graphs = work.store.read_json("plan", key, "graphs.json")
    matches = work.store.read_json("plan", key, "plan.json")
    plan = Plan(
        graphs=tuple(from_json(LayerGraph, graph) for graph in graphs),
        matches=from_json(MatchPlan, matches),
        key=key,
    )
    return plan, reused
