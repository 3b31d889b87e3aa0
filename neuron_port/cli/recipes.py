"""`neuron-port recipes`: list, show, start, check, adopt and publish recipes."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from neuron_port.contributing.check import Verdict
    from neuron_port.registry import RegisteredRecipe, Registry

_FOLDERS = click.option("--recipes", "folders", multiple=True, metavar="DIR",
                        type=click.Path(exists=True, file_okay=False, path_type=Path),
                        help="A folder with more recipes. Repeatable.")  # fmt: skip
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
LABEL, WIDTH = 14, 118


@click.group()
def recipes() -> None:
    """Recipes: the layers that we know how to run, and the way to add one (docs/recipes.md)."""


@recipes.command("list")
@_FOLDERS
@_JSON
def list_recipes(folders: tuple[Path, ...], as_json: bool) -> None:
    """List every recipe with what it computes: ours, those of installed packages, and those in --recipes."""
    registry = _registry(folders)
    if as_json:
        click.echo(json.dumps([_facts(found) for found in registry.values()], indent=2))
        return
    width = max(map(len, registry), default=0) + 2
    for name, found in registry.items():
        click.echo(f"{name:<{width}}{found.recipe.summary}{_origin_note(found)}")
    for name, reason in registry.stale.items():
        click.echo(f"{name}: a draft that is not used: {reason}", err=True)


@recipes.command()
@click.argument("kind")
@_FOLDERS
@_JSON
def show(kind: str, folders: tuple[Path, ...], as_json: bool) -> None:
    """Show what the recipe KIND computes, when it matches, and its limits. KIND is a name or a recipe's folder."""
    found = _find(kind, folders)
    recipe = found.recipe
    if as_json:
        click.echo(json.dumps(_facts(found), indent=2))
        return
    sizes = [f"{name} {size.least:,} to {size.most:,}" for name, size in recipe.sizes.items()]
    _row("recipe", f"{recipe.name}{_origin_note(found)}")
    _row("computes", recipe.summary)
    _row("operator", f"{recipe.name}{recipe.schema}")
    _row("matches", f"{recipe.operation} calls that the numeric probe confirms")
    _row("dtypes", ", ".join(recipe.dtypes))
    _row("generations", ", ".join(recipe.generations))
    _row("sizes", ", ".join(sizes) or "those of its cases")
    _row("cases", ", ".join(f"{case.name} ({case.kind})" for case in recipe.cases))
    _row("licence", recipe.license)
    _row("folder", str(found.folder))
    click.echo(f"\n{recipe.documentation}")


@recipes.command()
@click.argument("kind")
@click.option("--into", type=click.Path(file_okay=False, path_type=Path), default=Path("recipes"), show_default=True,
              metavar="DIR", help="The folder of recipes that it is written to.")  # fmt: skip
@_FOLDERS
def new(kind: str, into: Path, folders: tuple[Path, ...]) -> None:
    """Write the folder of a new recipe KIND: a small one that passes `check` already, for you to edit."""
    from neuron_port.contributing.new import create, near_names
    from neuron_port.registry import data_folder

    named = (*folders, into) if into.is_dir() else folders
    existing = set(_registry(named))
    folder = create(kind, into, existing)
    click.echo(f"written     {folder}")
    for number, near in enumerate(near_names(kind, existing)):
        click.echo(
            f"{'near' if number == 0 else '':<12}{near}: is it this one?  neuron-port recipes show {near}"
        )
    own = "" if into.resolve() == data_folder("recipes").resolve() else f" --recipes {into}"
    click.echo(f"next        neuron-port recipes check {kind}{own}")


@recipes.command()
@click.argument("kind")
@_FOLDERS
@click.option(
    "--model",
    metavar="MODEL",
    help="Also try the layers of this preset, folder or hub id that the recipe takes, with drawn weights.",
)
@click.option(
    "--target",
    type=click.Choice(["inf2", "trn1", "trn2"]),
    default="trn2",
    show_default=True,
    help="Chip, for --model; all other checks cover every generation of the recipe.",
)
@_JSON
@click.option("--quiet", "-q", is_flag=True, help="No progress.")  # fmt: skip
def check(
    kind: str, folders: tuple[Path, ...], model: str | None, target: str, as_json: bool, quiet: bool
) -> None:
    """Run everything that a reviewer would ask of the recipe KIND (a name, or a recipe's folder). Ends with 1 on failure.

    Lint, imports, documents; the probe on randomised parameters; the GPU source; parity on its cases in every dtype
    and on every generation; wrong kernels that must be refused; sizes beyond its cases; values that break kernels;
    the layers of --model; and the predicted cost per target.
    """
    from neuron_port.contributing.check import check_recipe_folder

    found = _find(kind, folders)
    progress = _Progress(found.name, silent=quiet or as_json)
    verdict = check_recipe_folder(found, model=model, target=target, say=progress)
    progress.end()
    if as_json:
        click.echo(json.dumps(_verdict_facts(verdict), indent=2))
    else:
        _print_verdict(verdict)
    if not verdict.passed:
        raise click.exceptions.Exit(1)


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


@recipes.command()
@click.argument("kind")
@click.option(
    "--output",
    "-o",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where the repository is written; it must be empty or absent.",
)
@click.option("--repository", metavar="OWNER/NAME", help="Its id on the hub, for build.toml and the page.")  # fmt: skip
@_FOLDERS
def export(kind: str, output: Path, repository: str | None, folders: tuple[Path, ...]) -> None:
    """Write the recipe KIND as a Hugging Face `kernels` repository for the neuron device."""
    from neuron_port.contributing.export import export as run

    found = _find(kind, folders)
    progress = _Progress(found.name, silent=False)
    exported = run(found, output, repository, say=lambda text: progress("parity", text))
    progress.end()
    for number, file in enumerate(exported.files):
        click.echo(f"{'written' if number == 0 else '':<12}{file}")
    for number, sentence in enumerate(exported.not_run):
        click.echo(f"{'not run' if number == 0 else '':<12}{sentence}")


class _Progress:
    """One line on stderr that says which check is at what; on a terminal it is overwritten."""

    def __init__(self, name: str, *, silent: bool) -> None:
        self.name, self.silent = name, silent
        self.on_terminal = sys.stderr.isatty()
        self.check = ""

    def __call__(self, check: str, text: str) -> None:
        if self.silent:
            return
        if self.on_terminal:
            click.echo(f"\r\x1b[2K{self.name}: {check}: {text}"[:160], err=True, nl=False)
        elif check != self.check:  # a log needs no line for each trial
            click.echo(f"{self.name}: {check} ...", err=True)
        self.check = check

    def end(self) -> None:
        if self.on_terminal and not self.silent:
            click.echo("\r\x1b[2K", err=True, nl=False)


def _registry(folders: tuple[Path, ...]) -> Registry:
    from neuron_port.registry import Registry, recipe_folders

    return Registry(*recipe_folders(*(folder.resolve() for folder in folders)))


def _find(kind: str, folders: tuple[Path, ...]) -> RegisteredRecipe:
    """A recipe by its folder or by its name."""
    from neuron_port.registry import load_recipe

    if (Path(kind) / "recipe.py").is_file():
        return load_recipe(Path(kind).resolve())
    return _registry(folders)[kind]


def _origin_note(found: RegisteredRecipe) -> str:
    """Who offers a recipe that is not ours."""
    from neuron_port.registry import data_folder, offered_folders

    if found.is_draft:
        return "  (draft)"
    parent = found.folder.parent
    if parent == data_folder("recipes"):
        return ""
    return f"  ({offered_folders().get(parent, parent)})"


def _facts(found: RegisteredRecipe) -> dict[str, Any]:
    recipe = found.recipe
    return {
        "name": recipe.name,
        "summary": recipe.summary,
        "operation": recipe.operation,
        "schema": recipe.schema,
        "dtypes": list(recipe.dtypes),
        "generations": list(recipe.generations),
        "sizes": {name: [size.least, size.most, size.multiple] for name, size in recipe.sizes.items()},
        "cases": [case.name for case in recipe.cases],
        "license": recipe.license,
        "version": recipe.version,
        "folder": str(found.folder),
        "draft": found.is_draft,
    }


def _verdict_facts(verdict: Verdict) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "recipe": verdict.recipe,
        "passed": verdict.passed,
        "checks": [asdict(check) for check in verdict.checks],
        "costs": [asdict(cost) for cost in verdict.costs],
    }


def _print_verdict(verdict: Verdict) -> None:
    """One row per check, its problems below it, then the cost table."""
    from neuron_port.contributing.cost import cost_table
    from neuron_port.contributing.records import shown

    for check in verdict.checks:
        _wrapped(f"{check.name:<{LABEL}}{check.status:<9}", check.summary)
        for problem in shown(check.problems):
            _wrapped(f"{'':<{LABEL}}{'-':>8} ", problem)
    if verdict.costs:
        click.echo(f"\n{cost_table(verdict.costs)}")
    failed = [check.name for check in verdict.checks if check.status == "FAILED"]
    skipped = [check.name for check in verdict.checks if check.status == "not run"]
    ending = f"{verdict.recipe}: failed: {', '.join(failed)}" if failed else f"{verdict.recipe}: passed"
    if skipped:
        ending += f"; not run: {', '.join(skipped)}"
    click.echo(f"\n{ending}; no Neuron device has run this kernel")


def _wrapped(label: str, text: str) -> None:
    """The text beside its label, on as many lines of WIDTH as it takes."""
    lines = textwrap.wrap(text, WIDTH - len(label), break_long_words=False, break_on_hyphens=False) or [""]
    click.echo(label + f"\n{'':<{len(label)}}".join(lines))


def _row(label: str, text: str) -> None:
    click.echo(f"{label:<{LABEL}}{text}")
