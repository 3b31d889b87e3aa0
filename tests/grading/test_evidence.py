"""Wrong outputs and the sentences that they give. R = rows, C = columns."""

from __future__ import annotations

import numpy as np
import pytest

from neuron_port.grading.across_cases import Tried, compare_cases, growth
from neuron_port.grading.evidence import Wrong, describe, is_trivial
from neuron_port.recipe import Case

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((300, 96))
GAIN = RANDOM.standard_normal(96)
CASE = Case(name="a", kind="ordinary", sizes={"R": 300, "C": 96}, attributes={"scale": 0.125})


def said(got, expected=X, dtype="float32", inputs=None, others=None, case=CASE):
    wrong = Wrong(
        expected=expected,
        got=got,
        noise=1e-7,
        dtype=dtype,
        case=case,
        inputs=inputs or {},
        others=others or {},
    )
    return describe(wrong)


def changed(rows=slice(None), columns=slice(None), by=1.0):
    got = X.copy()
    got[rows, columns] += by
    return got


def bfloat16(values):
    return (values.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32).astype(np.float64)


@pytest.mark.parametrize(
    ("got", "words"),
    [
        (X * 0, "zero everywhere"),
        (X * 0 + 3, "is 3 everywhere"),
        (X * np.nan, "every element is NaN"),
        (np.roll(X, 1, 0), "one row later"),
        (np.roll(X, -1, 1), "one column earlier"),
        (X * 96, "times 96, which is C: a mean or an average is a sum"),
        (X / np.sqrt(300), "1/sqrt(R): scaled once too often"),
        (X * 8, "1/`scale`: it is not applied"),
        (X * -1, "a sign"),
        (X + 0.5, "plus 0.5: a constant term"),
        (X * RANDOM.uniform(1, 2, (300, 1)), "every row is right up to a factor of its own"),
        (X * RANDOM.uniform(1, 2, (1, 96)), "every column is right up to a factor of its own"),
        (X + RANDOM.uniform(1, 2, (300, 1)), "every row is right up to an offset of its own"),
        (bfloat16(X), "every element is a bfloat16 value"),
        (X * (1 + 1e-3 * RANDOM.standard_normal(X.shape)), "has fewer bits than float32"),
        (
            changed(rows=slice(256, None)),
            "rows 256 to 299 are wrong and the others right: the last, partial tile",
        ),
        (changed(rows=slice(128, None)), "only the first 128 rows are right"),
        (changed(rows=slice(0, None, 2)), "every 2. row, from 0 on, is wrong"),
        (changed(rows=slice(5, None, 128)), "row 5 of every 128 is wrong: one of the partitions"),
        (changed(rows=slice(299, None)), "only the last row, 299 of 300, is wrong"),
        (changed(columns=slice(0, 1)), "only the first column, 0 of 96, is wrong"),
        (changed(rows=slice(10, 20)), "rows 10 to 19 of 300 are wrong"),
        (changed(rows=slice(7, 8), by=np.inf), "96 elements are NaN or infinite, in rows 7"),
        (np.where(np.triu(np.ones(X.shape), 1) > 0, X + 1, X), "only elements above the diagonal are wrong"),
    ],
)
def test_patterns_are_named(got, words):
    """Each way to be wrong gives its sentence first."""
    assert any(words in sentence for sentence in said(got)[:2]), said(got)


def test_inputs_that_are_left_out_or_echoed_are_named():
    """A missing addend, a missing gain and an echo are told apart."""
    other = RANDOM.standard_normal(X.shape)
    assert "adding the input `y`" in said(X, X + other, inputs={"y": other})[0]
    assert "multiplying the output by the input `gamma`" in said(X, X * GAIN, inputs={"gamma": GAIN})[0]
    assert "multiplied in once too often" in said(X * GAIN * GAIN, X * GAIN, inputs={"gamma": GAIN})[0]
    assert "equals the input `y`" in said(other, inputs={"y": other})[0]


def test_transposes_and_stale_answers_are_named():
    """The right values in the wrong order, and the right values of another case."""
    square = X[:96]
    assert "transposed" in said(square.T.copy(), square)[0]
    assert "the answer of the case `b`" in said(X * 2 + 1, others={"b": X * 2 + 1})[0]


def test_planes_are_named_by_axis():
    """One batch row of three is wrong."""
    expected = RANDOM.standard_normal((3, 4, 5, 6))
    got = expected.copy()
    got[1] += 1
    assert "along axis 0 (of 3) only these are wrong: 1" in said(got, expected)[0]


def test_the_worst_tile_and_elements_are_shown():
    """Coordinates of the 128 x 512 tile, then expected and got."""
    got = changed(rows=slice(200, 201), columns=slice(3, 4), by=7.0)
    sentences = said(got)
    assert any("rows 128:256, columns 0:96" in sentence for sentence in sentences)
    assert f"[200, 3] expected {X[200, 3]:.6g}, got {got[200, 3]:.6g}" in sentences[-1]


def test_a_right_output_gives_no_place():
    """Nothing is made up where nothing is wrong."""
    assert said(X.copy()) == []
    wrong = Wrong(expected=X, got=X.copy(), noise=1e-7, dtype="float32", case=CASE)
    assert is_trivial(wrong) == ""


def tried(
    passed,
    scale=1.0,
    style="normal",
    dtype="float32",
    error_class="wrong values",
    error=None,
    eps=1e-5,
    **sizes,
):
    case = Case(name="c", kind="ordinary", sizes=sizes, scale=scale, style=style, attributes={"eps": eps})
    return Tried(
        case=case, dtype=dtype, passed=passed, error_class="" if passed else error_class, error=error
    )


@pytest.mark.parametrize(
    ("cases", "words"),
    [
        (
            [tried(True, R=128), tried(False, R=130), tried(True, R=256), tried(False, R=77)],
            "R is not a multiple of 128",
        ),
        ([tried(True, R=100), tried(False, R=300), tried(True, R=77)], "with R above 100 fail (from 300 on)"),
        ([tried(True, R=100), tried(False, R=1), tried(True, R=130)], "with R below 100 fail"),
        (
            [tried(True, R=9), tried(False, scale=30.0, error_class="non-finite", R=9)],
            "no maximum was subtracted",
        ),
        ([tried(True, R=9), tried(False, scale=1e-3, R=9)], "only cases with tiny values fail: an epsilon"),
        ([tried(True, R=9), tried(False, style="constant rows", R=9)], "only cases with constant rows fail"),
        ([tried(True, R=9), tried(False, eps=1e-3, R=9)], "`eps` other than 1e-05 fail"),
        ([tried(True, R=9), tried(False, dtype="bfloat16", R=9)], "float32 is right and bfloat16 is not"),
    ],
)
def test_what_failing_cases_have_in_common_is_said(cases, words):
    """Sizes, values, attributes and dtypes that tell failing from passing cases."""
    assert any(words in sentence for sentence in compare_cases(cases)), compare_cases(cases)


def test_nothing_is_said_when_all_fail_or_all_pass():
    """A difference needs two sides."""
    assert compare_cases([tried(False, R=1), tried(False, R=2)]) == []
    assert compare_cases([tried(True, R=1), tried(True, R=2)]) == []


def test_an_error_that_grows_with_the_sum_is_named():
    """Errors as the root of the length are an accumulator of few bits; a constant error is not."""
    grows = [tried(False, error=1e-4 * length**0.7, C=length) for length in (16, 64, 256, 1024)]
    flat = [tried(False, error=1e-3, C=length) for length in (16, 64, 256, 1024)]
    assert "the error grows with C" in growth(grows, "C")
    assert growth(flat, "C") == ""
    assert growth(grows, None) == ""
