"""The report of `check` as one HTML page: the verdict, a picture of what a million tokens cost, and the tables."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path

from rich.console import Console

from neuron_port.preflight.records import CheckReport, Speed
from neuron_port.preflight.terminal import report_text
from neuron_port.preflight.verdict import PREDICTED, money, unit_of

NEURON, GPU = "#0f766e", "#9ca3af"
WIDTH_CHARACTERS = 150


def write_page(path: Path, report: CheckReport) -> None:
    """Write the page; it needs nothing beside it."""
    name = html.escape(report.anatomy.name)
    body = [
        f"<h1>{name} on {report.options.target}</h1>",
        f"<p class=verdict>{html.escape(report.verdict)}</p>",
    ]
    priced = [one for one in report.speeds if one.usd_per_million_tokens is not None]
    if priced:
        picture = base64.b64encode(cost_picture(priced, unit_of(report))).decode()
        caption = f"US$ per million {unit_of(report)}, {report.region}, {report.prices_date}; {PREDICTED}"
        body.append(
            f"<figure><img alt='{html.escape(caption)}' src='data:image/svg+xml;base64,{picture}'>"
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    body.append(f"<pre>{html.escape(_plain(report))}</pre>")
    path.write_text(_PAGE.format(title=name, body="\n".join(body)), encoding="utf-8")


def _plain(report: CheckReport) -> str:
    console = Console(record=True, width=WIDTH_CHARACTERS, file=io.StringIO(), color_system=None)
    console.print(report_text(report))
    return console.export_text()


def cost_picture(speeds: list[Speed], unit: str) -> bytes:
    """An SVG: a bar for each instance type, what a million of its tokens or inputs cost on it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = list(reversed(speeds))
    figure, axes = pyplot.subplots(figsize=(9, 0.6 + 0.42 * len(shown)))
    costs = [one.usd_per_million_tokens or 0.0 for one in shown]
    colours = [NEURON if one.kind == "neuron" else GPU for one in shown]
    bars = axes.barh([one.instance for one in shown], costs, color=colours)
    axes.bar_label(bars, [f"${money(cost)}" for cost in costs], padding=4, fontsize=9)
    axes.set_xlim(0, max(costs) * 1.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"US$ per million {unit} (Neuron in green, GPUs in grey)")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight")
    pyplot.close(figure)
    return buffer.getvalue()


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}: preflight</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #111827; }}
h1 {{ font-size: 1.5rem; }}
.verdict {{ font-size: 1.1rem; border-left: 4px solid #0f766e; padding-left: 1rem; }}
figure {{ margin: 1.5rem 0; }} img {{ max-width: 100%; }}
figcaption {{ color: #6b7280; font-size: .9rem; }}
pre {{ font-size: .78rem; line-height: 1.45; overflow-x: auto; background: #f9fafb; padding: 1rem; border-radius: 6px; }}
</style></head><body>
{body}
</body></html>
"""
