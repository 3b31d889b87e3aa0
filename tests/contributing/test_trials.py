"""Kernels that are right on their cases and wrong beyond them, and cases that could not tell."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from neuron_port.contributing.faults import check_faults
from neuron_port.contributing.sizes import largest_affordable, smallest_case, swept_cases
from neuron_port.contributing.trials import Bench, check_parity, check_stress, check_sweep
from neuron_port.registry import RegisteredRecipe
from tests.contributing.conftest import STORE, silent

Changed = Callable[..., RegisteredRecipe]
# Leaves out the last feature of rows that are one feature longer than a tile: none of the cases has 129.
ONLY_SHOWN_SIZES = (
    "kernel.py",
    STORE,
    "    if x_hbm.shape[1] == 129:\n        nisa.memset(dst=x_sbuf[:, 128:129], value=0.0)\n" + STORE,
)
# Right on everything that is drawn normally, and where all is thirty times as large.
CAPPED = (
    "kernel.py",
    STORE,
    "    nisa.tensor_scalar(dst=x_sbuf, data=x_sbuf, op0=nl.minimum, operand0=20_000.0)\n" + STORE,
)


def test_sizes_that_are_swept(changed_recipe: Changed) -> None:
    """One size at a time takes 1, a prime, 127, 128, 129 and a large value; none that a case has; within its range."""
    recipe = changed_recipe().recipe
    cases = list(swept_cases(recipe))
    base = smallest_case(recipe)
    assert base.name == "one token"
    for name in ("T", "H"):
        values = {case.sizes[name] for case in cases if case.name.startswith(f"{name} = ")}
        assert values >= {97, 127, 128, 129} - {base.sizes[name]}
        assert max(values) > 10_000 or name == "T"
        assert all(value in recipe.sizes[name] for value in values)
    assert largest_affordable(recipe, base, "H", recipe.sizes["H"]) <= 65536
    assert all(case.sizes not in [dict(known.sizes) for known in recipe.cases] for case in cases)


def test_a_right_kernel_passes(changed_recipe: Changed) -> None:
    """The new recipe's kernel is right on its cases, beyond them, and on all values; every fault is refused."""
    bench = Bench(changed_recipe())
    parity, trials = check_parity(bench, silent)
    assert parity.status == "passed"
    assert len(trials) == len(bench.recipe.cases) * 2 * 2
    for check in (
        check_faults(bench, trials, silent),
        check_sweep(bench, silent),
        check_stress(bench, silent),
    ):
        assert (check.status, check.problems) == ("passed", ()), check.name


def test_a_kernel_for_its_cases_only_is_refused(changed_recipe: Changed) -> None:
    """A kernel that is wrong at 129 features passes its own cases, and the sweep names the size."""
    bench = Bench(changed_recipe(ONLY_SHOWN_SIZES))
    assert check_parity(bench, silent)[0].status == "passed"
    sweep = check_sweep(bench, silent)
    assert sweep.status == "FAILED"
    assert {problem.split(",")[0] for problem in sweep.problems} == {"`H = 129`"}


def test_a_kernel_for_tame_values_is_refused(changed_recipe: Changed) -> None:
    """A kernel that caps what is above 20,000 passes its own cases, and the stress names the style."""
    bench = Bench(changed_recipe(CAPPED))
    assert check_parity(bench, silent)[0].status == "passed"
    stress = check_stress(bench, silent)
    assert stress.status == "FAILED"
    assert {problem.split(",")[0] for problem in stress.problems} == {"`outliers`"}


def test_a_kernel_that_is_off_by_a_little_is_refused(changed_recipe: Changed) -> None:
    """A gain that is 2 % too large fails on every ordinary case."""
    wrong = (
        "kernel.py",
        STORE,
        "    nisa.tensor_scalar(dst=x_sbuf, data=x_sbuf, op0=nl.multiply, operand0=1.02)\n" + STORE,
    )
    parity, _ = check_parity(Bench(changed_recipe(wrong)), silent)
    assert parity.status == "FAILED"
    assert any("`a prompt`, float32, gen2" in problem for problem in parity.problems)
    assert any("`a prompt`, bfloat16, gen3" in problem for problem in parity.problems)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("kernel.py", "rows = min(tokens, P)", "rows = min(token, P)"), "kernel.py line"),
        (
            ("kernel.py", "dst=x_sbuf, src=x_hbm", "dst=x_sbuf[0:1, :], src=x_hbm"),
            "the simulator refused the kernel",
        ),
    ],
)
def test_a_kernel_that_does_not_run_is_wrong(
    changed_recipe: Changed, change: tuple[str, str, str], words: str
) -> None:
    """A Python error in the kernel, or what the simulator refuses, fails the case in words that say where."""
    parity, _ = check_parity(Bench(changed_recipe(change)), silent)
    assert parity.status == "FAILED"
    assert words in " ".join(parity.problems)


def test_cases_that_cannot_tell_are_refused(changed_recipe: Changed) -> None:
    """Gains that are all one hide which gain goes where: the recipe's inputs are refused, not its kernel."""
    constant = ("recipe.py", 'draw.normal((sizes["H"],))', 'draw.normal((sizes["H"],)) * 0 + 1')
    bench = Bench(changed_recipe(constant))
    parity, trials = check_parity(bench, silent)
    assert parity.status == "passed"
    faults = check_faults(bench, trials, silent)
    assert [problem.partition(":")[0] for problem in faults.problems] == [
        "no case tells that `gain` is moved by one element"
    ]


def test_nothing_to_tell_a_dropped_row_by_is_refused(changed_recipe: Changed) -> None:
    """A recipe whose cases all have one row cannot show that a row was dropped, and is told so."""
    found = changed_recipe()
    text = (found.folder / "recipe.py").read_text()
    for rows in ('"T": 128,', '"T": 130,', '"T": 9,', '"T": 5,'):
        text = text.replace(rows, '"T": 1,')
    (found.folder / "recipe.py").write_text(text)
    bench = Bench(changed_recipe())
    faults = check_faults(bench, check_parity(bench, silent)[1], silent)
    assert "no case tells `dropped row` from the right answer" in faults.problems
