"""The gates that run nothing."""

from __future__ import annotations

import pytest

from neuron_port.grading.gates import check_source_cheaply
from neuron_port.registry import Registry
from tests.grading.subjects import HEAD, SOFTMAX_KERNEL, edited

RECIPES = Registry()
MOVES = ("kv_cache_update",)


@pytest.mark.parametrize("name", RECIPES)
def test_honest_kernels_pass(name):
    """No recipe's kernel is refused; those of MOVES only move, as their tasks do."""
    kernel = RECIPES[name].kernel
    assert check_source_cheaply(kernel.source, kernel.entry_point, moves_only=name in MOVES) is None


@pytest.mark.parametrize("name", MOVES)
def test_a_kernel_that_only_moves_is_refused_where_something_is_to_be_computed(name):
    """A kernel that computes nothing is refused for any task that asks for more."""
    kernel = RECIPES[name].kernel
    verdict = check_source_cheaply(kernel.source, kernel.entry_point)
    assert verdict is not None
    assert verdict.error_class == "no compute"
    assert verdict.guard == "no work"


REFUSED = [
    pytest.param([("return out", "return out)")], "syntax", "nothing", "", id="syntax"),
    pytest.param([("import nki\n", "import nki\nimport os\n")], "forbidden import", "nothing", "allow-list", id="import"),
    pytest.param([("nisa.reciprocal(", "nisa.recip(")], "unknown name", "nothing", "", id="unknown"),
    pytest.param([("def softmax(x)", "def other(x)")], "entry point", "nothing", "", id="entry"),
    pytest.param([("    return out\n", "")], "no store", "parsed", "no work", id="returns nothing"),
    pytest.param([("dst=out[first:last, :], src=x_sbuf", "dst=powers, src=x_sbuf")],
                 "lint E12", "parsed", "", id="stores nothing"),
    pytest.param([("src=x[first:last, :]", "src=x_sbuf")], "no load", "parsed", "no work", id="loads nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "error_class", "stage", "guard"), REFUSED)
def test_one_line_is_enough_to_be_refused(changes, error_class, stage, guard):
    """A forbidden, unknown or missing piece is named before anything runs."""
    verdict = check_source_cheaply(edited(SOFTMAX_KERNEL, *changes), "softmax")
    assert verdict is not None
    assert not verdict.passed
    assert (verdict.error_class, verdict.stage, verdict.guard) == (error_class, stage, guard)
    assert verdict.message


def test_a_lint_error_names_rule_line_and_cure():
    """What the NKI compiler refuses is refused by the lint's rule, at its line."""
    source = edited(SOFTMAX_KERNEL, ("axis=1, negate=True", "axes=1, negate=True"))
    verdict = check_source_cheaply(source, "softmax")
    assert verdict is not None
    assert verdict.error_class == "lint E10"
    assert verdict.line == 1 + next(n for n, line in enumerate(source.splitlines()) if "axes=1" in line)
    assert verdict.hint


def test_old_functions_of_the_language_count_as_load_and_store():
    """nl.load, nl.add and nl.store are a load, a compute and a store too; without the add nothing computes."""
    body = """@nki.jit
def double(x):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    tile = nl.load(x)
    nl.store(out, nl.add(tile, tile))
    return out
"""
    assert check_source_cheaply(HEAD + body, "double") is None
    verdict = check_source_cheaply(HEAD + edited(body, ("nl.add(tile, tile)", "tile")), "double")
    assert verdict is not None
    assert verdict.error_class == "no compute"
