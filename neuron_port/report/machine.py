"""What `--json` prints: what people see, in plain JSON values. NaN and infinities are spelled as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

from neuron_port.report.cases import Worst, margin
from neuron_port.report.coverage import Coverage, PlanRow
from neuron_port.report.embeddings import plain_detail
from neuron_port.report.gaps import gaps
from neuron_port.report.numbers import plain_json
from neuron_port.report.open_questions import open_questions
from neuron_port.report.proofs import Proof, failures, proofs, verdict
from neuron_port.report.records import Conversion, ConversionFields
from neuron_port.types import CaseResult, ParityReport, to_json


def json_summary(**fields: Unpack[ConversionFields]) -> dict[str, Any]:
    """The closing summary for machines. `Conversion` explains the fields."""
    conversion = Conversion(**fields)
    checkpoint = conversion.checkpoint
    result = verdict(conversion)
    found = {
        "checkpoint": {
            "name": checkpoint.name,
            "source": checkpoint.source,
            "revision": checkpoint.revision,
            "architecture": checkpoint.architecture,
            "random_weights": checkpoint.random_weights,
            "license": checkpoint.license,
        },
        "target": conversion.target,
        "dtype": conversion.dtype,
        "tensor_parallel": conversion.ranks,
        "verdict": {"state": result.state, "headline": result.headline},
        "proofs": [_proof(proof) for proof in proofs(conversion)],
        "not_proven": [{"lead": item.lead, "text": item.text} for item in open_questions(conversion)],
        "unused_parameters": list(conversion.plan.unused_parameters),
        "phases": [_phase(cover, rows) for cover, rows in conversion.phases],
        "weight_format": checkpoint.weight_format or conversion.dtype,
        "quantization_cost": None
        if conversion.quantization_cost is None
        else {**to_json(conversion.quantization_cost), "means": conversion.quantization_cost.means},
        "failures": [_failure(report, case) for report, case in failures(conversion)],
        "graphs": [spec.id for spec in conversion.graph_specs],
        "stages": [to_json(stage) for stage in conversion.stages],
        "bundle": None if conversion.bundle is None else str(conversion.bundle),
    }
    return {key: plain_json(value) for key, value in found.items()}


def _proof(proof: Proof) -> dict[str, Any]:
    return {
        "number": proof.number,
        "claim": proof.claim,
        "tiers": list(proof.tiers),
        "state": proof.state,
        "cases": proof.cases,
        "cases_passed": proof.cases_passed,
        "sabotage": proof.sabotage,
        "sabotage_refused": proof.sabotage_refused,
        "measurements": proof.measurements,
        "essentials": list(proof.essentials),
        "missing": list(proof.missing),
        "worst": None if proof.worst is None else _worst(proof.worst),
    }


def _worst(worst: Worst) -> dict[str, Any]:
    return {
        "subject": worst.subject,
        "case": worst.case.name,
        "kind": worst.case.kind,
        "dtype": worst.case.dtype,
        "shapes": to_json(worst.case.shapes),
        "seed": worst.case.seed,
        "metric": worst.margin.metric,
        "value": worst.margin.value,
        "limit": worst.margin.limit,
        "share_of_limit": worst.margin.share,
    }


def _phase(cover: Coverage, rows: Sequence[PlanRow]) -> dict[str, Any]:
    return {
        "phase": cover.phase,
        "batch": cover.batch,
        "sequence_length": cover.sequence_length,
        "flops": cover.flops,
        "hbm_bytes": cover.hbm_bytes,
        "flops_share": dict(cover.flops_share),
        "bytes_share": dict(cover.bytes_share),
        "layer_count": dict(cover.layers),
        "glue_count": cover.glue,
        "between_flops_share": cover.between_flops_share,
        "not_covered": [
            {"signature": gap.row.signature, "cause": gap.cause, "cure": gap.cure} for gap in gaps(rows)
        ],
        "plan": [_row(row) for row in rows],
    }


def _row(row: PlanRow) -> dict[str, Any]:
    return {
        "signature": row.signature,
        "module_class": row.module_class,
        "operation": row.operation,
        "count": row.count,
        "inputs": to_json(row.inputs),
        "outputs": to_json(row.outputs),
        "flops_share": row.flops_share,
        "bytes_share": row.bytes_share,
        "decision": row.decision,
        "recipe": row.recipe,
        "reason": row.reason,
    }


def _failure(report: ParityReport, case: CaseResult) -> dict[str, Any]:
    closest = margin(case)
    return {
        "subject": report.subject,
        "case": case.name,
        "kind": case.kind,
        "dtype": case.dtype,
        "seed": case.seed,
        "metric": None if closest is None else closest.metric,
        "detail": plain_detail(case),
    }
