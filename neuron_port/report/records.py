"""What a conversion leaves for people: `StageRecord`, and `Conversion`, all that a report is made from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from neuron_port.report.coverage import Coverage, PlanRow, coverage, plan_rows
from neuron_port.types import Checkpoint, GraphSpec, LayerGraph, MatchPlan, ParityReport, QuantizationCost


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """One finished stage. `reused` says that its inputs were unchanged and the stored result was taken."""

    name: str
    seconds: float
    reused: bool
    detail: str = ""


class ConversionFields(TypedDict):
    """The keyword arguments of `write_html`, `summary` and `json_summary`; `Conversion` explains them."""

    checkpoint: Checkpoint
    graphs: Sequence[LayerGraph]
    plan: MatchPlan
    kernel_reports: Sequence[ParityReport]
    graph_reports: Sequence[ParityReport]
    model_reports: Sequence[ParityReport]
    graph_specs: Sequence[GraphSpec]
    graph_lints: Mapping[str, Mapping[str, Any]]
    stages: Sequence[StageRecord]
    target: str
    dtype: str
    bundle: NotRequired[Path | str | None]
    quantization_cost: NotRequired[QuantizationCost | None]


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """Everything that a report is made from.

    Attributes:
        graphs: the layers of each phase, usually prefill and decode; `plan` decides all their signatures.
        kernel_reports: proof 1, kernel = layer. Subject: "<recipe> · <layer class> · <signature>".
        graph_reports: proof 2, graph = model. Subject: the graph's id; cases "<prompt> · <output>" in every dtype.
            Cases "all prompts · <output>" are verdicts over prompts whose own cases have no limits.
        model_reports: proof 3, ported model = model. Either one case per prompt, its texts as JSON in `detail`
            (prompt, reference_text, ported_text, reference_tokens, ported_tokens), or cases
            "<prompt> · <output> · <phase>" with their verdicts over all prompts. Models that answer in one pass have
            samples in place of prompts, and of embeddings "<sample> · <output> · cosine" and "... · ranking" too.
        graph_lints: by graph id. Values are shown by their form: a mapping of counts becomes a histogram, a
            list becomes findings (text, or mappings of text), anything else is listed.
        target: the chip: "inf2", "trn1" or "trn2".
        bundle: where the bundle was written, or None if there is none.
        quantization_cost: of a model with quantised weights, how far it is from the unquantised one.
    """

    checkpoint: Checkpoint
    graphs: Sequence[LayerGraph]
    plan: MatchPlan
    kernel_reports: Sequence[ParityReport]
    graph_reports: Sequence[ParityReport]
    model_reports: Sequence[ParityReport]
    graph_specs: Sequence[GraphSpec]
    graph_lints: Mapping[str, Mapping[str, Any]]
    stages: Sequence[StageRecord]
    target: str
    dtype: str
    bundle: Path | str | None = None
    quantization_cost: QuantizationCost | None = None

    @property
    def ranks(self) -> int:
        """Tensor-parallel ranks; one where no graph was lowered."""
        return max((spec.ranks for spec in self.graph_specs), default=1)

    @cached_property
    def phases(self) -> tuple[tuple[Coverage, tuple[PlanRow, ...]], ...]:
        """Each graph's rows and their sums, worked out once: signatures of many layers take a while."""
        rows_of_graphs = [(graph, tuple(plan_rows(graph, self.plan))) for graph in self.graphs]
        of_phase = Counter(graph.phase for graph in self.graphs)
        return tuple(
            (replace(coverage(graph, rows), shares_phase=of_phase[graph.phase] > 1), rows)
            for graph, rows in rows_of_graphs
        )
