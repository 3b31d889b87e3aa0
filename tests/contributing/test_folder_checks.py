"""What is seen without running a recipe: each good file passes, each one-line-bad one is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from neuron_port.contributing.folder_checks import check_documents, check_imports, check_lint, check_recipe
from neuron_port.contributing.new import create
from neuron_port.contributing.records import Check
from neuron_port.registry import RegisteredRecipe, load_recipe
from tests.contributing.conftest import edit

Checker = Callable[[RegisteredRecipe], Check]
GOOD_FOLDER = [check_lint, check_imports, check_recipe, check_documents]


@pytest.mark.parametrize("checker", GOOD_FOLDER, ids=lambda checker: checker.__name__)
def test_a_good_folder_passes(changed_recipe: Callable[..., RegisteredRecipe], checker: Checker) -> None:
    """The recipe that `new` writes has nothing to complain about."""
    check = checker(changed_recipe())
    assert (check.status, check.problems) == ("passed", ())


@pytest.mark.parametrize(
    ("checker", "change", "problem"),
    [
        (check_lint, ("kernel.py", "nisa.scalar_tensor_tensor(", "nisa.scalar_tensor_tensr("), "scalar_tensor_tensr"),
        (check_imports, ("kernel.py", "import nki\n", "import nki\nimport numpy\n"), "imports `numpy`"),
        (check_imports, ("recipe.py", "import Any\n", "import Any\nimport torch\n"), "imports `torch`"),
        (check_recipe, ("recipe.py", 'kind="tail", sizes={"T": 130', 'kind="large", sizes={"T": 130'), None),
        (check_recipe, ("recipe.py", '"T": Size(least=1,', '"T": Size(least=2,'), "T = 1 is outside"),
        (check_recipe, ("recipe.py", '{"floor": 0.0}', '{"flor": 0.0}'), "no attribute `flor`"),
        (check_recipe, ("recipe.py", 'operation="module"', 'operation="modul"'), "`modul` is none of"),
        (check_recipe, ("recipe.py", 'name="large values"', 'name="one token"'), "two cases are called `one token`"),
        (check_documents, ("README.md", "# tiny_scale\n", "# other\n"), "does not begin with"),
        (check_documents, ("source.py", "Origin: written for neuron-port. ", ""), "where it comes from"),
        (check_documents, ("source.py", "License: Apache-2.0.", ""), "no licence"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(
    changed_recipe: Callable[..., RegisteredRecipe],
    checker: Checker,
    change: tuple[str, str, str],
    problem: str | None,
) -> None:
    """One bad line fails the check that is there for it, in words that name it; a harmless change does not."""
    check = checker(changed_recipe(change))
    if problem is None:
        assert check.status == "passed"
        return
    assert check.status == "FAILED"
    assert problem in " ".join(check.problems)


def test_a_page_without_latency_is_refused(changed_recipe: Callable[..., RegisteredRecipe]) -> None:
    """A README that does not state the latency for each target says which are missing."""
    found = changed_recipe()
    page = found.folder / "README.md"
    page.write_text("\n".join(line for line in page.read_text().splitlines() if "| inf2 |" not in line))
    problems = check_documents(found).problems
    assert problems == (
        "README.md states no predicted latency for inf2: copy the figures that this check prints",
    )


def test_a_page_of_another_kernel_is_refused(tmp_path: Path) -> None:
    """Once kernel.py is edited, the page that `new` wrote says what is no longer there."""
    folder = create("shiny_scale", tmp_path, [])
    assert check_documents(load_recipe(folder)).status == "passed"
    edit(folder, "kernel.py", "P = 128  #", "P = 64 + 64  #")
    problems = check_documents(load_recipe(folder)).problems
    assert problems == ("README.md is still the one that `recipes new` wrote, of another kernel",)


def test_a_missing_file_is_named(changed_recipe: Callable[..., RegisteredRecipe]) -> None:
    """A recipe without its page or its GPU source is refused with the file's name."""
    found = changed_recipe()
    (found.folder / "source.py").unlink()
    assert check_documents(found).problems == ("Recipe `tiny_scale` has no source.py",)
