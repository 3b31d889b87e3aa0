"""`neuron-port check`: does a model fit, where, at what price and speed, and what is known to fail."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neuron_port.cli.remote_options import price_option
from neuron_port.errors import UsageError

if TYPE_CHECKING:
    from neuron_port.preflight.records import CheckReport


@click.command()
@click.argument("model")
@click.option(
    "--target", help="Chip: inf2, trn1 or trn2.  [default: that of --instance, the preset's, or trn2]"
)
@click.option("--instance", metavar="TYPE", help="Only this instance type, such as inf2.24xlarge.")
@click.option("--batch", type=int, default=1, show_default=True, help="Sequences at once, on each replica.")
@click.option("--context", type=int, help="Tokens of a sequence, prompt and answer.  [default: 4096]")
@click.option("--dtype", "--weight-format", "weight_format", default="bfloat16", show_default=True,
              help="How weights are kept: float32, bfloat16, int8 or fp8.")  # fmt: skip
@price_option
@click.option("--revision", help="Branch, tag or commit of a hub model.")
@click.option("--html", "page", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Write the report as a page, with a picture of the costs.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def check(
    model: str,
    target: str | None,
    instance: str | None,
    batch: int,
    context: int | None,
    weight_format: str,
    prices: dict[str, float],
    revision: str | None,
    page: Path | None,
    as_json: bool,
) -> None:
    """Say whether MODEL fits a chip, on which instance types, at what speed and price, from its configuration alone.

    MODEL is a preset, a hub id, a folder or a .gguf file. No weights are fetched, and no Neuron SDK is needed. Speeds
    are predicted; no device has confirmed them.

    \b
    neuron-port check llama-3.1-70b --target trn1 --batch 8 --context 4096
    """
    chosen = target or _usual_target(model, instance)
    options: dict[str, Any] = {
        "model": model,
        "target": chosen,
        "instance": instance,
        "batch": batch,
        "context": context,
        "weight_format": weight_format,
        "revision": revision,
        "prices": prices,
    }
    with _without_collections():
        report = _run(options, quiet=as_json)
    if page is not None:
        _write(page, report)
    if as_json:
        from neuron_port.types import to_json

        click.echo(json.dumps(to_json(report), indent=2))
    else:
        from rich.console import Console

        from neuron_port.preflight.terminal import report_text

        Console().print(report_text(report))


def _run(options: dict[str, Any], *, quiet: bool) -> CheckReport:
    gc.disable()  # a tenth of the time goes to it: imports make millions of objects, and the process ends soon
    from neuron_port.preflight.check import check as run
    from neuron_port.preflight.records import CheckOptions

    return run(CheckOptions(**options), say=None if quiet else lambda text: click.echo(text, err=True))


def _write(page: Path, report: CheckReport) -> None:
    from neuron_port.preflight.page import write_page

    try:
        write_page(page, report)
    except OSError as error:
        raise UsageError(
            f"The page cannot be written at `{page}`: {error.strerror}", hint="Choose another --html."
        ) from error
    click.echo(f"Written: {page}", err=True)


@contextmanager
def _without_collections() -> Iterator[None]:
    """Leave garbage where it is for some seconds: looking for it during imports and tracing costs a fifth of them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _usual_target(model: str, instance: str | None) -> str:
    """The instance's own chip, the preset's, or trn2."""
    from neuron_port.checkpoint.presets import find_preset
    from neuron_port.instances import instance as find_instance

    if instance is not None and (own := find_instance(instance).target) is not None:
        return own
    preset = find_preset(model)
    return str(preset.convert.get("target", "trn2")) if preset else "trn2"
