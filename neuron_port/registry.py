"""Finds recipes: a folder in `recipes/` is a recipe, its presence is its registration.

Listing imports no torch: a recipe's reference and kernel are loaded when they are first used. A folder that cannot
be loaded stops the run with its own traceback line; it is never skipped.
"""

from __future__ import annotations

import difflib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from neuron_port.errors import RecipeError
from neuron_port.recipe import Recipe
from neuron_port.types import Kernel

_PACKAGE = Path(__file__).parent


def data_folder(name: str) -> Path:
    """`recipes/` or `models/`: beside the package in a checkout, inside it when installed from a wheel."""
    installed = _PACKAGE / f"_{name}"
    return installed if installed.is_dir() else _PACKAGE.parent / name


@dataclass(frozen=True)
class RegisteredRecipe:
    """A recipe together with its folder: everything else of it is loaded from there."""

    recipe: Recipe
    folder: Path

    @property
    def name(self) -> str:
        return self.recipe.name

    @cached_property
    def kernel(self) -> Kernel:
        """The NKI source, as it is shipped."""
        return Kernel(
            name=self.name,
            source=self._read("kernel.py"),
            entry_point=self.name,
            origin="recipe",
            nki_version=self.recipe.nki_version,
        )

    @cached_property
    def reference(self) -> Callable[..., Any]:
        """The plain torch function that says what the kernel computes."""
        module = _execute(self.folder / "reference.py", f"neuron_port_recipes.{self.name}.reference")
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
    """All recipes by name, in the order of their folders' names."""

    def __init__(self, *folders: Path) -> None:
        self._recipes: dict[str, RegisteredRecipe] = {}
        for folder in folders or (data_folder("recipes"),):
            if not folder.is_dir():
                raise RecipeError(f"No recipe folder at: `{folder}`")
            for path in sorted(folder.iterdir()):
                if path.is_dir() and not path.name.startswith((".", "_")):
                    self._add(_load(path))

    def _add(self, found: RegisteredRecipe) -> None:
        earlier = self._recipes.get(found.name)
        if earlier is not None:
            raise RecipeError(
                f"Recipe `{found.name}` exists twice: {earlier.folder} and {found.folder}",
                hint="Rename one folder.",
            )
        self._recipes[found.name] = found

    def __getitem__(self, name: str) -> RegisteredRecipe:
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


def _load(folder: Path) -> RegisteredRecipe:
    module = _execute(folder / "recipe.py", f"neuron_port_recipes.{folder.name}.recipe")
    recipe = getattr(module, "RECIPE", None)
    if not isinstance(recipe, Recipe):
        raise RecipeError(f"{folder / 'recipe.py'} defines no `RECIPE = Recipe(...)`")
    if recipe.name != folder.name:
        raise RecipeError(f"Recipe `{recipe.name}` stands in folder `{folder.name}`", hint="They must agree.")
    return RegisteredRecipe(recipe, folder)


def _execute(path: Path, module_name: str) -> ModuleType:
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
