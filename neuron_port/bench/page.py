"""The results of a benchmark as one HTML file: no network, no script, both colour schemes.

Names of models and messages about candidates are data from outside, so everything is escaped, and the page's own
policy allows nothing but its one style sheet.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from neuron_port.bench.arms import ARMS
from neuron_port.bench.metrics import ArmSummary
from neuron_port.bench.results import BenchResults
from neuron_port.bench.table import cost_rows, percent, rate_rows, task_rows
from neuron_port.drafting.keeping.files import replace_file

PAGE_FILE = "bench.html"
STYLES = (
    ("neuron_port.drafting", "explain.css"),
    ("neuron_port.bench", "bench.css"),
)  # the house's, then our own


@dataclass(frozen=True, kw_only=True)
class ArmBars:
    """The bars of one arm: what, the bar's class, its length from 0 to 1, and the figure in words."""

    name: str
    summary: str
    bars: tuple[tuple[str, str, float, str], ...]


@dataclass(frozen=True, kw_only=True)
class ErrorBar:
    """A class of errors: `part` of the most frequent one, and the arms that met it."""

    name: str
    count: int
    part: float
    arms: str


def write_page(results: BenchResults, folder: Path) -> Path:
    """Write the page, wholly or not at all."""
    path = folder / PAGE_FILE
    replace_file(path, render(results).encode())
    return path


def render(results: BenchResults) -> str:
    """The page's HTML."""
    style = "".join(
        resources.files(package).joinpath("templates", name).read_text(encoding="utf-8")
        for package, name in STYLES
    )
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("neuron_port.bench"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("bench.html.j2").render(
        conditions=results.conditions,
        figures=list(_figures(results)),
        arms=[_bars(summary) for summary in results.summaries],
        rates=rate_rows(results),
        costs=cost_rows(results),
        errors=list(_errors(results)),
        task_rows=task_rows(results),
        rejected=results.rejected,
        rerun=results.rerun,
        style=Markup(style),  # our own files
        style_digest="sha256-" + base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
    )  # fmt: skip


def _figures(results: BenchResults) -> Iterator[tuple[str, str, str]]:
    """Name, value, and what it is made of."""
    conditions = results.conditions
    best = max(results.summaries, key=lambda summary: summary.admitted / max(summary.runs, 1))
    yield "replies", conditions.replies, f"of {conditions.model}"
    yield "best arm", f"{best.admitted}/{best.runs}", f"admitted by {best.arm}"
    yield (
        "tasks",
        str(conditions.tasks),
        f"{len(results.rejected)} left out, digest {conditions.suite_digest}",
    )
    yield "tier", conditions.tier, f"NKI {conditions.nki_version}, {conditions.target}"
    yield "date", conditions.date, f"hidden seed {conditions.hidden_seed}"
    yield "calls on a re-run", str(results.rerun.calls), "from the caches; must be 0"


def _bars(summary: ArmSummary) -> ArmBars:
    admitted = summary.admitted / summary.runs if summary.runs else 0.0
    drafts = ((f"pass@{k}", "drafts", part, percent(part)) for k, part in sorted(summary.pass_at.items()))
    words = f"{summary.admitted} of {summary.runs}"
    described = next(arm.summary for arm in ARMS if arm.name == summary.arm)
    return ArmBars(
        name=summary.arm, summary=described, bars=(("admitted", "admitted", admitted, words), *drafts)
    )


def _errors(results: BenchResults) -> Iterator[ErrorBar]:
    total = sum((summary.error_classes for summary in results.summaries), Counter[str]())
    most = max(total.values(), default=1)
    for name, count in sorted(total.items(), key=lambda item: (-item[1], item[0])):
        met = [f"{one.arm} {one.error_classes[name]}" for one in results.summaries if one.error_classes[name]]
        yield ErrorBar(name=name, count=count, part=count / most, arms=", ".join(met))
