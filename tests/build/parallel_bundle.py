"""A bundle for two tensor-parallel ranks: y = x * (sum of a sharded weight), and a sharded state that grows by one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tiny_bundle import make_arguments

from neuron_port.build import GraphFiles
from neuron_port.lower.builder import Builder, Value
from neuron_port.lower.module import Alias, Module, Shape
from neuron_port.lower.numbering import renumber
from neuron_port.types import GraphInput, GraphOutput, GraphSpec, MatchPlan, Shard, TensorSpec

# T = tokens, H = hidden, N = rows of the weight, S = slots of the whole state
T, H, N, S, RANKS = 2, 4, 3, 6, 2
INPUTS = {"x": (T, H), "w": (N, H // RANKS), "cache": (T, S // RANKS)}


def make_parallel_arguments(folder: Path) -> dict[str, Any]:
    """Keyword arguments of `write_bundle`: one graph, two ranks, no kernels."""
    x_TH = np.linspace(-1, 1, T * H, dtype=np.float32).reshape(T, H)
    weight_NH = np.arange(N * H, dtype=np.float32).reshape(N, H) / 10
    cache_TS = np.arange(T * S, dtype=np.float32).reshape(T, S)
    golden = {"x": x_TH, "y": x_TH * weight_NH.sum(), "cache": cache_TS, "cache_out": cache_TS + 1}
    made = make_arguments(folder)
    graph = GraphFiles(spec=_spec(), hlo=_graph(), reference_hlo=_graph(), lint={})
    plan = MatchPlan(
        checkpoint="abc123", target="trn2", matches=(replace(made["plan"].matches[1]),), unused_parameters=()
    )
    return made | {
        "plan": plan, "graphs": [graph], "kernels": [], "recipe_folders": {}, "golden": {"decode_b1_t6": golden},
        "derived_weights": {},
    }  # fmt: skip


def _spec() -> GraphSpec:
    def spec(name: str) -> TensorSpec:
        return TensorSpec(shape=INPUTS[name], dtype="float32")

    columns = Shard(ranks=RANKS, axis=1, units=H)
    slots = Shard(ranks=RANKS, axis=1, units=S)
    return GraphSpec(
        id="decode_b1_t6", phase="decode", batch=1, sequence_length=1, cache_length=S,
        inputs=(
            GraphInput(name="x", role="input", spec=spec("x")),
            GraphInput(name="w", role="weight", spec=spec("w"), source="proj.weight", shard=columns),
            GraphInput(name="cache", role="state", spec=spec("cache"), shard=slots),
        ),
        outputs=(
            GraphOutput(name="y", role="output", spec=TensorSpec(shape=(T, H), dtype="float32")),
            GraphOutput(name="cache_out", role="state", spec=spec("cache"), alias_of="cache"),
        ),
    )  # fmt: skip


def _graph() -> bytes:
    b = Builder()
    x, w, cache = (
        Value(
            b.add("parameter", Shape("float32", shape), parameter_number=number,
                  frontend_attributes={"map": {"neff_input_names": name}}),
            shape, "float32",
        )
        for number, (name, shape) in enumerate(INPUTS.items())
    )  # fmt: skip
    total = b.op(
        "all-reduce", "float32", (), b.reduce("add", w, (0, 1)),
        replica_groups=[{"replica_ids": list(range(RANKS))}],
        called_computation_ids=[b.scalar_function("add", "float32")],
    )  # fmt: skip
    y = b.elementwise("multiply", x, total)
    written = b.elementwise("add", cache, b.constant(1, "float32"))
    shapes = tuple(Shape("float32", value.shape) for value in (y, written))
    root = b.add("tuple", Shape("tuple", (), shapes), (y.id, written.id),
                 frontend_attributes={"map": {"neff_output_names": "y,cache_out"}})  # fmt: skip
    return Module("decode_b1_t6", *renumber(b, root, tuple(INPUTS)), aliases=(Alias(1, 2),)).to_bytes()
