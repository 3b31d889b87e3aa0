"""Verdicts on honest kernels and on kernels that are broken or cheat by one line."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from neuron_port.grading.grader import Grader
from neuron_port.grading.oracle import DegenerateTaskError
from neuron_port.grading.recipe_task import task_from_recipe
from neuron_port.grading.replay import replay_verdict, same_verdict
from neuron_port.grading.verdict import STAGES
from neuron_port.registry import Registry
from neuron_port.sandbox.job import SandboxJob, SandboxOutcome
from neuron_port.sandbox.run import run_job
from neuron_port.task import Invariant
from tests.grading.subjects import RMS_NORM, RMS_NORM_KERNEL, SOFTMAX, SOFTMAX_KERNEL, edited, make_task

RECIPES = Registry()
# One of each kind; `make test-long` grades all of them. `recipes check` and tests/recipes run every case of every kernel.
SAMPLE = (
    "rms_norm",
    "softmax",
    "matmul",
    "attention",
    "rope_table",
    "conv1d",
    "linear_int8",
    "moe_router",
    "ssd",
    "top_k",
)


@pytest.fixture(scope="module")
def softmax() -> Grader:
    return Grader(SOFTMAX, hidden_seed=1)


@pytest.fixture(scope="module")
def rms_norm() -> Grader:
    return Grader(RMS_NORM, hidden_seed=1)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in SAMPLE else [pytest.mark.long]) for name in RECIPES]
)
def test_recipes_pass(name):
    """A recipe's kernel is right on all public and hidden cases in float32 and bfloat16, and its latency is predicted."""
    found = RECIPES[name]
    task = task_from_recipe(found)
    verdict = Grader(task, hidden_seed=2, target="trn2").grade(found.kernel.source)
    assert verdict.passed, (verdict.message, verdict.evidence)
    assert verdict.stage == "hidden"
    assert verdict.public_fraction == 1.0
    assert {case.dtype for case in verdict.cases} == {"float32", "bfloat16"}
    assert len([case for case in verdict.cases if case.kind == "hidden"]) >= 20
    assert verdict.latency_ns is not None
    assert verdict.latency_ns > 0


def test_honest_kernels_are_admitted(softmax, rms_norm):
    """A clean run on new hidden cases, eleven calls in one process, and one more process agree."""
    for grader, source in ((softmax, SOFTMAX_KERNEL), (rms_norm, RMS_NORM_KERNEL)):
        verdict = grader.admit(source, seed=99)
        assert verdict.passed, (verdict.message, verdict.evidence)
        assert verdict.stage == "admitted"
        assert verdict.hidden_seed == 99
        assert len([case for case in verdict.cases if case.kind == "repeat"]) == 11
        assert verdict.isolation


BROKEN = [
    pytest.param([("nisa.reciprocal(dst=total, data=total)", "nisa.tensor_copy(dst=total, src=total)")],
                 "wrong values", "ran", "every row is right up to a factor of its own", id="no reciprocal"),
    pytest.param([("data=powers, op0", "data=x_sbuf, op0")], "wrong values", "ran", "of all elements are wrong",
                 id="wrong tile"),
    pytest.param([("dst=out[first:last, :], src=x_sbuf", "dst=out[first:last, :], src=powers")],
                 "wrong values", "ran", "factor of its own", id="not divided"),
    pytest.param([("buffer=nl.shared_hbm", "buffer=nl.sbuf")], "lint", "parsed", "", id="output in SBUF"),
    pytest.param([("(last - first, columns), dtype=x.dtype", "(rows, columns), dtype=x.dtype"),
                  ("dst=x_sbuf, src=x[first:last, :]", "dst=x_sbuf, src=x")],
                 "ConstraintError", "ran", "exactly the cases with R above", id="too many partitions"),
    pytest.param([("range(0, rows, P)", "range(0, rows - P + 1, P)")], "OutputError", "ran", "", id="no tail"),
    pytest.param([("dst=powers, op=nl.exp", "dst=powers, op=nl.square")], "wrong values", "ran", "", id="square for exp"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "error_class", "stage", "words"), BROKEN)
def test_one_wrong_line_gives_its_class_and_evidence(softmax, changes, error_class, stage, words):
    """The class says what kind of wrong, the evidence where and probably why; errors name the kernel's line."""
    source = edited(SOFTMAX_KERNEL, *changes)
    verdict = softmax.grade(source)
    assert not verdict.passed
    assert verdict.error_class.startswith(error_class), (verdict.error_class, verdict.message)
    assert verdict.stage == stage
    assert any(words in sentence for sentence in verdict.evidence) or not words, verdict.evidence
    assert verdict.hidden_seed is None
    if verdict.error_class in ("ConstraintError", "OutputError"):
        assert verdict.line is not None
        assert verdict.line <= len(source.splitlines())
        assert verdict.hint


def test_a_softmax_without_its_maximum_is_caught_by_large_values(softmax):
    """Public cases of small values pass; the hidden ones overflow, and the evidence names kinds and no number."""
    source = edited(SOFTMAX_KERNEL, ("bias=shift, ", "bias=None, "))
    verdict = softmax.grade(source)
    assert not verdict.passed
    assert verdict.stage == "public"
    assert verdict.error_class == "non-finite"
    assert verdict.guard == "hidden cases"
    assert "hidden: outliers (non-finite)" in verdict.evidence


def test_a_kernel_for_public_sizes_only_is_caught(softmax):
    """Sizes that were not shown meet an assertion, and are not told."""
    source = edited(
        SOFTMAX_KERNEL, ("    out = nl.nd", "    assert columns == 64 or columns == 77\n    out = nl.nd")
    )
    assert softmax.grade(source, through="public").passed
    verdict = softmax.grade(source)
    assert (verdict.stage, verdict.guard) == ("public", "hidden cases")
    hidden = [case for case in verdict.cases if case.kind == "hidden"]
    assert not any(case.passed for case in hidden)
    assert all(case.shapes == () and case.seed is None for case in hidden)
    told = " ".join((verdict.message, verdict.hint, *verdict.evidence, *(case.detail for case in hidden)))
    sizes = {
        str(size)
        for truth in softmax._hidden_truths(1).truths
        for size in truth.case.sizes.values()
        if size > 31
    }
    assert not any(f" {size}" in told for size in sizes - {"128"})


def test_an_ignored_attribute_is_caught(rms_norm):
    """An epsilon that is written into the kernel is right for the public cases alone."""
    verdict = rms_norm.grade(edited(RMS_NORM_KERNEL, ("value=eps", "value=1e-5")))
    assert (verdict.passed, verdict.stage, verdict.guard) == (False, "public", "hidden cases")


def test_an_epsilon_that_is_left_out_is_a_wrong_factor_of_rows(rms_norm):
    """In float32 even an epsilon of 1e-5 beside values of one shows, as a factor that each row has of its own."""
    verdict = rms_norm.grade(edited(RMS_NORM_KERNEL, ("value=eps", "value=0.0")))
    assert verdict.stage == "ran"
    assert any("every row is right up to a factor of its own" in sentence for sentence in verdict.evidence)


def test_a_gain_that_is_left_out_is_named(rms_norm):
    """The input's name stands in the evidence."""
    applied = "nisa.tensor_tensor(dst=x_sbuf, data1=squares, data2=gamma_sbuf[0:size, :], op=nl.multiply)"
    source = edited(RMS_NORM_KERNEL, (applied, "nisa.tensor_copy(dst=x_sbuf, src=squares)"))
    evidence = rms_norm.grade(source).evidence
    assert any("multiplying the output by the input `gamma`" in sentence for sentence in evidence), evidence


def test_a_trivial_answer_is_named():
    """Zeros are refused as what they are."""
    source = edited(SOFTMAX_KERNEL, ("operand0=total)", "operand0=0.0)"))
    verdict = Grader(SOFTMAX, hidden_seed=1).grade(source)
    assert (verdict.error_class, verdict.guard) == ("trivial answer", "trivial answer")


def test_bfloat16_products_in_a_float32_contract_are_refused():
    """A sum over columns by a bfloat16 product with ones is fast, and exact for no input."""

    def doubled(x):
        return x + x

    kernel = """import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def doubled(x):
    rows, columns = x.shape
    out = nl.ndarray((rows, columns), dtype=x.dtype, buffer=nl.shared_hbm)
    ones = nl.ndarray((1, 128), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=ones, value=1.0)
    for row in range(rows):
        x_sbuf = nl.ndarray((1, columns), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=x_sbuf, src=x[row : row + 1, :])
        total = nl.ndarray((1, columns), dtype=nl.float32, buffer=nl.psum)
        nisa.nc_matmul(dst=total, stationary=ones[:, 0:1], moving=x_sbuf, accumulate=False)
        nisa.nc_matmul(dst=total, stationary=ones[:, 0:1], moving=x_sbuf, accumulate=True)
        nisa.tensor_copy(dst=x_sbuf, src=total)
        nisa.dma_copy(dst=out[row : row + 1, :], src=x_sbuf)
    return out
"""
    task = make_task(doubled, dtypes=("float32",), name="doubled", cases=SOFTMAX.cases[:1])
    grader = Grader(task, hidden_seed=0)
    honest = grader.grade(kernel, through="public")
    assert honest.passed, honest.message
    extra = """        low = nl.ndarray((1, columns), dtype=nl.bfloat16, buffer=nl.sbuf)
        nisa.tensor_copy(dst=low, src=x_sbuf)
        waste = nl.ndarray((1, columns), dtype=nl.float32, buffer=nl.psum)
        low_ones = nl.ndarray((1, 1), dtype=nl.bfloat16, buffer=nl.sbuf)
        nisa.memset(dst=low_ones, value=1.0)
        nisa.nc_matmul(dst=waste, stationary=low_ones, moving=low, accumulate=False)
"""
    verdict = grader.grade(edited(kernel, ("        total = nl", extra + "        total = nl")))
    assert (verdict.error_class, verdict.guard) == ("precision", "precision"), verdict.message
    assert "bfloat16" in verdict.message


def test_numbers_copied_from_the_cases_are_refused(softmax):
    """A literal that is a value of a public answer is no coincidence."""
    answer = float(softmax.oracle.truths[2].baselines[0][3, 5])
    verdict = softmax.grade(edited(SOFTMAX_KERNEL, ("P = 128\n", f"P = 128\nANSWER = {answer!r}\n")))
    assert (verdict.error_class, verdict.guard) == ("literals", "literals")
    assert verdict.line == 6
    assert softmax.grade(
        edited(SOFTMAX_KERNEL, ("P = 128\n", "P = 128\nLOG2E = 1.4426950408889634\n"))
    ).passed


class Tampering:
    """An executor whose outcomes are changed on the way: what a kernel could do if the sandbox let it."""

    def __init__(self, change: Callable[[int, SandboxOutcome], SandboxOutcome]) -> None:
        self.change = change
        self.jobs = 0

    def submit(self, job: SandboxJob) -> Future[SandboxOutcome]:
        done: Future[SandboxOutcome] = Future()
        done.set_result(self.change(self.jobs, run_job(job)))
        self.jobs += 1
        return done

    def close(self) -> None:
        """Nothing is kept."""


def with_call(outcome: SandboxOutcome, place: int, **changes: Any) -> SandboxOutcome:
    calls = list(outcome.calls)
    calls[place] = replace(calls[place], **changes)
    return replace(outcome, calls=tuple(calls))


def nudged(outcome: SandboxOutcome, place: int) -> SandboxOutcome:
    """One bit of one output of a call is another."""
    output = outcome.calls[place].outputs[0].copy()
    output.view(np.uint8).flat[0] ^= 1
    return with_call(outcome, place, outputs=(output,))


def with_outputs(
    make: Callable[[np.ndarray], tuple[np.ndarray, ...]],
) -> Callable[[int, SandboxOutcome], SandboxOutcome]:
    return lambda job, outcome: with_call(outcome, 0, outputs=make(outcome.calls[0].outputs[0]))


@pytest.mark.parametrize(
    ("change", "error_class", "guard"),
    [
        (lambda job, outcome: outcome, "", ""),
        (lambda job, outcome: nudged(outcome, -1) if job == 0 else outcome, "determinism", "determinism"),
        (lambda job, outcome: nudged(outcome, -1) if job == 4 else outcome, "determinism", "determinism"),
        (lambda job, outcome: with_call(outcome, 5, outputs=outcome.calls[4].outputs) if job == 3 else outcome,
         "stateful", "stateful"),
        (lambda job, outcome: replace(outcome, calls=outcome.calls[:2]), "missing outputs", "missing outputs"),
        (lambda job, outcome: replace(outcome, calls=()), "missing outputs", "missing outputs"),
        (with_outputs(lambda output: ()), "wrong number of outputs", ""),
        (with_outputs(lambda output: (output.T,)), "wrong shape", ""),
        (with_outputs(lambda output: (output.astype(np.float64),)), "wrong dtype", ""),
        (with_outputs(lambda output: (output * np.float32(np.nan),)), "non-finite", ""),
        (with_outputs(lambda output: (output * 0,)), "trivial answer", "trivial answer"),
    ],
    ids=["honest", "other bits", "other bits elsewhere", "former answer", "ended early", "nothing", "no output",
         "transposed", "float64", "NaN", "zeros"],
)  # fmt: skip
def test_outcomes_that_cannot_be_honest_are_refused_by_name(change, error_class, guard):
    """Whatever comes out of the sandbox is judged by the arrays alone, and what is missing has failed."""
    grader = Grader(SOFTMAX, hidden_seed=1, executor=Tampering(change))
    verdict = grader.admit(SOFTMAX_KERNEL, seed=1)
    assert verdict.passed == (not error_class), verdict.message
    assert (verdict.error_class, verdict.guard) == (error_class, guard)


def test_invariants_of_the_task_are_checked():
    """Rows that do not sum to what the task says are refused by the invariant's name."""
    calls: list[int] = []

    def check(inputs, attributes, outputs):
        calls.append(1)
        return "" if len(calls) <= 6 else "the sum is another"  # the reference's own six answers hold it

    task = make_task(SOFTMAX.reference, invariants=(Invariant(name="rows sum to 1", check=check),))
    verdict = Grader(task, hidden_seed=0).grade(SOFTMAX_KERNEL)
    assert verdict.error_class == "invariant"
    assert "invariant `rows sum to 1`: the sum is another" in verdict.message


def test_stages_can_be_asked_for(softmax):
    """A verdict through a stage has passed that stage, and counts all public cases."""
    for stage in ("linted", "ran", "public", "hidden"):
        verdict = softmax.grade(SOFTMAX_KERNEL, through=stage)
        assert verdict.passed
        assert verdict.stage == stage
        assert verdict.public_total == 6
    assert STAGES.index("hidden") > STAGES.index("public")


def test_a_verdict_is_had_again_from_its_seed(softmax):
    """The same source and hidden seed give the same verdict, metrics included; another seed gives other figures."""
    broken = edited(SOFTMAX_KERNEL, ("bias=shift, ", "bias=None, "))
    for source in (SOFTMAX_KERNEL, broken):
        verdict = softmax.grade(source)
        other = Grader(SOFTMAX, hidden_seed=555)
        assert same_verdict(replay_verdict(other, source, verdict), verdict)
        assert not same_verdict(other.grade(source), verdict)


def test_keys_follow_what_decides_a_verdict():
    """Equal graders share a key; target, seed and task each change it."""
    key = Grader(SOFTMAX, hidden_seed=1).oracle_key
    assert Grader(SOFTMAX, hidden_seed=1).oracle_key == key
    others = {
        Grader(SOFTMAX, hidden_seed=2).oracle_key,
        Grader(SOFTMAX, hidden_seed=1, target="inf2").oracle_key,
        Grader(RMS_NORM, hidden_seed=1).oracle_key,
    }
    assert len(others | {key}) == 4


def test_degenerate_tasks_stop_before_any_candidate():
    """The grader of a task that zeros would pass is never made."""

    def nothing(x):
        return x * 0

    with pytest.raises(DegenerateTaskError):
        Grader(make_task(nothing), hidden_seed=0)


def test_threads_grade_side_by_side(softmax, rms_norm):
    """Verdicts from several threads are those of one after the other."""
    jobs = [(softmax, SOFTMAX_KERNEL), (rms_norm, RMS_NORM_KERNEL)] * 2
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda job: job[0].grade(job[1]), jobs))
    assert all(verdict.passed for verdict in together)
    assert same_verdict(together[0], together[2])
