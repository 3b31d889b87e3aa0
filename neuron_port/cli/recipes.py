"""`neuron-port recipes`: list recipes, and make a reviewed draft one of them."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def recipes() -> None:
    """Recipes: the layers that we know how to run."""


@recipes.command("list")
@click.option("--recipes", "folders", multiple=True, metavar="DIR",
              type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="A folder with more recipes. Repeatable.")  # fmt: skip
def list_recipes(folders: tuple[Path, ...]) -> None:
    """List every recipe with what it computes."""
    from neuron_port.registry import Registry, data_folder

    for name, found in Registry(data_folder("recipes"), *folders).items():
        origin = "" if found.kernel.origin == "recipe" else "  (draft)"
        click.echo(f"{name:<24}{found.recipe.summary}{origin}")


@recipes.command()
@click.argument("draft", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--into", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
              help="The folder of recipes.  [default: the project's own]")  # fmt: skip
def adopt(draft: Path, into: Path | None) -> None:
    """Make the recipe folder DRAFT, which a language model's kernel came in, one of the recipes.

    From then on its kernel runs outside the sandbox: adopt what you have read.
    """
    from neuron_port.drafting.folder import adopt as run
    from neuron_port.registry import data_folder

    adoption = run(draft, into or data_folder("recipes"))
    click.echo(f"adopted     {adoption.folder}")
    for number, item in enumerate(adoption.look_at):
        click.echo(f"{'review' if number == 0 else '':<12}{item}")
