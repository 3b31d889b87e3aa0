"""The plan as rows: what each distinct layer weighs in its phase, and what was decided for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from neuron_port.types import GLUE, LayerGraph, MatchPlan, TensorSpec

# "undecided" is a fault to be shown, not a decision: the plan is silent about a layer that the model runs.
RowDecision = Literal["recipe", "draft", "compiler", "undecided"]
DECISIONS: tuple[RowDecision, ...] = ("recipe", "draft", "compiler", "undecided")


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """One distinct layer of one phase, with everything that repeats it.

    flops and hbm_bytes are sums over all repetitions; the shares are of the phase's totals, 0 to 1.
    """

    number: int  # 1, 2, ... in order of first appearance
    phase: str
    signature: str
    module_class: str
    operation: str
    layers: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    flops: int
    hbm_bytes: int
    flops_share: float
    bytes_share: float
    decision: RowDecision
    recipe: str | None
    reason: str
    evidence: Mapping[str, float] = field(default_factory=dict)
    refusals: Mapping[str, str] = field(default_factory=dict)  # recipe -> why it did not take the layer

    @property
    def count(self) -> int:
        return len(self.layers)

    @property
    def is_glue(self) -> bool:
        """Whether the layer only pads, slices or reshapes: no work for a kernel, and no layer in any count."""
        return self.decision == "compiler" and self.reason == GLUE

    @property
    def kind(self) -> str:
        """The class for a module; for a function cut out of one, the operation inside the class."""
        if self.operation in ("module", self.module_class):
            return self.module_class
        return f"{self.operation} in {self.module_class}"

    @property
    def served_by(self) -> str:
        """The recipe's or draft's name; for the rest, who takes the layer."""
        return self.recipe or self.decision


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """What each decision takes of one phase: shares of FLOPs and of HBM bytes, and numbers of layers.

    Shares of FLOPs are of the whole step, those of bytes of its layers: traffic between layers is not counted.
    """

    phase: str
    batch: int
    sequence_length: int
    flops: int
    hbm_bytes: int
    flops_share: Mapping[str, float]
    bytes_share: Mapping[str, float]
    layers: Mapping[str, int]
    glue: int = 0  # layers that compute nothing: not among `layers`
    shares_phase: bool = False  # with other graphs, of other lengths

    @property
    def label(self) -> str:
        """The phase, with the length where that alone tells it from another graph: "forward, length 64"."""
        return f"{self.phase}, length {self.sequence_length}" if self.shares_phase else self.phase

    @property
    def kernel_flops_share(self) -> float:
        return self.flops_share["recipe"] + self.flops_share["draft"]

    @property
    def between_flops_share(self) -> float:
        """What the model multiplies in its own code, outside of every layer that was seen."""
        return max(0.0, 1 - sum(self.flops_share.values())) if self.flops else 0.0

    @property
    def kernel_bytes_share(self) -> float:
        return self.bytes_share["recipe"] + self.bytes_share["draft"]

    @property
    def layer_count(self) -> int:
        return sum(self.layers.values())

    @property
    def kernel_layer_count(self) -> int:
        return self.layers["recipe"] + self.layers["draft"]


def plan_rows(graph: LayerGraph, plan: MatchPlan) -> list[PlanRow]:
    """The distinct layers of `graph` in order of first appearance, joined with the plan by signature."""
    matches = {match.signature: match for match in plan.matches}
    total_flops = step_flops(graph)
    total_bytes = sum(layer.hbm_bytes for layer in graph.layers)
    rows = []
    for number, (signature, layers) in enumerate(graph.groups().items(), start=1):
        match = matches.get(signature)
        flops = sum(layer.flops for layer in layers)
        hbm_bytes = sum(layer.hbm_bytes for layer in layers)
        row = PlanRow(
            number=number,
            phase=graph.phase,
            signature=signature,
            module_class=layers[0].module_class,
            operation=layers[0].operation,
            layers=tuple(layer.name for layer in layers),
            inputs=layers[0].inputs,
            outputs=layers[0].outputs,
            flops=flops,
            hbm_bytes=hbm_bytes,
            flops_share=flops / total_flops if total_flops else 0.0,
            bytes_share=hbm_bytes / total_bytes if total_bytes else 0.0,
            decision=match.decision if match else "undecided",
            recipe=match.recipe if match else None,
            reason=match.reason if match else "The plan holds no decision for this layer.",
            evidence=match.evidence if match else {},
            refusals=match.refusals if match else {},
        )
        rows.append(row)
    return rows


def step_flops(graph: LayerGraph) -> int:
    """FLOPs of the whole step: what a model computes between its layers counts against the coverage."""
    return max(graph.flops, sum(layer.flops for layer in graph.layers))


def coverage(graph: LayerGraph, rows: Sequence[PlanRow]) -> Coverage:
    """Sums the rows of one phase by decision."""

    def total(decision: str, name: str) -> int:
        return sum(getattr(row, name) for row in rows if row.decision == decision)

    def shares(name: str, whole: int) -> dict[str, float]:
        return {decision: total(decision, name) / whole if whole else 0.0 for decision in DECISIONS}

    flops, hbm_bytes = step_flops(graph), sum(row.hbm_bytes for row in rows)
    return Coverage(
        phase=graph.phase,
        batch=graph.batch,
        sequence_length=graph.sequence_length,
        flops=flops,
        hbm_bytes=hbm_bytes,
        flops_share=shares("flops", flops),
        bytes_share=shares("hbm_bytes", hbm_bytes),
        layers={
            decision: sum(row.count for row in rows if row.decision == decision and not row.is_glue)
            for decision in DECISIONS
        },
        glue=sum(row.count for row in rows if row.is_glue),
    )
