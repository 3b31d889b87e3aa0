"""Recipes are found by their folders, and a broken one stops the run by name."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from neuron_port.errors import RecipeError
from neuron_port.registry import ENTRY_POINTS, Registry, data_folder, offered_folders, recipe_folders


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
    assert list(Registry(data_folder("recipes"))) == shipped


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


# Recipes of other people


@pytest.fixture
def offer(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Installs a package that offers recipes; returns the folder that its recipes are in."""

    def install(value: str = "their_recipes", name: str = "their_norm", code: str = "") -> Path:
        site = tmp_path / "site"
        recipes = site / "their_recipes"
        shutil.copytree(folder / "rms_norm", recipes / name)
        for file in (recipes / name).glob("*.py"):
            file.write_text(file.read_text().replace("rms_norm", name))
        (recipes / "__init__.py").write_text(code)
        information = site / "their_package-1.2.dist-info"
        information.mkdir()
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.2\n")
        (information / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\ntheirs = {value}\n")
        monkeypatch.syspath_prepend(str(site))
        monkeypatch.delitem(sys.modules, "their_recipes", raising=False)
        return recipes

    return install


def test_installed_packages_offer_recipes(offer: Callable[..., Path]) -> None:
    """A package that names its folder by an entry point adds its recipes to ours, and they can be used."""
    place = offer()
    assert offered_folders()[place] == "their-package 1.2"
    assert recipe_folders(place).count(place) == 1
    registry = Registry()
    assert registry["their_norm"].folder == place / "their_norm"
    assert callable(registry["their_norm"].reference)
    assert set(Registry(data_folder("recipes"))) == set(registry) - {"their_norm"}


def test_an_offered_name_that_we_have_is_refused(offer: Callable[..., Path]) -> None:
    """A package cannot replace one of our recipes: both folders are named."""
    place = offer(name="linear")
    with pytest.raises(RecipeError, match="`linear` exists twice") as error:
        Registry()
    assert str(place / "linear") in error.value.message


def test_a_broken_recipe_of_a_package_stops_with_its_line(offer: Callable[..., Path]) -> None:
    """A recipe that an installed package breaks is named with its own file and line."""
    place = offer()
    (place / "their_norm" / "recipe.py").write_text("import math\nmath.nothing\n")
    with pytest.raises(RecipeError, match=r"their_norm/recipe\.py:2: AttributeError"):
        Registry()


@pytest.mark.parametrize(
    ("value", "code", "words"),
    [
        ("no_such_package", "", "names no package with a folder"),
        ("math", "", "names no package with a folder"),
        (
            "their_recipes.inner.recipes",
            "raise ValueError('broken')",
            "cannot be imported: ValueError: broken",
        ),
    ],
)
def test_a_bad_entry_point_is_named(offer: Callable[..., Path], value: str, code: str, words: str) -> None:
    """An entry point that leads nowhere is an error with the package's name, never skipped."""
    offer(value, code=code)
    with pytest.raises(RecipeError) as error:
        Registry()
    assert words in error.value.message
    assert f"`theirs = {value}` of their-package 1.2" in error.value.message
