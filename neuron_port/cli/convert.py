"""`neuron-port convert` and `neuron-port plan`: a model's options, one call into the pipeline, one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from neuron_port.cli.model_options import executor_options, language_model_options


def model_options(function: Any) -> Any:
    """The options that decide what is converted, shared by `convert` and `plan`."""
    options = [
        click.argument("model"),
        click.option("--target", help="Chip: inf2, trn1 or trn2.  [default: the preset's, or trn2]"),
        click.option("--dtype", help="What ships: bfloat16 or float32.  [default: the preset's, or bfloat16]"),
        click.option("--buckets", help="Prompt lengths, comma-separated; one graph each.  [default: 128]"),
        click.option("--cache-length", type=int, help="Key/value slots.  [default: twice the largest bucket]"),
        click.option("--batch", type=int, help="Sequences that decode together.  [default: 1]"),
        click.option("--tensor-parallel", "--tp", type=int, metavar="N",
                     help="Ranks, a core each.  [default: 1, or the preset's if one core is too small]"),
        click.option("--weight-format",
                     help="Weights of linear layers in one byte: int8 or fp8.  [default: as --dtype]"),
        click.option("--revision", help="Branch, tag or commit of a hub model."),
        click.option("--random-weights", is_flag=True, help="Convert from the configuration alone."),
        click.option("--compiler", "compiler_layers", multiple=True, metavar="RECIPE",
                     help="Leave layers of this recipe to the compiler. Repeatable."),
        click.option("--recipes", "recipe_folders", multiple=True, metavar="DIR",
                     type=click.Path(exists=True, file_okay=False, path_type=Path),
                     help="A folder with more recipes. Repeatable."),
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
        click.option("--quiet", is_flag=True, help="No progress."),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def parse_buckets(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(
            f"`{text}` is not a list of numbers such as 64,256", param_hint="--buckets"
        ) from None


@click.command()
@model_options
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="The bundle.  [default: bundles/<model>-...]"
)
@click.option("--weights", type=click.Choice(["copy", "link", "reference"]), default="copy", show_default=True,
              help="How the bundle holds the checkpoint's weights.")  # fmt: skip
@click.option(
    "--prompt", "prompts", multiple=True, help="A text for the proof. Repeatable.  [default: the preset's]"
)
@click.option(
    "--new-tokens", type=int, default=32, show_default=True, help="Tokens generated for each prompt."
)
@click.option("--proof", type=click.Choice(["auto", "full", "kernels"]), default="auto", show_default=True,
              help="Run the whole model (full), or its kernels and graphs alone; auto decides by size.")  # fmt: skip
@click.option("--drafts-folder", type=click.Path(file_okay=False, path_type=Path), default=Path("drafts"),
              show_default=True, metavar="DIR", help="With --llm: where accepted kernels go.")  # fmt: skip
@language_model_options
@executor_options
def convert(as_json: bool, quiet: bool, buckets: str | None, drafts_folder: Path, **options: Any) -> None:
    """Convert MODEL (a preset, a hub id, a folder or a .gguf file) into a verified Neuron bundle.

    With --llm, a language model drafts kernels for the layers that no recipe serves.
    """
    from neuron_port.pipeline.convert import convert as run
    from neuron_port.pipeline.options import complete_options

    opened = {name: options.pop(name) for name in _DRAFTING_OPTIONS}
    dry_run = options.pop("dry_run")
    completed = complete_options(buckets=parse_buckets(buckets), **options)
    if opened["llm"] is None:
        if dry_run:
            raise click.UsageError("--dry-run says what drafting would cost: it goes with --llm")
        with live_view(as_json, quiet) as view:
            conversion = run(completed, view)
    else:
        conversion = _convert_with_drafts(completed, opened, drafts_folder, dry_run, as_json, quiet)
    if conversion is not None:
        _show(conversion, as_json)


_DRAFTING_OPTIONS = (
    "llm", "llm_base_url", "llm_price", "llm_concurrency", "budget_usd", "budget_tokens", "budget_calls",
    "budget_seconds", "replay", "executor", "workers",
)  # fmt: skip


def _convert_with_drafts(
    completed: Any, opened: dict[str, Any], drafts_folder: Path, dry_run: bool, as_json: bool, quiet: bool
) -> Any:
    """The conversion with drafted kernels; None after a dry run."""
    from neuron_port.cli.draft_model import print_dry_run
    from neuron_port.cli.opening import open_workshop
    from neuron_port.drafting.drafts import Shelf
    from neuron_port.drafting.options import DraftOptions
    from neuron_port.pipeline.convert import convert as run
    from neuron_port.pipeline.convert import planned
    from neuron_port.pipeline.drafting import Drafting

    with open_workshop(silent=as_json or quiet, **opened) as workshop, live_view(as_json, quiet) as view:
        drafting = Drafting(
            workshop=workshop,
            options=DraftOptions(target=completed.target),
            shelf=Shelf(folder=drafts_folder),
        )
        if dry_run:
            work, plan = planned(completed, view)
            print_dry_run(work, plan, drafting)
            return None
        return run(completed, view, drafting=drafting)


@click.command()
@model_options
def plan(as_json: bool, quiet: bool, buckets: str | None, **options: Any) -> None:
    """Show what MODEL is made of and which kernel serves each layer, without converting it."""
    from rich.console import Console

    from neuron_port.pipeline.convert import plan_only
    from neuron_port.pipeline.options import complete_options
    from neuron_port.report import coverage_text, json_summary, plan_table

    completed = complete_options(buckets=parse_buckets(buckets), new_tokens=2, **options)
    with live_view(as_json, quiet) as view:
        conversion = plan_only(completed, view)
    if as_json:
        click.echo(json.dumps(json_summary(**vars(conversion)), indent=2))
    else:
        Console().print(plan_table(conversion.graphs, conversion.plan))
        Console().print(coverage_text(conversion.graphs, conversion.plan))


def live_view(as_json: bool, quiet: bool) -> Any:
    from rich.console import Console

    from neuron_port.report import LiveView

    return LiveView(Console(stderr=True, quiet=quiet), enabled=not (as_json or quiet))


def _show(conversion: Any, as_json: bool) -> None:
    from rich.console import Console

    from neuron_port.report import json_summary, summary

    if as_json:
        click.echo(json.dumps(json_summary(**vars(conversion)), indent=2))
    else:
        Console().print(summary(**vars(conversion)))
