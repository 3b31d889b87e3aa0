"""One architecture: walked and matched as `neuron-port plan` does, and converted as `neuron-port convert` does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from zoo import Entry, write_checkpoint

from neuron_port.checkpoint import build_skeleton
from neuron_port.match.matcher import match
from neuron_port.pipeline.options import GENERATION_OF_TARGET
from neuron_port.pipeline.planning import decided_layers
from neuron_port.registry import Registry, recipe_folders
from neuron_port.report.coverage import PlanRow, coverage, plan_rows, step_flops
from neuron_port.report.gaps import Gap, gaps
from neuron_port.report.numbers import dtypes_text, specs_text
from neuron_port.types import LayerGraph
from neuron_port.walk.families import programs_of
from neuron_port.walk.program import GraphShapes
from neuron_port.walk.walker import walk

from .record import Converted, GraphCover, Left, Row


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every architecture is planned and converted for. `tokens`: of text, for each prompt."""

    tokens: int
    dtype: str
    target: str

    def bucket(self, entry: Entry) -> int:
        """Tokens of a text; of a model that hears, as many samples as the zoo's sound has."""
        sound = entry.inputs().get("input_values")
        return self.tokens if sound is None else sound.shape[-1]


def measure(entry: Entry, settings: Settings) -> Row:
    """The architecture's graphs with what serves each layer. Raises whatever walking and matching raise."""
    started = time.perf_counter()
    bucket = settings.bucket(entry)
    model = build_skeleton(entry.config(), getattr(torch, settings.dtype))
    shapes = GraphShapes(batch=1, buckets=(bucket,), cache_length=2 * bucket)
    walks = [walk(model, entry.name, program) for program in programs_of(model, shapes)]
    plan = match(
        walks,
        Registry(*recipe_folders()),
        target=settings.target,
        generation=GENERATION_OF_TARGET[settings.target],
        parameters=[name for name, _ in model.named_parameters()],
    )
    graphs = [decided_layers(found.graph, plan) for found in walks]
    rows = [plan_rows(graph, plan) for graph in graphs]
    served: Counter[str] = Counter()
    for row in (row for graph_rows in rows for row in graph_rows if row.recipe is not None):
        served[row.recipe] += row.count
    return Row(
        name=entry.name,
        family=entry.family,
        graphs=tuple(_cover(graph, of_graph) for graph, of_graph in zip(graphs, rows, strict=True)),
        recipes=dict(served),
        left=tuple(_left(gap) for of_graph in rows for gap in gaps(of_graph) if gap.cause != "glue"),
        unused_parameters=plan.unused_parameters,
        seconds=time.perf_counter() - started,
    )


def _cover(graph: LayerGraph, rows: list[PlanRow]) -> GraphCover:
    cover = coverage(graph, rows)
    kernels = [row for row in rows if row.recipe is not None]
    return GraphCover(
        phase=graph.phase,
        layers=cover.layer_count,
        glue=cover.glue,
        kernel_layers=cover.kernel_layer_count,
        flops=cover.flops,
        kernel_flops=sum(row.flops for row in kernels),
        between_flops=step_flops(graph) - sum(row.flops for row in rows),
        hbm_bytes=cover.hbm_bytes,
        kernel_bytes=sum(row.hbm_bytes for row in kernels),
    )


def _left(gap: Gap) -> Left:
    row = gap.row
    return Left(
        phase=row.phase,
        kind=row.kind,
        layer=row.layers[0],
        count=row.count,
        inputs=f"{specs_text(row.inputs)} {dtypes_text(row.inputs)}",
        flops=row.flops,
        hbm_bytes=row.hbm_bytes,
        reason=row.reason,
        cure=gap.cure,
    )


def convert(entry: Entry, settings: Settings, folder: Path, limit_seconds: float) -> Converted:
    """Convert the architecture with random weights, in `folder` with a store of its own, which stays to be looked at."""
    started = time.perf_counter()
    model = write_checkpoint(entry, folder / entry.name)
    bucket, bundle = settings.bucket(entry), folder / "bundle"
    command = [
        *(sys.executable, "-m", "neuron_port.cli", "convert", str(model), "--random-weights"),
        *("--dtype", settings.dtype, "--target", settings.target, "--new-tokens", "4"),
        *("--buckets", str(bucket), "--cache-length", str(2 * bucket)),
        *("--output", str(bundle), "--json", "--quiet"),
    ]
    environment = {**os.environ, "NEURON_PORT_HOME": str(folder / "store")}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=limit_seconds, check=False
        )
    except subprocess.TimeoutExpired:
        failure = f"not done after {limit_seconds:.0f} s"
        return Converted(state="failed", seconds=time.perf_counter() - started, failure=failure)
    seconds = time.perf_counter() - started
    if done.returncode != 0:
        return Converted(state="failed", seconds=seconds, failure=last_words(done.stderr, done.returncode))
    summary = json.loads(done.stdout)
    reports = json.loads((bundle / "parity" / "report.json").read_text(encoding="utf-8"))["reports"]
    return Converted(
        state=summary["verdict"]["state"],
        proofs=tuple(proof["state"] for proof in summary["proofs"]),
        worst_float32=worst_float32(reports),
        seconds=seconds,
    )


def worst_float32(reports: Mapping[str, Any]) -> float | None:
    """The largest `relative_max` in float32 of the whole model: its graphs, and the ported model."""
    cases: Iterable[Mapping[str, Any]] = (
        case for side in ("graphs", "model") for report in reports.get(side, ()) for case in report["cases"]
    )
    found = [
        float(case["metrics"]["relative_max"])
        for case in cases
        if case["dtype"] == "float32" and "relative_max" in case["metrics"]
    ]
    return max(found, default=None)


def last_words(stderr: str, code: int) -> str:
    """Why a process failed: the error's line of its standard error, or the signal that ended it."""
    if code < 0:
        return f"ended by signal {-code}"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"error: |[\w.]*(Error|Exception|Interrupt)\b", line)]
    return (errors or lines or [f"exit status {code}, without a word"])[-1].removeprefix("error: ")[:400]
