"""What a command line means by a specification: a recipe's name, a folder of one, or FILE.py:NAME."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from neuron_port.errors import UsageError

if TYPE_CHECKING:
    from neuron_port.drafting.folder import Subject
    from neuron_port.task import KernelTask


def is_function(spec: str) -> bool:
    """Whether it names something in a Python file."""
    file, colon, name = spec.rpartition(":")
    return bool(colon) and file.endswith(".py") and name.isidentifier()


def task_of(
    spec: str,
    *,
    inputs: tuple[str, ...] = (),
    sizes: tuple[str, ...] = (),
    settings: tuple[str, ...] = (),
    sources: tuple[str, ...] = (),
    allowed_licenses: tuple[str, ...] = (),
) -> KernelTask:
    """The task that a specification describes.

    Raises:
        UsageError, RecipeError, SourceError: none, or a broken one.
    """
    if is_function(spec):
        return subject_of(spec, inputs, sizes, settings, sources, allowed_licenses).task
    if inputs or sizes or settings or sources:
        raise UsageError(
            f"`{spec}` says itself what its inputs are",
            hint="--input, --size, --set and --source go with FILE.py:NAME.",
        )
    return _recipe_task(spec)


def subject_of(
    spec: str,
    inputs: tuple[str, ...],
    sizes: tuple[str, ...],
    settings: tuple[str, ...],
    sources: tuple[str, ...],
    allowed_licenses: tuple[str, ...],
) -> Subject:
    """The function in a file, as something that a kernel can be drafted for."""
    from neuron_port.drafting.sources.loading import load_sources
    from neuron_port.drafting.subjects.function_task import function_task

    loaded = tuple(
        source for path in sources for source in load_sources(path, allow_licenses=allowed_licenses)
    )
    return function_task(spec, inputs=inputs, sizes=sizes, settings=settings, sources=loaded)


def _recipe_task(spec: str) -> KernelTask:
    from neuron_port.drafting.folder import task_from_draft
    from neuron_port.grading.recipe_task import task_from_recipe
    from neuron_port.registry import DRAFT_FILE, Registry, load_recipe

    folder = Path(spec)
    if folder.is_dir() and (folder / "recipe.py").is_file():
        found = load_recipe(folder)
        return task_from_draft(found) if (folder / DRAFT_FILE).is_file() else task_from_recipe(found)
    return task_from_recipe(Registry()[spec])
