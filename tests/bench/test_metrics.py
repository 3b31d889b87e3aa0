"""The figures of a benchmark: estimates against counting, and what is left out."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest

from neuron_port.bench.metrics import TaskResult, pass_at, summarize


def result(**given: Any) -> TaskResult:
    """A run that ended with a kernel, and four drafts of which one was right."""
    fields: dict[str, Any] = {
        "task": "softmax", "arm": "repair", "samples": 4, "samples_passed": 1, "public_only": 0, "admitted": True,
        "candidates": 5, "repair_rounds": 1, "calls": 6, "tokens": 1000, "cost_usd": 0.01, "seconds": 2.0,
        "error_classes": Counter(), "stop_reason": "admitted",
    }  # fmt: skip
    return TaskResult(**{**fields, **given})


@pytest.mark.parametrize(("samples", "passed"), [(1, 0), (1, 1), (5, 2), (7, 0), (7, 7), (10, 3)])
def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_one(samples: int, passed: int) -> None:
    """pass@k equals counting all draws of k out of the samples, for every k."""
    drafts = [True] * passed + [False] * (samples - passed)
    for k in range(1, samples + 1):
        draws = list(itertools.combinations(drafts, k))
        assert pass_at(k, samples, passed) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize(("k", "samples", "passed"), [(5, 4, 1), (0, 4, 1), (1, 4, 5), (1, 4, -1)])
def test_an_estimate_without_enough_samples_is_refused(k: int, samples: int, passed: int) -> None:
    """pass@k of fewer than k samples, or of impossible counts, has no estimate."""
    with pytest.raises(ValueError, match=f"pass@{k} needs"):
        pass_at(k, samples, passed)


def test_pass_at_k_is_the_mean_over_tasks() -> None:
    """Each task counts once, however many of its drafts are right."""
    summary = summarize(
        "repair", [result(task="a", samples_passed=4), result(task="b", samples_passed=0)], (1, 4)
    )
    assert summary.pass_at == {1: 0.5, 4: 0.5}


def test_a_k_that_a_task_has_too_few_samples_for_is_left_out() -> None:
    """pass@10 of four drafts is not printed."""
    assert set(summarize("repair", [result()], (1, 4, 10)).pass_at) == {1, 4}


def test_hidden_failures_are_a_part_of_what_passes_the_public_cases() -> None:
    """One of three drafts that pass the public cases is refused on hidden ones."""
    summary = summarize("repair", [result(samples_passed=2, public_only=1)])
    assert summary.hidden_failures == pytest.approx(1 / 3)


def test_without_a_draft_that_passes_the_public_cases_there_is_no_hidden_rate() -> None:
    """Nothing of nothing is not 0 %."""
    assert summarize("repair", [result(samples_passed=0, public_only=0)]).hidden_failures is None


def test_medians_are_of_admitted_kernels_and_the_mean_counts_failures() -> None:
    """A run without a kernel does not move the median, and is paid for by the kernels that there are."""
    runs = [
        result(tokens=1000),
        result(task="gelu", tokens=3000),
        result(task="rope", admitted=False, tokens=8000),
    ]
    summary = summarize("repair", runs)
    assert (summary.admitted, summary.runs, summary.tasks) == (2, 3, 3)
    assert summary.median_tokens == 2000
    assert summary.tokens_per_kernel == 6000


def test_the_ninetieth_percentile_is_a_run_that_was_made() -> None:
    """Nine tenths of ten runs do not exceed the ninth."""
    summary = summarize("repair", [result(tokens=tokens) for tokens in range(10, 0, -1)])
    assert summary.ninetieth_tokens == 9


def test_dollars_are_not_summed_over_unknown_prices() -> None:
    """One run without a price, and the arm has no dollars per kernel."""
    assert summarize("repair", [result(), result(cost_usd=0.03)]).cost_per_kernel_usd == pytest.approx(0.02)
    assert summarize("repair", [result(), result(cost_usd=None)]).cost_per_kernel_usd is None


def test_an_arm_without_a_kernel_has_no_cost_of_one() -> None:
    """Failure is said by absence, not by a number."""
    summary = summarize("one-shot", [result(admitted=False)])
    assert (summary.median_tokens, summary.tokens_per_kernel, summary.median_cost_usd) == (None, None, None)


def test_error_classes_add_up() -> None:
    """The histogram of an arm is that of all its runs."""
    runs = [
        result(error_classes=Counter({"syntax": 1})),
        result(error_classes=Counter({"syntax": 2, "no code": 1})),
    ]
    assert summarize("repair", runs).error_classes == {"syntax": 3, "no code": 1}
