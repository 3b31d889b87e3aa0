"""`neuron-port lower`: a model's graphs for neuronx-cc, without proofs and without reading a weight."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from neuron_port.cli.convert import live_view, model_options, parse_buckets


@click.command()
@model_options
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="Where to.  [default: lowered/<model>-...]"
)
def lower(as_json: bool, quiet: bool, buckets: str | None, output: Path | None, **options: Any) -> None:
    """Write the graphs of MODEL as HLO, unproven: to look at, to lint, or to try neuronx-cc on.

    `convert` does the same and proves every step; this takes minutes for a model of any size.
    """
    from rich.console import Console

    from neuron_port.pipeline.lower_only import lower_only
    from neuron_port.pipeline.options import complete_options

    completed = complete_options(buckets=parse_buckets(buckets), new_tokens=2, output=output, **options)
    if output is None:
        completed = replace(completed, output=Path("lowered") / completed.output.name)
    with live_view(as_json, quiet) as view:
        lowered = lower_only(completed, view)
    if as_json:
        click.echo(json.dumps(lowered.summary, indent=2))
    else:
        Console().print(_table(lowered.summary))
        ranks = lowered.summary["tensor_parallel"]
        each = f", for each of {ranks} ranks" if ranks > 1 else ""
        click.echo(f"Lowered{each}; nothing is proven: {lowered.folder}")


def _table(summary: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for column in (
        "graph",
        "instructions",
        "kernels",
        "all-reduces",
        "weights",
        "states",
        "expected refusals",
    ):
        table.add_column(
            column,
            justify="left" if column in ("graph", "expected refusals") else "right",
            no_wrap=column == "graph",
        )
    for graph in summary["graphs"]:
        table.add_row(
            graph["id"],
            str(graph["instructions"]),
            str(graph["kernel_calls"]),
            str(graph["all_reduces"]),
            f"{graph['weight_bytes_per_rank'] / 2**30:.1f} GiB",
            f"{graph['state_bytes_per_rank'] / 2**20:.0f} MiB",
            ", ".join(finding["code"] for finding in graph["findings"]) or "none",
        )
    return table
