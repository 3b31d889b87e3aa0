"""The state of the three proofs, in numbers and one sentence each. Nothing here is kinder than the records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from neuron_port.report.cases import Worst, by_dtype, is_measurement, split_subject, worst_case
from neuron_port.report.essentials import graph_essentials, model_essentials
from neuron_port.report.numbers import limit_share_text
from neuron_port.report.records import Conversion
from neuron_port.types import CaseResult, ParityReport

ProofState = Literal["passed", "failed", "incomplete", "not run"]


@dataclass(frozen=True, kw_only=True)
class Proof:
    """One side of the proof.

    `cases` counts results that must hold, `sabotage` those that must not, `measurements` those without a limit of
    their own. `essentials` are the findings in words.
    """

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
    measurements: int
    essentials: tuple[str, ...]
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
        if self.measurements:
            text += f"; {self.measurements} more measured without a limit of their own"
        if self.missing:
            text += f"; {len(self.missing)} not covered"
        return text + "."


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The whole result in one line, and the state that colours it."""

    state: ProofState
    headline: str


def failures(conversion: Conversion) -> list[tuple[ParityReport, CaseResult]]:
    """Every case that failed, wrong results that were accepted included, with its report."""
    reports = [*conversion.kernel_reports, *conversion.graph_reports, *conversion.model_reports]
    return [(report, case) for report in reports for case in report.cases if not case.passed]


def proofs(conversion: Conversion) -> tuple[Proof, Proof, Proof]:
    """The three sides: kernel = layer, graph = model, ported model = model."""
    return (
        _proof(
            1, "kernel = layer", "Each kernel against the layer's own forward",
            conversion.kernel_reports, "simulator", missing_kernels(conversion), (),
        ),
        _proof(
            2, "graph = model", "The emitted HLO against transformers, every output",
            conversion.graph_reports, "xla-cpu", missing_graphs(conversion),
            graph_essentials(conversion.graph_reports),
        ),
        _proof(
            3, "ported model = model", "The whole model, running its kernels, against transformers",
            conversion.model_reports, "simulator", (),
            model_essentials(conversion.model_reports),
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
    essentials: tuple[str, ...],
) -> Proof:
    cases = [case for report in reports for case in report.cases]
    verdicts = [case for case in cases if not is_measurement(case)]
    right = [case for case in verdicts if case.kind != "sabotage"]
    wrong = [case for case in cases if case.kind == "sabotage"]
    missing += _unjudged(reports)
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
        measurements=len(cases) - len(verdicts),
        essentials=essentials,
        worst=worst_case(reports),
        missing=missing,
    )


def _unjudged(reports: Sequence[ParityReport]) -> tuple[str, ...]:
    """What was measured without any verdict: "prefill_b1_s64 in bfloat16 (measured, not judged)"."""
    return tuple(
        f"{report.subject} in {dtype} (measured, not judged)"
        for report in reports
        for dtype, cases in by_dtype(report.cases).items()
        if all(map(is_measurement, cases))
    )


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
