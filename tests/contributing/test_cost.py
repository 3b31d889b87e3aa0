"""The figures of a recipe's page are the ones that are predicted today."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from neuron_port.contributing.cost import check_cost, cost_table, shown_cases
from neuron_port.contributing.new import create
from neuron_port.registry import RegisteredRecipe, load_recipe
from tests.contributing.conftest import edit, silent


def test_the_page_of_a_new_recipe_is_up_to_date(tmp_path: Path) -> None:
    """The table that `new` writes is, row by row, the one that is predicted: one row per case and target."""
    found = load_recipe(create("shiny_scale", tmp_path, []))
    check, costs = check_cost(found, silent)
    assert (check.status, check.problems) == ("passed", ())
    assert cost_table(costs) in found.source_text("README.md")
    assert len(costs) == 3 * len(shown_cases(found))
    assert [cost.latency_ns for cost in costs if cost.target == "trn1"] == [
        cost.latency_ns for cost in costs if cost.target == "inf2"
    ]
    assert all(0 < cost.roofline_share <= 1 for cost in costs)
    assert all(cost.latency_ns > cost.device_ns for cost in costs)


def test_old_figures_are_refused(tmp_path: Path) -> None:
    """A page whose row says another latency than the prediction is named with that row."""
    folder = create("shiny_scale", tmp_path, [])
    row = next(line for line in (folder / "README.md").read_text().splitlines() if "| trn2 |" in line)
    edit(folder, "README.md", row, row.replace("22.06", "12.06"))
    check, _ = check_cost(load_recipe(folder), silent)
    assert check.status == "FAILED"
    assert len(check.problems) == 1
    assert "12.06" in check.problems[0]


def test_a_draft_is_not_run(changed_recipe: Callable[..., RegisteredRecipe]) -> None:
    """The kernel of a draft runs in the sandbox only: its cost is not predicted here, and that is said."""
    found = changed_recipe()
    (found.folder / "draft.json").write_text("{}")
    check, costs = check_cost(found, silent)
    assert (check.status, costs) == ("not run", ())
    assert "adopt" in check.summary


def test_a_kernel_that_does_not_run_has_no_cost(changed_recipe: Callable[..., RegisteredRecipe]) -> None:
    """A kernel that fails has no prediction; the check says with what it failed, and where."""
    found = changed_recipe(("kernel.py", "rows = min(tokens, P)", "rows = min(token, P)"))
    check, costs = check_cost(found, silent)
    assert (check.status, costs) == ("FAILED", ())
    assert "kernel.py line" in check.problems[0]


@pytest.mark.parametrize("row", ["| rows | 3 |", "| a: T = 1, bfloat16 | trn2 | fast |"])
def test_other_tables_are_left_alone(tmp_path: Path, row: str) -> None:
    """Only rows of the cost table's own form are compared: a page may have tables of other kinds."""
    folder = create("shiny_scale", tmp_path, [])
    (folder / "README.md").write_text((folder / "README.md").read_text() + f"\n{row}\n")
    assert check_cost(load_recipe(folder), silent)[0].status == "passed"
