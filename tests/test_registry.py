"""Recipes are found by their folders, and a broken one stops the run by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from neuron_port.errors import RecipeError
from neuron_port.registry import Registry, data_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of recipes that holds one, a copy of rms_norm."""
    shutil.copytree(data_folder("recipes") / "rms_norm", tmp_path / "recipes" / "rms_norm")
    return tmp_path / "recipes"


def refused(*folders: Path) -> RecipeError:
    with pytest.raises(RecipeError) as raised:
        Registry(*folders)
    assert "\n" not in raised.value.message
    return raised.value


def test_presence_is_registration(folder: Path) -> None:
    """A folder is a recipe and can be used; hidden and private folders and plain files are none."""
    for name in (".git", "__pycache__"):
        (folder / name).mkdir()
    (folder / "README.md").write_text("recipes")
    registry = Registry(folder)
    assert list(registry) == ["rms_norm"]
    assert "def rms_norm" in registry["rms_norm"].kernel.source
    assert callable(registry["rms_norm"].reference)


def test_every_shipped_recipe_is_found() -> None:
    """The recipes of the package are those of its folders, in the order of their names."""
    shipped = sorted(path.parent.name for path in data_folder("recipes").glob("*/recipe.py"))
    assert list(Registry()) == shipped


def test_a_misspelt_name_gets_its_neighbour(folder: Path) -> None:
    """An unknown recipe is refused with the nearest name, or with all names when none is near."""
    registry = Registry(folder)
    with pytest.raises(RecipeError, match="Unknown recipe: `rms_nrom`") as near:
        registry["rms_nrom"]
    assert near.value.hint == "Did you mean `rms_norm`?"
    with pytest.raises(RecipeError, match="Unknown recipe: `zzz`") as far:
        registry["zzz"]
    assert far.value.hint == "Known: rms_norm"


def test_two_folders_add_up(folder: Path, tmp_path: Path) -> None:
    """Recipes of a second folder stand beside those of the first."""
    other = tmp_path / "other"
    shutil.copytree(data_folder("recipes") / "linear", other / "linear")
    assert set(Registry(folder, other)) == {"rms_norm", "linear"}


def test_the_same_name_twice_is_refused(folder: Path, tmp_path: Path) -> None:
    """A recipe of the same name in two folders is an error that names both, never an override."""
    shutil.copytree(folder, tmp_path / "other")
    error = refused(folder, tmp_path / "other")
    assert "`rms_norm` exists twice" in error.message
    assert str(folder / "rms_norm") in error.message
    assert str(tmp_path / "other" / "rms_norm") in error.message


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    """A folder of recipes that is not there is named."""
    assert str(tmp_path / "nowhere") in refused(tmp_path / "nowhere").message


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("RECIPE = Recipe(\n\n", "recipe.py:1: SyntaxError"),
        ("import math\n\nmath.nothing\n", "recipe.py:3: AttributeError"),
        ("from neuron_port.recipe import Recipe\n\n\nRECIPE = Recipe(name='rms_norm')\n", "recipe.py:4: TypeError"),
        ("RECIPES = []\n", "recipe.py defines no `RECIPE = Recipe(...)`"),
    ],
)  # fmt: skip
def test_a_broken_recipe_stops_with_file_and_line(folder: Path, text: str, sentence: str) -> None:
    """A recipe that does not load is never skipped: the error names its file, the line and what is wrong."""
    (folder / "rms_norm" / "recipe.py").write_text(text)
    error = refused(folder)
    assert sentence in error.message
    assert str(folder / "rms_norm" / "recipe.py") in error.message


def test_name_and_folder_must_agree(folder: Path) -> None:
    """A renamed folder whose recipe keeps the old name is refused with both names."""
    (folder / "rms_norm").rename(folder / "layer_norm")
    error = refused(folder)
    assert "`rms_norm`" in error.message
    assert "`layer_norm`" in error.message


@pytest.mark.parametrize("file", ["recipe.py", "kernel.py", "reference.py"])
def test_a_missing_file_is_named_with_its_place(folder: Path, file: str) -> None:
    """A recipe that lacks one of its files says which, and where it belongs."""
    (folder / "rms_norm" / file).unlink()

    def use() -> None:
        found = Registry(folder)["rms_norm"]
        assert found.kernel.source
        assert found.reference

    with pytest.raises(RecipeError) as raised:
        use()
    assert file in raised.value.message
    assert str(folder / "rms_norm" / file) in str(raised.value.hint)


def test_a_reference_without_its_function_is_named(folder: Path) -> None:
    """reference.py must define the function of the recipe's name."""
    (folder / "rms_norm" / "reference.py").write_text("def something_else(x):\n    return x\n")
    with pytest.raises(RecipeError, match=r"reference\.py has no function `rms_norm`"):
        assert Registry(folder)["rms_norm"].reference
