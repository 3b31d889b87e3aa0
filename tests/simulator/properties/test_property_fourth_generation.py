"""Properties of NeuronCore-v4's own elementwise instructions and operators."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from property_reference import apply, float32, rounded
from property_tiles import (
    Tile,
    check,
    covers,
    few_properties,
    op,
    over,
    plain,
    properties,
    results,
    run_instruction,
    scalars_or_columns,
    seeds,
    shapes,
    tiles,
)
from test_property_activations import FLOAT_NAMES, FUNCTIONS, NARROW_RANGE, POSITIVE, evaluate

from neuron_port.simulator.nki import isa as nisa

STAGES = [
    ("multiply", "add"),
    ("multiply", "subtract"),
    ("multiply", "bypass"),
    ("add", "bypass"),
    ("subtract", "bypass"),
    ("bypass", "bypass"),
]
REDUCTIONS = {
    "add": lambda rows: rows.sum(axis=1),
    "maximum": lambda rows: rows.max(axis=1),
    "minimum": lambda rows: rows.min(axis=1),
}
SMOOTH = [name for name in FUNCTIONS if name not in (*POSITIVE, *NARROW_RANGE)]


@st.composite
def staged(draw: Any) -> Any:
    """dst, data, two immediates of which both or none are columns, and a destination of the reduction."""
    shape = draw(shapes())
    first, first_values = draw(scalars_or_columns(shape[0], "normal"))
    second, second_values = draw(scalars_or_columns(shape[0], "normal"))
    return (
        draw(results(shape, FLOAT_NAMES)),
        draw(results((shape[0], 1), "float32")),
        draw(tiles(shape, FLOAT_NAMES, flavour="normal")),
        (first, first_values),
        (second, second_values),
    )


@covers("activate2")
@given(
    staged(),
    st.sampled_from(SMOOTH),
    st.sampled_from(STAGES),
    st.sampled_from(list(REDUCTIONS)),
    st.booleans(),
    st.booleans(),
)
@properties
def test_activate2_runs_two_steps_a_function_and_a_reduction(
    case: Any, name: str, stages: tuple[str, str], reduction: str, reverse0: bool, reverse1: bool
) -> None:
    """function((data op0 imm0) op1 imm1), each step in float32 and on either side, and its row reduction."""
    dst, total, data, (imm0, column0), (imm1, column1) = case
    reverses = (reverse0 and stages[0] != "bypass", reverse1 and stages[1] != "bypass")
    x = data.logical
    for stage, column, reverse in zip(stages, (column0, column1), reverses):
        if stage != "bypass":
            x = apply(stage, x, over(column, x), reverse=reverse)
    exact, error = evaluate(name, x)
    rows, errors = exact.reshape(len(x), -1), error.reshape(len(x), -1)
    bound = errors.max(axis=1)
    if reduction == "add":
        bound = errors.sum(axis=1) + 2 * rows.shape[1] * 2.0**-23 * np.abs(rows).sum(axis=1)

    def body(d: Any, r: Any, v: Any, a: Any, b: Any) -> None:
        nisa.activate2(
            d,
            op(name),
            v,
            a,
            b,
            op(stages[0]),
            op(stages[1]),
            reverse0=reverses[0],
            reverse1=reverses[1],
            reduce_op=op(reduction),
            reduce_res=r,
            reduce_cmd=nisa.reduce_cmd.reset_reduce,
        )

    expected = [exact, REDUCTIONS[reduction](rows)]
    check(body, [dst, total], [data, imm0, imm1], expected, target="trn3", error=[error, bound])


@covers("exponential")
@given(staged(), st.sampled_from(["reset_reduce", "load_reduce", "reduce"]))
@properties
def test_exponential_subtracts_and_sums(case: Any, command: str) -> None:
    """exp(src - max_value), and the sum from zero, from reduce_init, or on top of the registers."""
    dst, total, data, (most, column), (initial, begin) = case
    exact, error = evaluate("exp", apply("subtract", data.logical, over(column, data.logical)))
    rows, errors = exact.reshape(len(exact), -1), error.reshape(len(exact), -1)
    sums = rows.sum(axis=1) * (2 if command == "reduce" else 1)
    if command == "load_reduce":
        sums = sums + begin[:, 0]
    bound = 2 * errors.sum(axis=1) + (2 * rows.shape[1] + 2) * 2.0**-22 * (
        np.abs(rows).sum(axis=1) + np.abs(begin[:, 0])
    )

    def body(d: Any, r: Any, x: Any, m: Any, i: Any) -> None:
        if command == "reduce":
            nisa.exponential(d, x, m, reduce_cmd=nisa.reduce_cmd.reset_reduce)
        start = i if command == "load_reduce" else 0.0
        nisa.exponential(d, x, m, reduce_res=r, reduce_cmd=nisa.reduce_cmd[command], reduce_init=start)

    check(body, [dst, total], [data, most, initial], [exact, sums], target="trn3", error=[error, bound])


@covers("tensor_tensor")
@given(st.data(), shapes(), st.sampled_from(["abs_max", "abs_min"]))
@few_properties
def test_abs_max_and_abs_min_return_the_signed_winner(data: Any, shape: tuple[int, ...], name: str) -> None:
    """The operand of larger (smaller) magnitude with its sign; a tie gives the second operand."""
    first = data.draw(tiles(shape, FLOAT_NAMES, flavour="halves"))
    second = data.draw(tiles(shape, FLOAT_NAMES, flavour="halves", psum=False))
    left, right = np.abs(first.logical), np.abs(second.logical)
    wins = left > right if name == "abs_max" else left < right
    expected = np.where(wins, first.logical, second.logical)
    dst = data.draw(results(shape))
    check(
        lambda d, a, b: nisa.tensor_tensor(d, a, b, op(name)), dst, [first, second], expected, target="trn3"
    )


@covers("tensor_scalar")
@given(st.data(), shapes(), st.sampled_from(["square", "relu"]), st.sampled_from(["add", "multiply"]))
@few_properties
def test_square_and_relu_start_a_tensor_scalar(
    data: Any, shape: tuple[int, ...], name: str, second: str
) -> None:
    """As op0 they take no operand, and op1 continues in float32."""
    source, dst = data.draw(tiles(shape)), data.draw(results(shape))
    operand, column = data.draw(scalars_or_columns(shape[0]))
    x = float32(source.logical)
    first = float32(x * x) if name == "square" else np.where(x > 0, x, 0.0)
    expected = apply(second, first, over(column, first))
    check(
        lambda d, v, o: nisa.tensor_scalar(d, v, op(name), None, op1=op(second), operand1=o),
        dst,
        [source, operand],
        expected,
        target="trn3",
    )


@covers("rand2")
@given(seeds, st.sampled_from(["float32", "bfloat16", "int8"]), st.booleans())
@few_properties
def test_rand2_is_uniform_between_its_bounds(seed: int, dtype: str, by_partition: bool) -> None:
    """Values lie in [min, max], spread evenly; bounds may differ by partition."""
    low = -1.0 - seed % 5
    high = low + 2.0 + 40.0 * (dtype == "int8")
    shape = (128, 256)
    bounds: list[Any] = [low, high]
    if by_partition:
        bounds = [Tile("float32", plain((128, 1)), np.full((128, 1), value)) for value in bounds]
    (whole,) = run_instruction(
        lambda d, a, b: nisa.rand2(d, a, b), [Tile(dtype, plain(shape))], bounds, target="trn3"
    )
    assert rounded(np.array(low), dtype) <= whole.min()
    assert whole.max() <= rounded(np.array(high), dtype)
    assert abs(whole.mean() - (low + high) / 2) < 0.02 * (high - low)  # 32,768 draws: over 12 deviations
    shares = np.histogram(whole, bins=4, range=(low, high))[0] / whole.size
    assert np.abs(shares - 0.25).max() < (0.05 if dtype == "int8" else 0.02)
