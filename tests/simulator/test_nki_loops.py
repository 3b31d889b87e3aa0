"""Loops and registers of nki.language: what they iterate, what the device's loops forbid."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from neuron_port.simulator import ConstraintError, UnsupportedError, load_kernel_source, run_kernel
from neuron_port.simulator.errors import HazardError, LimitError
from neuron_port.simulator.limits import Limits
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl

ROWS = np.arange(40, dtype=np.float32).reshape(10, 4)


def register_of(value):
    """A register loaded from a tile, as kernels do."""
    register = nisa.register_alloc()
    nisa.register_load(register, nl.full((1, 1), value, nl.int32))
    return register


def copying(loop):
    """A kernel whose `loop(x, out, copy)` calls copy(i) to copy row i; rows that are not copied stay zero."""

    def kernel(x):
        out = nl.zeros(x.shape, nl.float32, nl.shared_hbm)

        def copy(i):
            nisa.dma_copy(
                out.ap([[4, 1], [1, 4]], scalar_offset=i, indirect_dim=0),
                x.ap([[4, 1], [1, 4]], scalar_offset=i, indirect_dim=0),
            )

        loop(copy)
        return out

    return kernel


def expected(rows):
    result = np.zeros_like(ROWS)
    result[rows] = ROWS[rows]
    return result


@pytest.mark.parametrize(
    ("lower", "upper", "step", "rows"),
    [(0, 3, 1, [0, 1, 2]), (2, 9, 3, [2, 5, 8]), (5, 5, 1, []), (7, 2, 1, [])],
)
@pytest.mark.parametrize("kind", ["integers", "registers"])
@pytest.mark.parametrize("form", ["fori_loop", "dynamic_range"])
def test_counted_loops_run_their_body(form, kind, lower, upper, step, rows):
    """lower, lower + step, ... below upper, from integers or from registers."""

    def loop(copy):
        first, last = (lower, upper) if kind == "integers" else (register_of(lower), register_of(upper))
        if form == "fori_loop":
            nl.fori_loop(first, last, copy, step)
        else:
            for i in nl.dynamic_range(first, last, step):
                copy(i)

    run = run_kernel(copying(loop), ROWS)
    np.testing.assert_array_equal(run.outputs[0], expected(rows))
    assert len(run.trace.iterations) == len(rows)
    assert any("deprecated" in warning for warning in run.warnings) == (form == "dynamic_range")


def test_while_loop_runs_until_its_register_is_zero():
    """The body gets a copy of the register and returns the next condition; zero at the start runs nothing."""

    def loop(copy):
        left = nl.full((1, 1), 3, nl.int32)

        def body(register):
            copy(register)
            nisa.tensor_scalar(left, left, nl.subtract, 1.0)
            nisa.register_load(register, left)
            return register

        start = register_of(3)
        nl.while_loop(start, body)
        nl.while_loop(register_of(0), body)
        assert start.value == 3

    np.testing.assert_array_equal(run_kernel(copying(loop), ROWS).outputs[0], expected([1, 2, 3]))


WHILE = """
import nki.isa as nisa
import nki.language as nl

def kernel(x):
    count = nl.full((1, 1), 3, nl.int32)
    total = nl.zeros((1, 1), nl.float32)
    register = nisa.register_alloc(3)
    {keyword} register:
        nisa.tensor_scalar(total, total, nl.add, 1.0)
        nisa.tensor_scalar(count, count, nl.subtract, 1.0)
        nisa.register_load(register, count)
    out = nl.ndarray((1, 1), nl.float32, nl.shared_hbm)
    nl.store(out, total)
    return out
"""


def test_while_register_is_a_hardware_loop_and_if_register_is_refused():
    """`while register:` of earlier versions runs with a warning; any other truth of a register is unknown."""
    run = run_kernel(load_kernel_source(WHILE.format(keyword="while"), "kernel"), ROWS)
    assert run.outputs[0].tolist() == [[3.0]]
    assert any("nl.while_loop" in warning for warning in run.warnings)
    with pytest.raises(UnsupportedError, match="used as a Python value"):
        run_kernel(load_kernel_source(WHILE.format(keyword="if"), "kernel"), ROWS)


def looping(body):
    """Run `body()` inside a kernel that returns its input."""

    def kernel(x):
        out = nl.ndarray(x.shape, nl.float32, nl.shared_hbm)
        nisa.dma_copy(out, x)
        body()
        return out

    return run_kernel(kernel, ROWS, limits=Limits(instructions=200))


def nothing(_):
    pass


def in_no_reorder(body):
    def block():
        with nl.no_reorder():
            body()

    return block


def written_variable(loop):
    def block():
        for i in nl.dynamic_range(2):
            nisa.register_move(i if loop else nisa.register_alloc(), 5)

    return block


@pytest.mark.parametrize(
    ("good", "bad", "match"),
    [
        (lambda: nl.fori_loop(0, 2, nothing), lambda: nl.fori_loop(0, 2, nothing, 0), "step is 0"),
        (lambda: nl.fori_loop(0, 2, nothing), lambda: nl.fori_loop(0, 2, lambda i: i), "returns a value"),
        (lambda: nl.fori_loop(0, 2, nothing), lambda: nl.fori_loop(0, 2.5, nothing), "upper bound is 2.5"),
        (lambda: list(nl.dynamic_range(2)), lambda: list(nl.dynamic_range(2, 3, -1)), "step is -1"),
        (
            lambda: nl.while_loop(nisa.register_alloc(0), nothing),
            lambda: nl.while_loop(nisa.register_alloc(1), nothing),
            "what the body returns is None",
        ),
        (
            lambda: nl.while_loop(nisa.register_alloc(0), nothing),
            lambda: nl.while_loop(1, nothing),
            "init is 1",
        ),
        (
            in_no_reorder(lambda: list(nl.static_range(3))),
            in_no_reorder(lambda: nl.fori_loop(0, 3, nothing)),
            "inside nl.no_reorder",
        ),
        (written_variable(False), written_variable(True), "loop is written"),
    ],
)
def test_rules_of_hardware_loops(good, bad, match):
    """One loop passes, the one that differs by a word is refused by name."""
    looping(good)
    with pytest.raises(ConstraintError, match=match):
        looping(bad)


@pytest.mark.parametrize("loop", [nl.static_range, nl.affine_range, nl.sequential_range])
def test_unrolled_loops_take_compile_time_integers(loop):
    """Python integers unroll; a register has no value when the kernel is traced."""
    looping(lambda: [nl.zeros((1, 1), nl.float32) for _ in loop(1, 7, 3)])
    with pytest.raises(UnsupportedError, match="exist only on the device"):
        looping(lambda: list(loop(nisa.register_alloc(3))))


def test_loops_without_an_end_are_stopped():
    """A condition that never becomes zero ends at the limit of the run, even if the body does nothing."""
    with pytest.raises(LimitError, match="without an end"):
        looping(lambda: nl.while_loop(nisa.register_alloc(1), lambda register: register))


@pytest.mark.parametrize("inside", [False, True])
def test_a_tile_of_the_body_ends_with_its_iteration(inside):
    """What the body allocates exists once and is not visible after it; allocate it before the loop instead."""

    def block():
        outer = nl.zeros((1, 4), nl.float32)
        kept = SimpleNamespace(last=outer)

        def body(_):
            tile = nl.zeros((1, 4), nl.float32)
            nisa.tensor_copy(outer, tile)
            if not inside:
                kept.last = tile

        nl.fori_loop(0, 2, body)
        nisa.tensor_copy(outer, kept.last)

    if inside:
        looping(block)
    else:
        with pytest.raises(HazardError, match="not visible outside") as caught:
            looping(block)
        assert "tile" in str(caught.value)


def test_no_reorder_blocks_are_noted_in_the_trace():
    """[first, end) of the instructions inside, and order does not change results."""

    def block():
        nl.zeros((1, 4), nl.float32)
        with nl.no_reorder():
            nl.zeros((1, 4), nl.float32)
            nl.zeros((1, 4), nl.float32)

    assert looping(block).trace.ordered_blocks == [(2, 4)]


@pytest.mark.parametrize("bound", ["static", "run time"])
def test_python_values_do_not_change_in_a_hardware_loop(bound):
    """The device repeats the body that was traced once: a counter in Python, a list that grows, are refused by name."""

    def upper():
        return nisa.register_alloc(2) if bound == "run time" else 2

    def counts():
        turns = 0
        for _ in nl.dynamic_range(upper()):
            turns = turns + 1

    def grows():
        turns = []
        nl.fori_loop(0, upper(), lambda register: turns.append(register))

    def decides():
        register, turns = nisa.register_alloc(2), 0
        minus_one = nisa.register_alloc(-1)
        while register:
            turns += 1
            tile = nl.zeros((1, 1), nl.int32)
            nisa.register_store(tile, minus_one)
            nisa.register_load(register, tile)

    def constant():
        width, tiles = 4, (1, 2)
        for _ in nl.dynamic_range(upper()):
            rows = width * tiles[0]
            nl.zeros((1, rows), nl.float32)

    for block in (counts, grows, decides):
        with pytest.raises(ConstraintError, match="the Python value `turns` changes in a hardware loop"):
            looping(block)
    looping(constant)
