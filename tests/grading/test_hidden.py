"""Cases that are drawn from a seed: other sizes, other values, the same for the same seed."""

from __future__ import annotations

import pytest

from neuron_port.grading.hidden import STRESS, hidden_cases, hidden_truths
from neuron_port.grading.recipe_task import task_from_recipe
from neuron_port.grading.work import reference_work
from neuron_port.registry import Registry
from tests.grading.subjects import RMS_NORM, SOFTMAX, make_task

RECIPES = Registry()


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sizes_are_legal_new_and_affordable(name, seed):
    """Every hidden size lies in its range, no public case has the same sizes, and none is much work."""
    task = task_from_recipe(RECIPES[name])
    public = [dict(case.sizes) for case in task.cases]
    most = max(reference_work(task, case.sizes, case.attributes) for case in task.cases)
    cases = list(hidden_cases(task, seed))
    assert len(cases) == 4 + len(STRESS)
    for case in cases:
        assert dict(case.sizes) not in public
        assert all(case.sizes[size] in task.sizes[size] for size in task.sizes if size in case.sizes)
        assert reference_work(task, case.sizes, case.attributes) <= max(most, 1_000_000)
    uneven, least, beyond = cases[:3]
    assert all(value % 128 for size, value in uneven.sizes.items() if size in task.sizes)
    assert any(least.sizes[size] == task.sizes[size].least for size in task.sizes if size in least.sizes)
    largest = {size: max(case.sizes.get(size, 0) for case in task.cases) for size in task.sizes}
    assert any(value > largest[size] for size, value in beyond.sizes.items() if size in largest)


def test_the_seed_decides_everything():
    """The same seed draws the same cases and values, another seed others."""
    one, again, other = (hidden_truths(RMS_NORM, seed).truths for seed in (4, 4, 5))
    assert [truth.case for truth in one] == [truth.case for truth in again]
    assert [truth.sha256 for truth in one] == [truth.sha256 for truth in again]
    assert {truth.sha256["inputs"] for truth in one}.isdisjoint(truth.sha256["inputs"] for truth in other)


def test_an_epsilon_is_varied_and_other_numbers_are_not():
    """eps is free by its name; a float that all cases share and that is not named so stays."""
    assert {case.attributes["eps"] for case in hidden_cases(RMS_NORM, 0)}.isdisjoint({1e-5})

    def power(x, exponent):
        return x.abs() ** exponent

    task = make_task(
        power, schema="(Tensor x, float exponent) -> Tensor", attributes={"exponent": 1.5}, name="power"
    )
    assert {case.attributes["exponent"] for case in hidden_cases(task, 0)} == {1.5}


def test_cases_that_the_task_does_not_survive_are_left_out():
    """exp of large values overflows in the reference itself: no candidate is tried on them, and they are named."""

    def exponential(x):
        return x.exp()

    drawn = hidden_truths(make_task(exponential, name="exponential"), 0)
    names = {truth.case.name for truth in drawn.truths}
    assert "hidden: outliers" not in names
    assert "hidden: tiny values" in names
    assert "hidden: outliers (float32)" in drawn.left_out
    assert not any("tiny values" in name for name in drawn.left_out)


def test_a_task_without_sizes_keeps_those_of_its_cases():
    """Values alone are hidden then."""
    cases = list(hidden_cases(make_task(SOFTMAX.reference, sizes={}), 0))
    assert len(cases) == len(STRESS)
    assert {tuple(case.sizes.items()) for case in cases} == {tuple(SOFTMAX.cases[0].sizes.items())}
