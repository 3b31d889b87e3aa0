"""A new recipe is right from its first second, and its name can be what it must be."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from neuron_port.contributing.check import check_recipe_folder
from neuron_port.contributing.new import create, near_names
from neuron_port.errors import RecipeError, UsageError
from neuron_port.registry import load_recipe
from tests.contributing.conftest import silent


def test_a_new_recipe_passes_everything(tmp_path: Path) -> None:
    """What `new` writes passes every check that `check` has, none left out, before anybody has edited it."""
    verdict = check_recipe_folder(load_recipe(create("shiny_scale", tmp_path, [])), say=silent)
    assert {check.name: check.problems for check in verdict.checks if check.problems} == {}
    assert {check.status for check in verdict.checks if check.name != "gpu source"} == {"passed"}
    assert verdict.passed
    assert {cost.target for cost in verdict.costs} == {"trn1", "trn2", "inf2"}


def test_the_name_is_everywhere(tmp_path: Path) -> None:
    """No file of a new recipe keeps the skeleton's name; each parses, and functions have the recipe's name."""
    folder = create("shiny_scale", tmp_path, [])
    for file in folder.iterdir():
        text = file.read_text()
        assert "my_recipe" not in text, file
        assert "MyRecipe" not in text, file
    for name in ("kernel.py", "reference.py", "source.py"):
        functions = {
            node.name
            for node in ast.parse((folder / name).read_text()).body
            if isinstance(node, ast.FunctionDef)
        }
        assert "shiny_scale" in functions, name


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("ShinyScale", "shiny_scale"), ("shiny-scale", "shiny_scale"), ("2_scale", "layer_scale"), ("", "layer_scale"),
        ("_scale", "scale"), ("../scale", "scale"), ("lambda", "lambda_layer"), ("torch", "torch_layer"),
    ],
)  # fmt: skip
def test_bad_names_are_refused(tmp_path: Path, name: str, hint: str) -> None:
    """A name that is no Python identifier in lower case, or means something else, is refused with a near one."""
    with pytest.raises(UsageError) as refused:
        create(name, tmp_path, [])
    assert f"`{hint}`" in str(refused.value.hint)
    assert not list(tmp_path.iterdir())


def test_existing_names_are_refused(tmp_path: Path) -> None:
    """A name that any recipe has, or any folder at that place, is refused, and nothing is overwritten."""
    with pytest.raises(RecipeError, match="`rms_norm` exists already"):
        create("rms_norm", tmp_path, ["linear", "rms_norm"])
    folder = create("shiny_scale", tmp_path, [])
    (folder / "kernel.py").write_text("mine")
    with pytest.raises(RecipeError, match="`shiny_scale` exists already"):
        create("shiny_scale", tmp_path, [])
    assert (folder / "kernel.py").read_text() == "mine"


def test_near_names() -> None:
    """A recipe that is nearly called so is mentioned, a far one is not."""
    assert near_names("rms_norm_gated", ["gated_rms_norm", "rms_norm", "conv2d"])[0] == "rms_norm"
    assert near_names("zebra", ["gated_rms_norm", "rms_norm"]) == []
