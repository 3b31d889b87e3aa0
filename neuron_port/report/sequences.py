"""Whole prompts as tables: a row for each graph and dtype (proof 2), and ratios by prompt and output (proof 3).

Sequence cases are named "<prompt> · <output>[ · <phase>]"; the prompt "all prompts" holds the pooled verdicts. Of
models that answer in one pass it is "<sample>" and "all samples".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from neuron_port.report.cases import (
    Margin,
    by_dtype,
    is_measurement,
    is_pooled,
    margin,
    margins,
    split_name,
    unit_of,
)
from neuron_port.report.continuations import Continuation, continuation
from neuron_port.report.embeddings import EmbeddingTable, embedding_tables, is_about_embeddings
from neuron_port.report.numbers import metric_text
from neuron_port.types import CaseResult, ParityReport

_MOST_OUTPUTS = 3


@dataclass(frozen=True, kw_only=True)
class GraphRow:
    """One graph in one dtype: `worst` is the verdict closest to its limit, `outputs` the worst value of each output.

    `pooled` says that `worst` is over all prompts together; `cases` holds such verdicts first. `unit` is what is
    counted: "prompt" or "sample".
    """

    graph: str
    dtype: str
    oracle: str
    unit: str
    prompts: int
    pooled: bool
    worst: Margin | None
    outputs: tuple[tuple[str, float], ...]
    outputs_left_out: int
    max_abs: float | None
    passed: bool
    cases: tuple[CaseResult, ...]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One prompt's value for one output. `beyond` compares it with the pooled verdict's limit, and decides nothing."""

    value: float | None
    title: str
    beyond: bool
    failed: bool


@dataclass(frozen=True, kw_only=True)
class PromptTable:
    """Values of one metric: a row for each prompt, a column for each output, columns grouped by phase."""

    metric: str
    phases: tuple[tuple[str, tuple[str, ...]], ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]

    @property
    def group_starts(self) -> tuple[int, ...]:
        """The number of each phase's first column."""
        lengths = [len(outputs) for _, outputs in self.phases]
        return tuple(sum(lengths[:index]) for index in range(len(lengths)))


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """One model report in parts: continuations, pooled verdicts, the table of prompts, embeddings, and what is left."""

    report: ParityReport
    unit: str
    prompts: int
    texts: tuple[tuple[CaseResult, Continuation], ...]
    verdicts: tuple[CaseResult, ...]
    table: PromptTable | None
    embeddings: tuple[EmbeddingTable, ...]
    others: tuple[CaseResult, ...]


def graph_rows(reports: Sequence[ParityReport]) -> list[GraphRow]:
    """The rows of proof 2, in the reports' order."""
    return [
        _graph_row(report, dtype, cases)
        for report in reports
        for dtype, cases in by_dtype(report.cases).items()
    ]


def model_section(report: ParityReport) -> ModelSection:
    """One model report of proof 3, in parts."""
    texts = [(case, text) for case in report.cases if (text := continuation(case.detail))]
    rest = [case for case in report.cases if not continuation(case.detail) and not is_about_embeddings(case)]
    verdicts = [case for case in rest if is_pooled(case)]
    singles = [case for case in rest if not is_pooled(case) and split_name(case.name).prompt]
    others = [case for case in rest if not split_name(case.name).prompt]
    prompts = {case.name for case, _ in texts} | {split_name(case.name).prompt for case in singles}
    return ModelSection(
        report=report,
        unit=unit_of(report.cases),
        prompts=len(prompts) + len(others),
        texts=tuple(texts),
        verdicts=tuple(verdicts),
        table=prompt_table(singles, verdicts) if singles else None,
        embeddings=embedding_tables(report.cases),
        others=tuple(others),
    )


def prompt_table(cases: Sequence[CaseResult], verdicts: Sequence[CaseResult]) -> PromptTable:
    """The cases of single prompts, in the metric of the verdicts over all of them."""
    closest = [found for case in (*verdicts, *cases) if (found := margin(case))]
    metric = closest[0].metric if closest else next(iter(cases[0].metrics), "")
    limits = {split_name(case.name).output: case.limits.get(metric) for case in verdicts}
    columns: dict[str, dict[str, None]] = {}
    found_at: dict[tuple[str, str, str], CaseResult] = {}
    for case in cases:
        name = split_name(case.name)
        columns.setdefault(name.phase, {})[name.output] = None
        found_at[name.prompt, name.phase, name.output] = case
    phases = tuple((phase, tuple(outputs)) for phase, outputs in columns.items())
    places = [(phase, output) for phase, outputs in phases for output in outputs]
    rows = []
    for prompt in dict.fromkeys(split_name(case.name).prompt for case in cases):
        row = [
            _cell(found_at.get((prompt, phase, output)), metric, limits.get(output))
            for phase, output in places
        ]
        rows.append((prompt, tuple(row)))
    return PromptTable(metric=metric, phases=phases, rows=tuple(rows))


def _graph_row(report: ParityReport, dtype: str, cases: Sequence[CaseResult]) -> GraphRow:
    verdicts = [case for case in cases if not is_measurement(case)]
    pooled = [found.metric for case in verdicts if is_pooled(case) for found in margins(case)]
    closest = [found for case in verdicts if (found := margin(case))]
    worst = max(closest, key=lambda found: found.share, default=None)
    outputs: dict[str, Margin] = {}
    for case in verdicts:
        for found in margins(case):
            output = split_name(case.name).output
            known = outputs.get(output)
            if worst and found.metric == worst.metric and (known is None or found.share > known.share):
                outputs[output] = found
    shown = sorted(outputs, key=lambda output: -outputs[output].share)[:_MOST_OUTPUTS]
    distances = [case.metrics["max_abs"] for case in cases if "max_abs" in case.metrics]
    singles = {split_name(case.name).prompt for case in cases if not is_pooled(case)}
    return GraphRow(
        graph=report.subject,
        dtype=dtype,
        oracle=report.oracle,
        unit=unit_of(cases),
        prompts=len(singles - {""}),
        pooled=worst is not None and worst.metric in pooled,
        worst=worst,
        outputs=tuple((output, outputs[output].value) for output in outputs if output in shown),
        outputs_left_out=len(outputs) - len(shown),
        max_abs=max(distances, default=None, key=lambda value: math.inf if math.isnan(value) else value),
        passed=all(case.passed for case in cases),
        cases=tuple(sorted(cases, key=lambda case: not is_pooled(case))),
    )


def _cell(case: CaseResult | None, metric: str, limit: float | None) -> Cell | None:
    if case is None:
        return None
    value = case.metrics.get(metric)
    figures = ", ".join(f"{name} {metric_text(figure)}" for name, figure in case.metrics.items())
    return Cell(
        value=value,
        title=f"{case.name}: {figures}" + (f"; {case.detail}" if case.detail else ""),
        beyond=value is not None and limit is not None and not value <= limit,
        failed=not case.passed,
    )
