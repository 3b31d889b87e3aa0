"""Recipes as tasks."""

from __future__ import annotations

import pytest

from neuron_port.grading.recipe_task import task_from_recipe
from neuron_port.registry import Registry

RECIPES = Registry()


@pytest.mark.parametrize("name", RECIPES)
def test_a_task_has_everything_of_its_recipe(name):
    """Layout of every tensor and of the result, ranges of sizes that hold its own cases, source with licence."""
    task = task_from_recipe(RECIPES[name])
    assert set(task.layout) == {*task.tensor_arguments, "return"}
    assert all(task.layout[argument].startswith("[") for argument in task.tensor_arguments)
    assert "def " in task.reference_text
    assert "def inputs" in task.inputs_text
    assert task.sizes
    for case in task.cases:
        for size, value in case.sizes.items():
            assert size not in task.sizes or value in task.sizes[size], (case.name, size, value)
    (source,) = task.sources
    assert source.license == "Apache-2.0"
    assert source.origin == f"recipes/{name}/source.py"
    assert "triton" in source.text


def test_keys_are_stable_and_differ():
    """The same recipe gives the same key, each recipe another."""
    keys = [task_from_recipe(found).key for found in RECIPES.values()]
    assert keys == [task_from_recipe(found).key for found in RECIPES.values()]
    assert len(set(keys)) == len(keys)
