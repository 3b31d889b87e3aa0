"""The HTML report: one file without outside resources, readable without JavaScript, in both colour schemes.

Names and reasons come from strangers' models. Everything is escaped, and the page's own content policy allows
nothing but the one style sheet and the one script that are written here, by digest.
"""

from __future__ import annotations

import base64
import hashlib
import platform
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Unpack

import jinja2
from markupsafe import Markup

import neuron_port
from neuron_port.report import numbers
from neuron_port.report.cases import is_measurement, margin, split_name, split_subject, worst_case
from neuron_port.report.continuations import continuation
from neuron_port.report.coverage import DECISIONS
from neuron_port.report.embeddings import cosine_text, plain_detail
from neuron_port.report.gaps import gaps
from neuron_port.report.open_questions import chip_text, open_questions, ranks_text
from neuron_port.report.pictures import layer_chart, layer_metrics, limit_axis, strips
from neuron_port.report.proofs import failures, proofs, verdict
from neuron_port.report.quantization import cost_columns
from neuron_port.report.records import Conversion, ConversionFields
from neuron_port.report.sequences import graph_rows, model_section
from neuron_port.types import GraphSpec, ParityReport

_WORST_ROWS = 10


def write_html(path: Path, **fields: Unpack[ConversionFields]) -> None:
    """Writes the report of one conversion to `path`, or nothing. `Conversion` explains the fields."""
    text = render(Conversion(**fields))
    aside = path.with_name(path.name + ".partial")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def render(conversion: Conversion) -> str:
    """The report's HTML."""
    style, script = _template_text("report.css"), _template_text("report.js")
    axis = limit_axis(conversion.kernel_reports)
    return _environment().get_template("report.html.j2").render(
        conversion=conversion,
        checkpoint=conversion.checkpoint,
        chip=chip_text(conversion.target),
        verdict=verdict(conversion),
        proofs=proofs(conversion),
        failures=failures(conversion),
        questions=open_questions(conversion),
        cost_columns=cost_columns(conversion.quantization_cost),
        decisions=DECISIONS,
        phases=conversion.phases,
        axis=axis,
        strips=strips(conversion.kernel_reports, axis),
        worst_rows=_worst_rows(conversion.kernel_reports)[:_WORST_ROWS],
        row_of={row.signature: row for _, rows in conversion.phases for row in rows},
        charts=[chart for report in conversion.model_reports if (chart := layer_chart(report))],
        proven_graphs=graph_rows(conversion.graph_reports),
        model_sections=[model_section(report) for report in conversion.model_reports],
        interfaces=[_interface(spec, conversion) for spec in conversion.graph_specs],
        total_seconds=sum(stage.seconds for stage in conversion.stages),
        longest_seconds=max((stage.seconds for stage in conversion.stages), default=0.0),
        provenance=_provenance(conversion),
        style=Markup(style),  # our own files, not escaped
        script=Markup(script),
        style_digest=_policy_digest(style),
        script_digest=_policy_digest(script),
    )  # fmt: skip


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("neuron_port.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in (
        "share_text", "limit_share_text", "metric_text", "bytes_text", "flops_text", "seconds_text",
        "shapes_text", "specs_text", "dtypes_text", "names_text", "breakable", "with_code",
    ):  # fmt: skip
        environment.filters[name] = getattr(numbers, name)
    environment.filters["margin"] = margin
    environment.filters["gaps"] = gaps
    environment.filters["continuation"] = continuation
    environment.filters["plain_detail"] = plain_detail
    environment.filters["cosine_text"] = cosine_text
    environment.filters["split_name"] = split_name
    environment.filters["split_subject"] = split_subject
    environment.filters["layer_metrics"] = layer_metrics
    environment.tests["measurement"] = is_measurement
    environment.tests["number"] = lambda value: (
        isinstance(value, (int, float)) and not isinstance(value, bool)
    )
    return environment


def _template_text(name: str) -> str:
    return resources.files("neuron_port.report").joinpath("templates", name).read_text(encoding="utf-8")


def _policy_digest(text: str) -> str:
    """The digest by which a content security policy allows an inline element."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _worst_rows(reports: Sequence[ParityReport]) -> list[dict[str, Any]]:
    """For each kernel and dtype, the case that comes closest to its limit, furthest first."""
    rows = []
    for report in reports:
        for dtype in dict.fromkeys(case.dtype for case in report.cases):
            cases = tuple(case for case in report.cases if case.dtype == dtype)
            worst = worst_case([ParityReport(subject=report.subject, oracle=report.oracle, cases=cases)])
            if worst is not None:
                rows.append(
                    {"subject": split_subject(report.subject), "case": worst.case, "margin": worst.margin}
                )
    return sorted(rows, key=lambda row: (row["case"].passed, -row["margin"].share))


def _interface(spec: GraphSpec, conversion: Conversion) -> dict[str, Any]:
    """One graph's interface in totals, with its lint sorted by the form of its values."""
    roles = {}
    for role in ("weight", "input", "state"):
        chosen = [item.spec for item in spec.inputs if item.role == role]
        roles[role] = (len(chosen), sum(item.size_bytes for item in chosen))
    lint = conversion.graph_lints.get(spec.id, {})
    return {
        "spec": spec,
        "roles": roles,
        "aliases": sum(item.alias_of is not None for item in spec.outputs),
        "output_bytes": sum(item.spec.size_bytes for item in spec.outputs),
        "lint_is_present": spec.id in conversion.graph_lints,
        "histograms": {name: _by_count(value) for name, value in lint.items() if _is_histogram(value)},
        "findings": {name: value for name, value in lint.items() if isinstance(value, (list, tuple))},
        "facts": {
            name: value
            for name, value in lint.items()
            if not _is_histogram(value) and not isinstance(value, (list, tuple))
        },
    }


def _is_histogram(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(count, int) for count in value.values())


def _by_count(histogram: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(histogram.items(), key=lambda item: (-item[1], item[0]))


def _provenance(conversion: Conversion) -> list[tuple[str, str]]:
    checkpoint = conversion.checkpoint
    reports = [*conversion.kernel_reports, *conversion.graph_reports, *conversion.model_reports]
    oracles = dict.fromkeys(report.oracle for report in reports)
    weight_bytes = sum(spec.size_bytes for spec in checkpoint.weights.values())
    weights = f"{len(checkpoint.weights)} tensors, {numbers.bytes_text(weight_bytes)}"
    facts = [
        ("Model", checkpoint.name),
        ("Source", checkpoint.source),
        ("Revision", checkpoint.revision),
        ("Architecture", checkpoint.architecture),
        ("Weights", weights + (", random" if checkpoint.random_weights else "")),
        ("Licence", checkpoint.license or "not stated"),
        ("Target", f"{conversion.target}, {chip_text(conversion.target)}{ranks_text(conversion)}"),
        ("Dtype", conversion.dtype),
        *([("Weight format", checkpoint.weight_format)] if checkpoint.weight_format else []),
        *(("Reference", oracle) for oracle in oracles),
        ("Made by", f"neuron-port {neuron_port.__version__}, Python {platform.python_version()}"),
    ]
    if conversion.bundle is not None:
        facts.append(("Bundle", str(conversion.bundle)))
    return facts
