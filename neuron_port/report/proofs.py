"""The state of the three proofs, in numbers and one sentence each. Nothing here is kinder than the records.

A case uses some share of each of its limits; its margin is the largest share. Limits are upper bounds. A
sabotage case carries a wrong result on purpose: it passes by being refused, so its margin lies beyond 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from neuron_port.report.numbers import limit_share_text
from neuron_port.report.records import Conversion
from neuron_port.types import CaseResult, ParityReport

ProofState = Literal["passed", "failed", "incomplete", "not run"]


@dataclass(frozen=True, kw_only=True)
class Margin:
    """The metric that comes closest to its limit, or goes furthest beyond: share = value / limit."""

    metric: str
    value: float
    limit: float
    share: float


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A kernel report's subject, "<recipe> · <layer class> · <signature>", in parts; others are one part."""

    recipe: str
    layer_class: str = ""
    signature: str = ""


@dataclass(frozen=True, kw_only=True)
class Worst:
    """The ordinary case with the largest margin among several reports, with its report's subject."""

    subject: str
    case: CaseResult
    margin: Margin


@dataclass(frozen=True, kw_only=True)
class Proof:
    """One side of the proof: `cases` counts results that should hold, `sabotage` those that should not."""

    number: int
    claim: str
    means: str
    tiers: tuple[str, ...]
    state: ProofState
    subjects: int
    cases_passed: int
    cases: int
    sabotage_refused: int
    sabotage: int
    worst: Worst | None
    missing: tuple[str, ...]  # what the proof should cover and does not

    @property
    def sentence(self) -> str:
        """The counts, and the worst case, in words."""
        if self.state == "not run":
            return "No case was run."
        text = f"{self.cases_passed} of {self.cases} cases hold"
        if self.sabotage:
            text += f"; {self.sabotage_refused} of {self.sabotage} wrong results refused"
        if self.worst:
            text += f"; worst case {_distance_text(self.worst.margin.share)}"
        if self.missing:
            text += f"; {len(self.missing)} not covered"
        return text + "."


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The whole result in one line, and the state that colours it."""

    state: ProofState
    headline: str


def margin(case: CaseResult) -> Margin | None:
    """The case's metric with the largest share of its limit, or None if no metric has a limit."""
    margins = [
        Margin(metric=name, value=case.metrics[name], limit=limit, share=_share(case.metrics[name], limit))
        for name, limit in case.limits.items()
        if name in case.metrics
    ]
    return max(margins, key=lambda item: item.share, default=None)


def worst_case(reports: Sequence[ParityReport]) -> Worst | None:
    """The case closest to its limit; sabotage is left out, and failed cases come first."""
    found = [
        Worst(subject=report.subject, case=case, margin=case_margin)
        for report in reports
        for case in report.cases
        if case.kind != "sabotage" and (case_margin := margin(case)) is not None
    ]
    return max(found, key=lambda item: (not item.case.passed, item.margin.share), default=None)


def failures(conversion: Conversion) -> list[tuple[ParityReport, CaseResult]]:
    """Every case that failed, wrong results that were accepted included, with its report."""
    reports = [*conversion.kernel_reports, *conversion.graph_reports, *conversion.model_reports]
    return [(report, case) for report in reports for case in report.cases if not case.passed]


def split_subject(subject: str) -> Subject:
    """The parts of a kernel report's subject."""
    recipe, *rest = subject.split(" · ")
    if len(rest) < 2:
        return Subject(recipe=subject)
    return Subject(recipe=recipe, layer_class=" · ".join(rest[:-1]), signature=rest[-1])


def proofs(conversion: Conversion) -> tuple[Proof, Proof, Proof]:
    """The three sides: kernel = layer, graph = model, ported model = model."""
    return (
        _proof(
            1, "kernel = layer", "Each kernel against the layer's own forward",
            conversion.kernel_reports, "simulator", missing_kernels(conversion),
        ),
        _proof(
            2, "graph = model", "The emitted HLO against transformers, every output",
            conversion.graph_reports, "xla-cpu", missing_graphs(conversion),
        ),
        _proof(
            3, "ported model = model", "The whole model, running its kernels, against transformers",
            conversion.model_reports, "simulator", (),
        ),
    )  # fmt: skip


def missing_kernels(conversion: Conversion) -> tuple[str, ...]:
    """Layers for which the plan names a kernel and no report has a case: "rope on LlamaAttention (9f..)"."""
    proven = {split_subject(report.subject).signature for report in conversion.kernel_reports if report.cases}
    missing = {
        row.signature: f"{row.served_by} on {row.kind} ({row.signature})"
        for _, rows in conversion.phases
        for row in rows
        if row.decision in ("recipe", "draft") and row.signature not in proven
    }
    return tuple(missing.values())


def missing_graphs(conversion: Conversion) -> tuple[str, ...]:
    """Graphs of the bundle that no graph report covers."""
    proven = {report.subject for report in conversion.graph_reports if report.cases}
    return tuple(spec.id for spec in conversion.graph_specs if spec.id not in proven)


def verdict(conversion: Conversion) -> Verdict:
    """One line that may be quoted without the rest."""
    sides = proofs(conversion)
    failed = [proof for proof in sides if proof.state == "failed"]
    open_sides = [proof for proof in sides if proof.state in ("not run", "incomplete")]
    if failed:
        words = [f"{_names(failed)} failed", *([_states(open_sides)] if open_sides else [])]
        return Verdict(state="failed", headline=f"Not proven: {'; '.join(words)}.")
    if len(open_sides) == len(sides) and all(proof.state == "not run" for proof in open_sides):
        return Verdict(state="not run", headline="Not proven: none of the three proofs has been run.")
    if open_sides:
        return Verdict(state="incomplete", headline=f"Partly proven: {_states(open_sides)}.")
    if any("device" in proof.tiers for proof in sides):
        return Verdict(state="passed", headline="All three proofs hold, with cases that ran on a device.")
    return Verdict(state="passed", headline="All three proofs hold. No device has run it.")


def _proof(
    number: int,
    claim: str,
    means: str,
    reports: Sequence[ParityReport],
    usual_tier: str,
    missing: tuple[str, ...],
) -> Proof:
    cases = [case for report in reports for case in report.cases]
    right = [case for case in cases if case.kind != "sabotage"]
    wrong = [case for case in cases if case.kind == "sabotage"]
    state: ProofState
    if not cases:
        state = "not run"
    elif not all(case.passed for case in cases):
        state = "failed"
    elif missing or not all(report.cases for report in reports):
        state = "incomplete"
    else:
        state = "passed"
    return Proof(
        number=number,
        claim=claim,
        means=means,
        tiers=tuple(dict.fromkeys(case.tier for case in cases)) or (usual_tier,),
        state=state,
        subjects=len(reports),
        cases_passed=sum(case.passed for case in right),
        cases=len(right),
        sabotage_refused=sum(case.passed for case in wrong),
        sabotage=len(wrong),
        worst=worst_case(reports),
        missing=missing,
    )


def _share(value: float, limit: float) -> float:
    if math.isnan(value) or math.isnan(limit):
        return math.inf
    if limit <= 0:
        return 0.0 if value <= limit else math.inf
    return max(value, 0.0) / limit


def _distance_text(share: float) -> str:
    if share == 0:
        return "exact"
    if math.isinf(share):
        return "infinitely far beyond its limit"
    return f"at {limit_share_text(share)} {'times' if share > 1 else 'of'} its limit"


def _names(sides: Sequence[Proof]) -> str:
    return " and ".join(f"proof {proof.number} ({proof.claim})" for proof in sides)


def _states(sides: Sequence[Proof]) -> str:
    words = {"not run": "has not been run", "incomplete": "is incomplete"}
    return " and ".join(f"proof {proof.number} ({proof.claim}) {words[proof.state]}" for proof in sides)
