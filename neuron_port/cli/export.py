"""`neuron-port export`: a bundle for vLLM, optimum-neuron or SageMaker."""

from __future__ import annotations

from pathlib import Path

import click

NEXT = {
    "vllm": "README.md there has the command that serves it.",
    "optimum": "README.md there has the command that compiles it.",
    "sagemaker": "Upload model.tar.gz to S3 and create a model with the container of infra/Dockerfile (docs/deploy.md).",
}


@click.command()
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--to", "to", required=True, type=click.Choice(["vllm", "optimum", "sagemaker"]))
@click.option(
    "--output",
    "-o",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder to write.",
)
def export(bundle: Path, to: str, output: Path) -> None:
    """Write BUNDLE as what another tool reads.

    vllm and optimum get the source checkpoint as a Hugging Face folder; sagemaker gets model.tar.gz.
    """
    if to == "sagemaker":
        from neuron_port.deploy.sagemaker import export_sagemaker

        warnings = export_sagemaker(bundle, output)
    else:
        from neuron_port.deploy.export import export_checkpoint

        warnings = export_checkpoint(bundle, output, "vllm" if to == "vllm" else "optimum")
    for warning in warnings:
        click.echo(f"note: {warning}", err=True)
    click.echo(f"note: No Neuron device has run this export. {NEXT[to]}", err=True)
    click.echo(str(output))
