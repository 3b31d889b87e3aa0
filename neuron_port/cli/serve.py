"""`neuron-port serve`: a bundle behind OpenAI's HTTP interface."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import click

KEYS_VARIABLE = "NEURON_PORT_API_KEY"


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--backend", type=click.Choice(["xla-cpu", "neuron", "reference"]), default="xla-cpu", show_default=True,
              help="The graphs on this CPU, the NEFFs on NeuronCores, or transformers' own model.")  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=int, default=8000, show_default=True, help="Port; 0 takes a free one.")
@click.option("--model-name", help="What clients call the model.  [default: the last part of its id]")
@click.option("--api-key", "keys", multiple=True, metavar="KEY",
              help=f"A key that clients must send. Repeatable; also from ${KEYS_VARIABLE}, comma-separated.")  # fmt: skip
@click.option("--no-key", is_flag=True, help="Listen beyond this machine without a key.")
@click.option("--max-queue", type=int, default=256, show_default=True, metavar="N",
              help="Sequences that may wait; more get 429.")  # fmt: skip
@click.option("--max-body-mib", type=float, default=4.0, show_default=True, help="Largest request body.")
@click.option("--request-seconds", type=float, default=600.0, show_default=True, help="Longest request.")
@click.option("--drain-seconds", type=float, default=30.0, show_default=True,
              help="After SIGTERM, what running requests get to finish.")  # fmt: skip
@click.option("--no-verify", is_flag=True, help="Do not compare the bundle's files with their hashes.")
@click.option("--verbose", is_flag=True, help="Log more than warnings.")
def serve(
    bundle: Path, keys: tuple[str, ...], max_body_mib: float, no_verify: bool, verbose: bool, **options: Any
) -> None:
    """Serve BUNDLE over HTTP as OpenAI's API: completions, chat, embeddings, metrics.

    Without --backend neuron it runs on this machine's CPU, on the very graphs that go to the chip.
    """
    from neuron_port import serving
    from neuron_port.serving.settings import Settings

    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(levelname)s %(message)s"
    )
    from_environment = tuple(key for key in os.environ.get(KEYS_VARIABLE, "").split(",") if key)
    settings = Settings(
        keys=(*keys, *from_environment),
        verify=not no_verify,
        max_body_bytes=int(max_body_mib * 2**20),
        **options,
    )
    serving.serve(bundle, settings, announce=lambda line: click.echo(line, err=True))
