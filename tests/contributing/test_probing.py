"""The example's layer decides whether reference.py is what the recipe says it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from neuron_port.contributing.probing import check_probe
from neuron_port.errors import RecipeError
from neuron_port.registry import RegisteredRecipe

Changed = Callable[..., RegisteredRecipe]


def test_the_example_agrees(changed_recipe: Changed) -> None:
    """A right reference agrees at every scale, and the layer with a 2 % error is seen to be another."""
    check = check_probe(changed_recipe())
    assert check.status == "passed"
    assert check.facts["with_2_percent_error"] > 1e-2
    assert max(check.facts["differences"].values()) <= 2e-5


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("reference.py", "* gain", "* (1 + gain)"), "is not the layer"),
        (("reference.py", "x.clamp(min=floor)", "x.clamp(min=floor + 1e-3)"), "is not the layer"),
        (("recipe.py", '!= ["weight"]', '!= ["gain"]'), "`bind` does not accept"),
        (("recipe.py", 'weights["gain"], **', 'weights["gain"][:3], **'), "does not run"),
    ],
)
def test_another_layer_is_refused(
    changed_recipe: Changed, change: tuple[str, str, str], problem: str
) -> None:
    """A reference, a binding or a call that is off by one line does not pass for the layer."""
    check = check_probe(changed_recipe(change))
    assert check.status == "FAILED"
    assert problem in check.problems[0]


def test_no_example_is_no_success(changed_recipe: Changed) -> None:
    """Without example.py the check was not made, and says what makes it."""
    found = changed_recipe()
    (found.folder / "example.py").unlink()
    check = check_probe(found)
    assert check.status == "not run"
    assert "--model" in check.summary


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("example.py", "def example()", "def sample()"), "has no function `example`"),
        (("example.py", "TinyScale(64, ", "TinyScale("), "example() fails: TypeError"),
        (("example.py", "(torch.zeros(2, 5, 64),)", "torch.zeros(2, 5, 64)"), "tuple of arguments"),
        (
            ("example.py", "return TinyScale(64, -0.25)", "return TinyScale(64, -0.25).forward"),
            "must be a torch module",
        ),
        (
            ("example.py", "import torch\n", "import torch\nimport nothing_there\n"),
            "example.py:4: ModuleNotFoundError",
        ),
    ],
)
def test_a_broken_example_is_named(
    changed_recipe: Changed, change: tuple[str, str, str], sentence: str
) -> None:
    """An example that does not load or returns something else stops with its own words."""
    with pytest.raises(RecipeError) as refused:
        check_probe(changed_recipe(change))
    assert sentence in refused.value.message
