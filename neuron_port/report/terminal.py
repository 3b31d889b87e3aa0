"""The plan and the closing summary in the terminal. Every state is a word; colour only repeats it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from neuron_port.report.cases import is_pooled, margin, split_subject
from neuron_port.report.coverage import Coverage, PlanRow, coverage, plan_rows
from neuron_port.report.gaps import Gap, gaps
from neuron_port.report.numbers import (
    dtypes_text,
    metric_text,
    seconds_text,
    shapes_text,
    share_text,
    specs_text,
)
from neuron_port.report.open_questions import chip_text, open_questions, ranks_text
from neuron_port.report.proofs import Proof, failures, proofs, verdict
from neuron_port.report.quantization import cost_sentences
from neuron_port.report.records import Conversion, ConversionFields
from neuron_port.types import LayerGraph, MatchPlan

_DECISION_STYLE = {"recipe": "blue", "draft": "yellow", "compiler": "dim", "undecided": "bold red"}
_MOST_FAILURES = 10
_MOST_REUSED = 3  # names of reused stages that are spelled out
_STATE_STYLE = {"passed": "green", "failed": "bold red", "incomplete": "yellow", "not run": "bold red"}


def plan_table(graphs: Sequence[LayerGraph], plan: MatchPlan) -> Table:
    """A row for each distinct layer: what it is, shapes, weight in the phase, the decision and why."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("layer", min_width=18, ratio=5, overflow="fold")
    table.add_column("count", justify="right", no_wrap=True)
    table.add_column("FLOPs", justify="right", no_wrap=True)
    table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("decision and reason", min_width=24, ratio=6, overflow="fold")
    for graph in graphs:
        rows = plan_rows(graph, plan)
        tokens = "token" if graph.sequence_length == 1 else "tokens"
        size = (f", {graph.batch} × {graph.sequence_length} {tokens}", "dim")
        table.add_row(Text.assemble((graph.phase, "bold"), size), str(len(graph.layers)))
        for row in rows:
            table.add_row(
                _layer_text(row),
                str(row.count),
                share_text(row.flops_share),
                share_text(row.bytes_share),
                _decision_text(row),
            )
        table.add_row("")
    return table


def coverage_text(graphs: Sequence[LayerGraph], plan: MatchPlan) -> RenderableType:
    """What kernels take of each graph, what they do not, why, and what would cover it."""
    rows_of = [(graph, plan_rows(graph, plan)) for graph in graphs]
    covers = [coverage(graph, rows) for graph, rows in rows_of]
    parts: list[RenderableType] = [_coverage_table(covers)]
    for cover, (_, rows) in zip(covers, rows_of, strict=True):
        if found := gaps(rows):
            parts += [Text(""), Text(f"Not in kernels, {cover.phase}", style="bold"), *map(_gap_text, found)]
    if plan.unused_parameters:
        names = ", ".join(plan.unused_parameters)
        parts += [Text(""), Text.assemble(("Parameters that no layer reads: ", "bold"), names)]
    return Group(*parts)


def summary(**fields: Unpack[ConversionFields]) -> RenderableType:
    """The last words of `convert`: proofs, worst cases, coverage, what is open, where the bundle is."""
    conversion = Conversion(**fields)
    result = verdict(conversion)
    sides = proofs(conversion)
    title = Text.assemble(
        (conversion.checkpoint.name, "bold"),
        (f"  {chip_text(conversion.target)}, {conversion.dtype}{ranks_text(conversion)}", "dim"),
    )
    parts: list[RenderableType] = [
        title,
        Text(result.headline, style=_STATE_STYLE[result.state]),
        Text(""),
        *[line for proof in sides for line in _proof_lines(proof)],
        Text(""),
        _coverage_table([cover for cover, _ in conversion.phases]),
        Text(""),
        *_cost_texts(conversion),
        *_failure_texts(conversion),
        Text("Not proven", style="bold"),
        *[
            Padding(Text.assemble(question.lead, (f". {question.text}", "dim")), (0, 0, 0, 2))
            for question in open_questions(conversion)
        ],
        Text(""),
        _stages_text(conversion),
    ]
    if conversion.bundle is not None:
        parts.append(Text.assemble("Bundle: ", (str(conversion.bundle), "bold"), overflow="fold"))
    return Group(*parts)


def _layer_text(row: PlanRow) -> Padding:
    shapes = f"{specs_text(row.inputs)} → {specs_text(row.outputs)}"
    return Padding(
        Text.assemble(row.kind, "\n", (f"{shapes} {dtypes_text(row.inputs + row.outputs)}", "dim")),
        (0, 0, 0, 2),
    )


def _decision_text(row: PlanRow) -> Text:
    name = f" {row.recipe}" if row.recipe else ""
    return Text.assemble((row.decision + name, _DECISION_STYLE[row.decision]), "\n", (row.reason, "dim"))


def _proof_lines(proof: Proof) -> list[RenderableType]:
    """The claim and its state on one line; below, in the full width, what was found."""
    state = proof.state if proof.state == "passed" else proof.state.upper()
    claim = Text.assemble(
        f"{proof.number} {proof.claim} ",
        (f"[{', '.join(proof.tiers)}] ", "dim"),
        (state, _STATE_STYLE[proof.state]),
    )
    found = [Text(f"{essential}.") for essential in proof.essentials]
    found.append(Text(proof.sentence, style="dim" if found else ""))
    if worst := _worst_text(proof):
        found.append(Text(worst, style="dim"))
    return [claim, *[Padding(line, (0, 0, 0, 2)) for line in found]]


def _worst_text(proof: Proof) -> str:
    if proof.worst is None:
        return "no case has a limit" if proof.cases else ""
    case, margin = proof.worst.case, proof.worst.margin
    subject = split_subject(proof.worst.subject)
    where = f"{subject.recipe} on {subject.layer_class}" if subject.layer_class else subject.recipe
    shapes = "" if is_pooled(case) else f" {shapes_text(case.shapes)}"
    words = [
        f"Worst: {where}, {case.name}, {case.dtype}{shapes}: {margin.metric} "
        f"{metric_text(margin.value)} of {metric_text(margin.limit)}"
    ]
    if case.seed is not None:
        words.append(f"seed {case.seed}")
    return ", ".join(words)


def _failure_texts(conversion: Conversion) -> list[RenderableType]:
    found = failures(conversion)
    if not found:
        return []
    lines: list[RenderableType] = [Text("Failed", style="bold red")]
    for report, case in found[:_MOST_FAILURES]:
        words = [split_subject(report.subject).recipe, case.name, f"{case.dtype} {shapes_text(case.shapes)}"]
        if case.kind == "sabotage":
            words.insert(0, "accepted a wrong result")
        if (closest := margin(case)) is not None:
            words.append(f"{closest.metric} {metric_text(closest.value)}, limit {metric_text(closest.limit)}")
        lines.append(Padding(Text(", ".join(words)), (0, 0, 0, 2)))
    if len(found) > _MOST_FAILURES:
        lines.append(Padding(Text(f"and {len(found) - _MOST_FAILURES} more"), (0, 0, 0, 2)))
    return [*lines, Text("")]


def _cost_texts(conversion: Conversion) -> list[RenderableType]:
    """What quantised weights cost; nothing for a model without."""
    cost = conversion.quantization_cost
    if cost is None:
        return []
    lines = [Padding(Text(f"{sentence}."), (0, 0, 0, 2)) for sentence in cost_sentences(cost)]
    return [Text(f"What {cost.weight_format} costs", style="bold"), *lines, Text("")]


def _gap_text(gap: Gap) -> Padding:
    row = gap.row
    times = f" ×{row.count}" if row.count > 1 else ""
    weight = f"{share_text(row.flops_share)} of FLOPs, {share_text(row.bytes_share)} of bytes"
    words = Text.assemble(f"{row.kind}{times}, {weight}: {row.reason.rstrip('.')}. ", (gap.cure, "dim"))
    return Padding(words, (0, 0, 0, 2))


def _coverage_table(covers: Sequence[Coverage]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("in kernels")
    for name in ("layers", "FLOPs", "bytes"):
        table.add_column(name, justify="right", no_wrap=True)
    if outside := any(cover.between_flops_share > 0 for cover in covers):
        table.add_column("FLOPs between layers", justify="right", no_wrap=True)
    for cover in covers:
        table.add_row(
            cover.label,
            f"{cover.kernel_layer_count} of {cover.layer_count}",
            share_text(cover.kernel_flops_share),
            share_text(cover.kernel_bytes_share),
            *([share_text(cover.between_flops_share)] if outside else []),
        )
    return table


def _stages_text(conversion: Conversion) -> Text:
    seconds = sum(stage.seconds for stage in conversion.stages)
    reused = [stage.name for stage in conversion.stages if stage.reused]
    names = ", ".join(reused) if len(reused) <= _MOST_REUSED else f"{len(reused)} of them"
    text = f"{len(conversion.stages)} stages in {seconds_text(seconds)}"
    return Text(text + (f"; unchanged and reused: {names}" if reused else ""), style="dim")
