"""`recipes new`: writes a folder that is a recipe already, small but real, to be edited into the one that is wanted."""

from __future__ import annotations

import difflib
import keyword
import re
from collections.abc import Iterable
from pathlib import Path

from neuron_port.errors import RecipeError, UsageError

SKELETON = Path(__file__).parent / "skeleton"
SKELETON_NAME, SKELETON_CLASS = "my_recipe", "MyRecipe"
# The name is that of the folder, of the kernel's function, of the reference and of the torch operator.
NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
LONGEST_NAME = 48
RESERVED = {
    "nki",
    "nl",
    "nisa",
    "math",
    "torch",
    "triton",
    "kernel",
    "recipe",
    "reference",
    "source",
    "example",
    "x",
}


def create(name: str, into: Path, existing: Iterable[str]) -> Path:
    """Write the folder `into`/`name` and return it.

    Args:
        existing: names of all recipes that there are.

    Raises:
        UsageError: the name is no name for a recipe.
        RecipeError: it exists.
    """
    check_name(name)
    folder = into / name
    if name in set(existing) or folder.exists():
        raise RecipeError(
            f"Recipe `{name}` exists already", hint="Choose another name, or edit that recipe's folder."
        )
    folder.mkdir(parents=True)
    for file in sorted(SKELETON.iterdir()):
        if file.is_file():
            (folder / file.name).write_text(skeleton_text(file.name, name), encoding="utf-8")
    return folder


def skeleton_text(file: str, name: str) -> str:
    """What `create` writes to a file of the recipe `name`."""
    text = (SKELETON / file).read_text(encoding="utf-8").replace(SKELETON_NAME, name)
    return text.replace(SKELETON_CLASS, class_name(name))


def check_name(name: str) -> None:
    """Raise UsageError unless `name` can be a folder, a Python function and a torch operator."""
    if NAME.fullmatch(name) is None:
        near = re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()).strip("_")
        cure = f"Such as `{near}`." if NAME.fullmatch(near) else "Such as `layer_scale`."
        raise UsageError(f"A recipe's name is lower-case words joined by `_`: `{name}`", hint=cure)
    if keyword.iskeyword(name) or name in RESERVED:
        raise UsageError(f"`{name}` means something else in a kernel", hint=f"Such as `{name}_layer`.")
    if len(name) > LONGEST_NAME:
        raise UsageError(f"The name has {len(name)} letters, at most {LONGEST_NAME} are read: `{name}`")


def class_name(name: str) -> str:
    """layer_scale -> LayerScale."""
    return "".join(word.capitalize() for word in name.split("_"))


def near_names(name: str, existing: Iterable[str]) -> list[str]:
    """Recipes whose names are close: the new one may be one of them already."""
    return difflib.get_close_matches(name, list(existing), n=3, cutoff=0.6)
