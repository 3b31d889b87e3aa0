"""The truth, and the tasks that are refused because a wrong answer would pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neuron_port.grading.degenerate import refuse_degenerate
from neuron_port.grading.oracle import DegenerateTaskError, TaskError, freeze
from neuron_port.recipe import Case
from neuron_port.task import Invariant
from tests.grading.subjects import RMS_NORM, SOFTMAX, make_task, matrix_and_gain

TWO_INPUTS = "(Tensor x, Tensor gamma) -> Tensor"


def check(task):
    refuse_degenerate(freeze(task, task.dtypes, task.cases))


def nothing(x):
    return x * 0


def constant(x):
    return torch.ones_like(x)


def identity(x):
    return x.clone()


def mean_of_everything(x):
    return torch.zeros_like(x) + x.mean() * 0 + 3.0


def same_in_all_rows(x):
    return x[:1].expand_as(x).clone()


def not_a_number(x):
    return x * torch.nan


def ignores_gamma(x, gamma):
    return x * 2


def depends_on_nothing_drawn(x):
    return torch.arange(x.numel(), dtype=x.dtype).reshape(x.shape) + 1


def test_honest_tasks_are_accepted():
    """Softmax and RMS norm can be failed by every wrong answer."""
    check(SOFTMAX)
    check(RMS_NORM)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (make_task(nothing), "zeros would pass"),
        (make_task(constant), "ones would pass"),
        (make_task(identity), "an echo of input `x` would pass"),
        (make_task(mean_of_everything), "the mean of the answer, everywhere would pass"),
        (make_task(same_in_all_rows), "the answer, moved by one row would pass"),
        (make_task(not_a_number), "would pass"),
        (make_task(ignores_gamma, matrix_and_gain, TWO_INPUTS), "input `gamma` changes the output in no ordinary case"),
        (make_task(depends_on_nothing_drawn), "the answer to other inputs would pass"),
    ],
    ids=lambda value: value.name if hasattr(value, "name") else "",
)  # fmt: skip
def test_degenerate_tasks_are_refused_by_name(task, words):
    """A task that zeros, a constant, an echo, a repeated row or a former answer would pass is no task."""
    with pytest.raises(DegenerateTaskError, match=words):
        check(task)


def test_cases_that_are_weak_alone_may_be_strong_together():
    """A single row cannot be shuffled; another case makes up for it."""
    weak = Case(name="one element", kind="ordinary", sizes={"R": 1, "C": 2})
    check(make_task(SOFTMAX.reference, cases=(weak, *SOFTMAX.cases)))


def test_a_task_needs_an_ordinary_case():
    """Zeros are tried on ordinary cases, so there must be one."""
    with pytest.raises(TaskError, match="no case of kind `ordinary`"):
        check(make_task(SOFTMAX.reference, cases=SOFTMAX.cases[1:]))


def test_a_failing_reference_is_named_with_its_case():
    """The reference's own exception stands in the message."""

    def broken(x):
        raise RuntimeError("no such thing")

    with pytest.raises(
        TaskError, match=r"case `one tile` in torch\.float32: the reference fails: RuntimeError: no such"
    ):
        check(make_task(broken, reference_text="", name="broken"))


def test_the_reference_must_keep_its_own_invariants():
    """An invariant that the truth breaks is the task's mistake, not the candidate's."""
    wrong = Invariant(name="rows sum to 2", check=lambda inputs, attributes, outputs: "they do not")
    with pytest.raises(TaskError, match="invariant `rows sum to 2`: they do not"):
        check(make_task(SOFTMAX.reference, invariants=(wrong,)))


def test_freezing_twice_gives_the_same_key_and_another_case_another():
    """The manifest has a digest of every array, and the key follows it."""
    one, again = (freeze(SOFTMAX, SOFTMAX.dtypes, SOFTMAX.cases) for _ in range(2))
    assert one.manifest == again.manifest
    assert one.key == again.key
    assert len(one.manifest["cases"]) == 6
    assert freeze(SOFTMAX, SOFTMAX.dtypes, SOFTMAX.cases, seed=1).key != one.key


def test_inputs_are_read_only_and_watched():
    """Inputs cannot be written by accident, and are found out when they are."""
    truth = freeze(SOFTMAX, ("float32",), SOFTMAX.cases).truths[0]
    with pytest.raises(ValueError, match="read-only"):
        truth.arrays[0][0, 0] = 1.0
    assert truth.sha256["inputs"]
    assert not truth.inputs_changed()
    truth.arrays[0].flags.writeable = True
    truth.arrays[0][0, 0] += 1.0
    assert truth.inputs_changed()


def largest_place(x):
    return x.argmax(-1, keepdim=True).expand(x.shape[0], 2).contiguous()


def test_integer_outputs_are_judged_exactly():
    """The place of a maximum is right or wrong; ties of rounding are no mistake."""
    truth = freeze(make_task(largest_place), ("float32",), SOFTMAX.cases).truths[0]
    right = truth.baselines[0]
    assert right.dtype is torch.int32
    assert truth.compare(0, right).passed
    assert not truth.compare(0, right + 1).passed
    assert not truth.compare(0, right.float()).passed
    assert np.array_equal(truth.truths[0].numpy(), right.numpy())
