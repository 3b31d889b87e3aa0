"""The proof that a bundle carries: every comparison as JSON, and one page for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neuron_port.build.quantization_page import cost_entry, cost_page
from neuron_port.build.storage import finite, write_json
from neuron_port.errors import ParityError
from neuron_port.types import CaseResult, ParityReport, QuantizationCost

SIDES = {
    "kernels": "kernel = reference",
    "graphs": "graph = model",
    "model": "ported model = model",
}
Parity = Mapping[str, Sequence[ParityReport]]


def check_parity(parity: Parity) -> None:
    """Raises: ParityError for a side that is unknown, or a report that failed."""
    unknown = sorted(set(parity) - set(SIDES))
    if unknown:
        raise ParityError(f"Unknown side of the proof: `{unknown[0]}`", hint=f"Known: {', '.join(SIDES)}")
    for side, reports in parity.items():
        for report in reports:
            if not report.passed:
                worst = report.worst
                where = (
                    "no case was run"
                    if worst is None
                    else f"case `{worst.name}`: {worst.detail or worst.metrics}"
                )
                raise ParityError(
                    f"{side}: {report.subject} failed parity ({where})",
                    hint="A bundle is written only for what agrees with its reference.",
                )


def write_parity(
    folder: Path, parity: Parity, *, title: str, quantization_cost: QuantizationCost | None = None
) -> dict[str, Any]:
    """Write `folder` (the bundle's parity/) and return the manifest's `parity` entry."""
    folder.mkdir(parents=True, exist_ok=True)
    sides = {side: _summary(parity[side]) for side in SIDES if parity.get(side)}
    cost = cost_entry(quantization_cost)
    record = {"summary": sides, "reports": parity}
    write_json(folder / "report.json", record | ({"quantization_cost": cost} if cost else {}))
    reports = [report for side in SIDES for report in parity.get(side, ())]
    summary = {
        "oracle": sorted({report.oracle for report in reports}),
        "executor": sides.get("graphs", {}).get("tiers", []),
        "pass": bool(reports),
        "not_run": [side for side in SIDES if side not in sides],
        "sides": sides,
        "not_proven": sorted({sentence for report in reports for sentence in report.not_proven}),
        "quantization_cost": cost,
    }
    page = _page(title, summary, parity) + cost_page(quantization_cost)
    (folder / "report.md").write_text(page, encoding="utf-8")
    return summary


def _summary(reports: Sequence[ParityReport]) -> dict[str, Any]:
    cases = [case for report in reports for case in report.cases]
    worst_report = max(reports, key=lambda report: _share(report.worst))
    worst = worst_report.worst
    assert worst is not None, "check_parity refuses reports without cases"
    return {
        "pass": True,
        "subjects": len(reports),
        "cases": len(cases),
        "tiers": sorted({case.tier for case in cases}),
        "dtypes": sorted({case.dtype for case in cases}),
        "worst": {
            "subject": worst_report.subject, "case": worst.name, "dtype": worst.dtype,
            "metrics": finite(worst.metrics), "limits": finite(worst.limits),
        },
    }  # fmt: skip


def _share(case: CaseResult | None) -> float:
    """How much of its tightest limit a case used up; 1 is all of it."""
    if case is None:
        return 0.0
    limits = ((case.metrics.get(name, 0.0), limit) for name, limit in case.limits.items())
    return max((metric / limit for metric, limit in limits if limit > 0), default=0.0)


def _page(title: str, summary: Mapping[str, Any], parity: Parity) -> str:
    lines = [f"# Parity of {title}", ""]
    lines += [
        "| side | subjects | cases | proved on | worst case | of its limit |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for side, meaning in SIDES.items():
        found = summary["sides"].get(side)
        if found is None:
            lines.append(f"| {meaning} | not run | | | | |")
            continue
        worst = found["worst"]
        used = max(_share(report.worst) for report in parity[side])
        lines.append(
            f"| {meaning} | {found['subjects']} | {found['cases']} | {', '.join(found['tiers'])} "
            f"| {worst['subject']}: {worst['case']} ({worst['dtype']}) | {used:.0%} |"
        )
    lines += ["", f"Compared with: {'; '.join(summary['oracle']) or 'nothing'}.", ""]
    lines += [
        "No Neuron device has confirmed any of this; `build/finish.py` asks one when it runs on an instance.",
        "",
    ]
    if summary["not_proven"]:
        lines += ["Not proven:", "", *(f"- {sentence}" for sentence in summary["not_proven"]), ""]
    for side, meaning in SIDES.items():
        if parity.get(side):
            lines += [
                f"## {meaning}",
                "",
                "| subject | cases | worst case | metrics | limits |",
                "| --- | --- | --- | --- | --- |",
            ]
            lines += [_row(report) for report in parity[side]]
            lines.append("")
    return "\n".join(lines)


def _row(report: ParityReport) -> str:
    worst = report.worst
    assert worst is not None, "check_parity refuses reports without cases"
    metrics = ", ".join(f"{name} {value:.3g}" for name, value in worst.metrics.items())
    limits = ", ".join(f"{name} {value:.3g}" for name, value in worst.limits.items())
    return f"| {report.subject} | {len(report.cases)} | {worst.name} ({worst.dtype}) | {metrics} | {limits} |"
