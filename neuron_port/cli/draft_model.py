"""`neuron-port draft MODEL`: kernels for the layers of a model that no recipe serves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from neuron_port.drafting.drafts import Drafted, Shelf
    from neuron_port.drafting.options import DraftOptions
    from neuron_port.drafting.workshop import Workshop
    from neuron_port.pipeline.drafting import Drafting
    from neuron_port.pipeline.planning import Plan
    from neuron_port.pipeline.workbench import Workbench


def draft_model(
    model: str,
    layers: tuple[str, ...],
    workshop: Workshop,
    options: DraftOptions,
    shelf: Shelf,
    *,
    random_weights: bool,
    allowed_licenses: tuple[str, ...],
    dry_run: bool,
    silent: bool,
) -> list[Drafted] | None:
    """What became of every family of layers; None after a dry run, which prints instead."""
    from rich.console import Console

    from neuron_port.pipeline.convert import planned
    from neuron_port.pipeline.drafting import Drafting, draft_layers, layers_to_draft
    from neuron_port.pipeline.options import complete_options
    from neuron_port.report import LiveView

    convert_options = complete_options(
        model, target=options.target, random_weights=random_weights, new_tokens=2
    )
    with LiveView(Console(stderr=True, quiet=silent), enabled=not silent) as view:
        work, plan = planned(convert_options, view)
        drafting = Drafting(
            workshop=workshop,
            options=options,
            shelf=shelf,
            layers=layers or None,
            allow_licenses=allowed_licenses,
        )
        if not dry_run:
            families = layers_to_draft(work, plan, drafting)
    if dry_run:
        print_dry_run(work, plan, drafting)
        return None
    if not families:
        shelf.say(f"{model}: every layer is served by a recipe; --layer NAME drafts one all the same")
    return draft_layers(work, families, drafting)


def print_dry_run(work: Workbench, plan: Plan, drafting: Drafting) -> None:
    """Which layers would be drafted, and what that costs at worst."""
    from neuron_port.cli.draft import cost_table
    from neuron_port.pipeline.drafting import layers_to_draft

    families = layers_to_draft(work, plan, drafting)
    for family in families:
        name = family.task.task.name if family.task else "(not drafted)"
        click.echo(f"{name:<28}{len(family.layers):>4} x {family.layers[0]}  {family.reason}".rstrip())
    tasks = sum(family.task is not None for family in families)
    click.echo(cost_table(drafting.options, drafting.workshop, tasks))
