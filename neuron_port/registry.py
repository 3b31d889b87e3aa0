"""Finds recipes: a folder in `recipes/` is a recipe, its presence is its registration.

Recipes of other people come in two ways. A folder of them is named (`--recipes DIR`); or a package that is installed
offers one, by an entry point of the group `neuron_port.recipes` whose value is a module: the folder that the module
lies in holds the recipes.

Listing imports no torch: a recipe's reference and kernel are loaded when they are first used. A folder that cannot
be loaded stops the run with its own traceback line; it is never skipped.

A folder with a `draft.json` holds a kernel that a language model wrote (`drafting/folder.py`). It serves like a recipe
while what was verified is what is there; a stale draft is kept apart, by name and with the reason, and serves nothing.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import importlib.util
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from neuron_port.errors import RecipeError
from neuron_port.recipe import NKI_VERSION, Recipe
from neuron_port.task import VERIFIER_VERSION
from neuron_port.types import Kernel

DRAFT_FILE = "draft.json"
ENTRY_POINTS = "neuron_port.recipes"
_PACKAGE = Path(__file__).parent


def data_folder(name: str) -> Path:
    """`recipes/` or `models/`: beside the package in a checkout, inside it when installed from a wheel."""
    installed = _PACKAGE / f"_{name}"
    return installed if installed.is_dir() else _PACKAGE.parent / name


def offered_folders() -> dict[Path, str]:
    """Folders of recipes that installed packages offer, each with who offers it: "package 1.0".

    Raises:
        RecipeError: an entry point names no module, or one that has no folder.
    """
    points = sorted(importlib.metadata.entry_points(group=ENTRY_POINTS), key=lambda point: point.name)
    return {_folder_of(point): _owner_of(point) for point in points}


def recipe_folders(*named: Path) -> tuple[Path, ...]:
    """Where recipes are looked for: our own, those that installed packages offer, and `named`, each once."""
    return tuple(dict.fromkeys((data_folder("recipes"), *offered_folders(), *named)))


def _folder_of(point: importlib.metadata.EntryPoint) -> Path:
    where = f"Entry point `{point.name} = {point.value}` of {_owner_of(point)}"
    try:
        found = importlib.util.find_spec(point.value)
    except Exception as error:  # whatever the packages above the module raise when they are imported
        raise RecipeError(
            f"{where} cannot be imported: {type(error).__name__}: {error}",
            hint=f'Correct or uninstall that package; [project.entry-points."{ENTRY_POINTS}"] names a module.',
        ) from error
    places = list(found.submodule_search_locations or ()) if found else []
    if not places:
        raise RecipeError(
            f"{where} names no package with a folder",
            hint="It must name the Python package that the recipe folders lie in, such as `my_package.recipes`.",
        )
    return Path(places[0])


def _owner_of(point: importlib.metadata.EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"


@dataclass(frozen=True)
class RegisteredRecipe:
    """A recipe together with its folder: everything else of it is loaded from there."""

    recipe: Recipe
    folder: Path

    @property
    def name(self) -> str:
        return self.recipe.name

    @property
    def is_draft(self) -> bool:
        """Whether a language model wrote the kernel, and no person has adopted it: it runs in a sandbox."""
        return (self.folder / DRAFT_FILE).is_file()

    @cached_property
    def kernel(self) -> Kernel:
        """The NKI source, as it is shipped."""
        return Kernel(
            name=self.name,
            source=self._read("kernel.py"),
            entry_point=self.name,
            origin="draft" if self.is_draft else "recipe",
            nki_version=self.recipe.nki_version,
        )

    @cached_property
    def reference(self) -> Callable[..., Any]:
        """The plain torch function that says what the kernel computes."""
        module = execute_file(self.folder / "reference.py", f"neuron_port_recipes.{self.name}.reference")
        function = getattr(module, self.name, None)
        if not callable(function):
            raise RecipeError(f"Recipe `{self.name}`: reference.py has no function `{self.name}`")
        return function

    def source_text(self, name: str) -> str:
        return self._read(name)

    def _read(self, name: str) -> str:
        path = self.folder / name
        if not path.is_file():
            raise RecipeError(f"Recipe `{self.name}` has no {name}", hint=f"Add {path}")
        return path.read_text()


class Registry(Mapping[str, RegisteredRecipe]):
    """All recipes by name, in the order of their folders' names.

    Without folders: all of `recipe_folders()`. A folder in one of them that has no recipe.py is an error, unless its
    name starts with a dot or an underscore.

    `stale`: drafts that are not used, by name, each with the reason.
    """

    def __init__(self, *folders: Path) -> None:
        self._recipes: dict[str, RegisteredRecipe] = {}
        self.stale: dict[str, str] = {}
        for folder in folders or recipe_folders():
            if not folder.is_dir():
                raise RecipeError(f"No recipe folder at: `{folder}`")
            for path in sorted(folder.iterdir()):
                if path.is_dir() and not path.name.startswith((".", "_")):
                    found = load_recipe(path)
                    reason = stale_reason(found)
                    if reason is None:
                        self._add(found)
                    else:
                        self.stale[found.name] = reason

    def _add(self, found: RegisteredRecipe) -> None:
        earlier = self._recipes.get(found.name)
        if earlier is not None:
            raise RecipeError(
                f"Recipe `{found.name}` exists twice: {earlier.folder} and {found.folder}",
                hint="Rename one folder.",
            )
        self._recipes[found.name] = found

    @classmethod
    def of(cls, *recipes: RegisteredRecipe) -> Registry:
        """Only these recipes."""
        registry = cls.__new__(cls)
        registry._recipes, registry.stale = {}, {}
        for found in recipes:
            registry._add(found)
        return registry

    def __getitem__(self, name: str) -> RegisteredRecipe:
        if name in self.stale and name not in self._recipes:
            raise RecipeError(f"Draft `{name}` is not used: {self.stale[name]}", hint=STALE_CURE)
        if name not in self._recipes:
            near = difflib.get_close_matches(name, self._recipes, n=1)
            hint = f"Did you mean `{near[0]}`?" if near else f"Known: {', '.join(self._recipes)}"
            raise RecipeError(f"Unknown recipe: `{name}`", hint=hint)
        return self._recipes[name]

    def __contains__(self, name: object) -> bool:
        return name in self._recipes

    def __iter__(self) -> Iterator[str]:
        return iter(self._recipes)

    def __len__(self) -> int:
        return len(self._recipes)

    def for_operation(self, operation: str) -> list[RegisteredRecipe]:
        return [found for found in self._recipes.values() if found.recipe.operation == operation]


STALE_CURE = "Verify it again: neuron-port draft drafts it anew where it is no longer right."


def stale_reason(found: RegisteredRecipe) -> str | None:
    """Why a draft must not be used: what was verified is not what is here. None: it may be, or it is no draft.

    Raises:
        RecipeError: its draft.json cannot be read.
    """
    if not found.is_draft:
        return None
    path = found.folder / DRAFT_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        dialect, verifier = record["nki_version"], record["verifier_version"]
        verified = record["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(
            f"{path} is damaged: {type(error).__name__}: {error}", hint="Draft it again."
        ) from error
    if dialect != NKI_VERSION:
        return f"it was verified under NKI {dialect}, this is NKI {NKI_VERSION}"
    if verifier != VERIFIER_VERSION:
        return f"version {verifier} of the verifier admitted it, this is version {VERIFIER_VERSION}"
    for file, digest in verified.items():
        if hashlib.sha256(found.source_text(file).encode()).hexdigest() != digest:
            return f"its {file} is not the one that was verified"
    return None


def load_recipe(folder: Path) -> RegisteredRecipe:
    """The recipe in one folder, a stale draft too.

    Raises:
        RecipeError: it does not load; the message names file and line.
    """
    module = execute_file(folder / "recipe.py", f"neuron_port_recipes.{folder.name}.recipe")
    recipe = getattr(module, "RECIPE", None)
    if not isinstance(recipe, Recipe):
        raise RecipeError(f"{folder / 'recipe.py'} defines no `RECIPE = Recipe(...)`")
    if recipe.name != folder.name:
        raise RecipeError(f"Recipe `{recipe.name}` stands in folder `{folder.name}`", hint="They must agree.")
    return RegisteredRecipe(recipe, folder)


def execute_file(path: Path, module_name: str) -> ModuleType:
    """Run a recipe's Python file as a module of its own; an error in it becomes one line that names file and line."""
    if not path.is_file():
        raise RecipeError(f"Recipe folder `{path.parent.name}` has no {path.name}", hint=f"Add {path}")
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # inspect.getmodule and dataclasses look modules up by name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = frames[-1].lineno if frames else getattr(error, "lineno", "?")
        raise RecipeError(f"{path}:{line}: {type(error).__name__}: {error}") from error
    return module
