"""A recipe as `recipes new` writes it, with fewer cases, and one-line ways to break it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from neuron_port.contributing.new import create
from neuron_port.registry import RegisteredRecipe, load_recipe

NAME = "tiny_scale"
STORE = "    nisa.dma_copy(dst=out_hbm, src=x_sbuf)\n"  # the last line of the kernel
# One line each: large cases are the generated tests' business, and here they would cost seconds per test.
LARGE_CASES = (
    'Case(name="a long prompt", kind="large", sizes={"T": 512, "H": 4096}, attributes=FLOOR),',
    'Case(name="two blocks of features", kind="large", sizes={"T": 3, "H": 9000}, attributes=FLOOR),',
)

Change = tuple[str, str, str]  # file, what stands there, what is to stand there


@pytest.fixture
def recipe_folder(tmp_path: Path) -> Path:
    """The folder of a new recipe."""
    return shortened(create(NAME, tmp_path / "recipes", []))


@pytest.fixture
def changed_recipe(recipe_folder: Path) -> Callable[..., RegisteredRecipe]:
    """The recipe after changes to its files."""

    def make(*changes: Change) -> RegisteredRecipe:
        for change in changes:
            edit(recipe_folder, *change)
        return load_recipe(recipe_folder)

    return make


def edit(folder: Path, file: str, old: str, new: str) -> None:
    """Replace the one place in a file where `old` stands."""
    text = (folder / file).read_text()
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {file}"
    (folder / file).write_text(text.replace(old, new))


def shortened(folder: Path) -> Path:
    """The new recipe without its large cases, and without their figures."""
    for case in LARGE_CASES:
        edit(folder, "recipe.py", case, "")
    page = folder / "README.md"
    lines = page.read_text().splitlines(keepends=True)
    page.write_text("".join(line for line in lines if not line.startswith("| a long prompt: ")))
    return folder


def silent(*_: str) -> None:
    """Hears progress, says nothing."""
