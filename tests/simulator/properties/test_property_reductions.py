"""Properties of reductions, scans and statistics: float64 formulas, with the error that float32 sums may have."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from property_reference import BITWISE, apply, as_bits, float32, from_bits
from property_tiles import (
    Tile,
    check,
    columns,
    covers,
    integer_names,
    make_values,
    narrow_integers,
    op,
    over,
    partition_counts,
    properties,
    results,
    scalars_or_columns,
    seeds,
    shapes,
    tiles,
    value_names,
)

from neuron_port.simulator.nki import isa as nisa

STEP = 2.0**-24  # half a rounding step of float32, relative
STEPS = st.sampled_from(["add", "subtract", "multiply", "maximum", "minimum"])
REDUCTIONS = st.sampled_from(["add", "multiply", "maximum", "minimum"])


def reduce_rows(name: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(exact reduction over the last axis, what any order of float32 operations may differ by)."""
    count = rows.shape[-1]
    if name == "add":
        return rows.sum(axis=-1), 2 * count * STEP * np.abs(rows).sum(axis=-1)
    if name == "multiply":
        magnitudes = np.log2(np.abs(np.where(rows == 0, 1.0, rows)))
        assume(np.abs(magnitudes).sum(axis=-1).max() < 100)  # no order overflows or underflows
        exact = rows.prod(axis=-1)
        return exact, 2 * count * STEP * np.abs(exact) + 2.0**-149
    exact = rows.max(axis=-1) if name == "maximum" else rows.min(axis=-1)
    return exact, np.zeros_like(exact)


@st.composite
def reductions(draw: Any, dtypes: Any = value_names) -> Any:
    """dst, data, the axes that go, and the data with those axes last and merged."""
    shape = draw(shapes())
    data = draw(tiles(shape, dtypes, flavour=draw(st.sampled_from(["halves", "normal"]))))
    kept = draw(st.integers(1, len(shape) - 1))
    axes = tuple(range(kept, len(shape)))
    result_shape = shape[:kept] if kept > 1 else (shape[0], 1)
    keepdims = draw(st.booleans())
    if keepdims:
        result_shape = (*shape[:kept], *[1] * len(axes))
    dst = draw(results(result_shape, dtypes if isinstance(dtypes, str) else draw(st.just(dtypes))))
    return dst, data, axes, data.logical.reshape(*shape[:kept], -1)


@covers("tensor_reduce")
@given(reductions(), REDUCTIONS, st.booleans())
@properties
def test_tensor_reduce_reduces_the_last_axes(case: Any, name: str, negate: bool) -> None:
    """Any number of trailing free dimensions, summed in float32, negated on request, rounded once."""
    dst, data, axes, rows = case
    exact, error = reduce_rows(name, float32(rows))
    sign = -1.0 if negate else 1.0
    axis: Any = axes if len(axes) > 1 else axes[0]
    check(
        lambda d, x: nisa.tensor_reduce(d, op(name), x, axis, negate=negate),
        dst,
        [data],
        sign * exact,
        error=error,
    )


@st.composite
def bit_reductions(draw: Any) -> Any:
    """Reductions of one integer dtype."""
    return draw(reductions(draw(integer_names)))


@covers("tensor_reduce")
@given(bit_reductions(), st.sampled_from(list(BITWISE)))
@properties
def test_tensor_reduce_combines_bits(case: Any, name: str) -> None:
    """Bitwise reductions combine bit patterns."""
    dst, data, axes, rows = case
    bits = as_bits(rows, dst.dtype)
    combined = bits[..., 0]
    for position in range(1, bits.shape[-1]):
        combined = BITWISE[name](combined, bits[..., position])
    check(
        lambda d, x: nisa.tensor_reduce(d, op(name), x, axes),
        dst,
        [data],
        from_bits(combined, dst.dtype),
    )


@st.composite
def reduced_scalars(draw: Any) -> Any:
    """dst, data, operand, the [P, 1] destination of the reduction, and a starting column."""
    shape = draw(shapes())
    data = draw(tiles(shape, flavour=draw(st.sampled_from(["halves", "normal"]))))
    return (
        draw(results(shape)),
        data,
        draw(scalars_or_columns(shape[0], "halves")),
        draw(results((shape[0], 1), "float32")),
        draw(scalars_or_columns(shape[0], "halves")),
    )


@covers("tensor_scalar_reduce")
@given(reduced_scalars(), STEPS, REDUCTIONS, st.sampled_from(["reset", "load", "continue"]), st.booleans())
@properties
def test_tensor_scalar_reduce_writes_both_results(
    case: Any, first: str, name: str, start: str, negate: bool
) -> None:
    """dst is the step; reduce_res its reduction from the identity, from reduce_init, or from the registers."""
    dst, data, (operand, column), total, (initial, begin) = case
    values = apply(first, data.logical, over(column, data.logical))
    rows = values.reshape(values.shape[0], -1)
    if start == "load":
        rows = np.concatenate([begin, rows], axis=1)
    elif start == "continue":
        rows = np.concatenate([rows, rows], axis=1)
    exact, error = reduce_rows(name, rows)

    def body(d: Any, r: Any, x: Any, a: Any, i: Any) -> None:
        if start == "continue":
            nisa.tensor_scalar_reduce(d, x, op(first), a, op(name))
        nisa.tensor_scalar_reduce(
            d,
            x,
            op(first),
            a,
            op(name),
            r,
            reduce_cmd=nisa.reduce_cmd[
                {"reset": "reset_reduce", "load": "load_reduce", "continue": "reduce"}[start]
            ],
            reduce_init=i if start == "load" else None,
            reduce_res_negate=negate,
        )

    sign = -1.0 if negate else 1.0
    check(body, [dst, total], [data, operand, initial], [values, sign * exact], error=[None, error])


@st.composite
def cumulatives(draw: Any) -> Any:
    """dst and src without 32-bit integers, operand and starting value."""
    shape = draw(shapes())
    dtypes = st.one_of(st.sampled_from(["float32", "bfloat16", "float16"]), narrow_integers)
    return (
        draw(results(shape, dtypes)),
        draw(tiles(shape, dtypes, flavour="halves")),
        draw(scalars_or_columns(shape[0], "halves")),
        draw(scalars_or_columns(shape[0], "halves")),
    )


@covers("tensor_scalar_cumulative")
@given(cumulatives(), STEPS, STEPS, st.booleans())
@properties
def test_tensor_scalar_cumulative_keeps_a_running_register(
    case: Any, first: str, second: str, loads: bool
) -> None:
    """dst_i = register = (src_i op0 imm0) op1 register, step by step in float32."""
    dst, src, (imm0, column), (imm1, begin) = case
    identity = {"add": 0.0, "subtract": 0.0, "multiply": 1.0, "maximum": -np.inf, "minimum": np.inf}
    register = begin[:, 0] if loads else np.full(len(column), identity[second])
    steps = apply(first, src.logical, over(column, src.logical)).reshape(len(column), -1)
    expected = np.empty_like(steps)
    for position in range(steps.shape[1]):
        register = apply(second, steps[:, position], register)
        expected[:, position] = register

    def body(d: Any, x: Any, a: Any, b: Any) -> None:
        command = nisa.reduce_cmd.load_reduce if loads else nisa.reduce_cmd.reset_reduce
        nisa.tensor_scalar_cumulative(d, x, op(first), op(second), a, b if loads else None, command)

    check(body, dst, [src, imm0, imm1], expected)


@st.composite
def scans(draw: Any) -> Any:
    """dst, two sources of which one at most is in PSUM, and the starting state."""
    shape = draw(shapes())
    first = draw(tiles(shape, flavour="halves"))
    second = draw(tiles(shape, flavour="halves", psum=False if first.layout.psum else None))
    return draw(results(shape)), first, second, draw(scalars_or_columns(shape[0], "halves"))


@covers("tensor_tensor_scan")
@given(scans(), STEPS, STEPS, st.booleans(), st.booleans())
@properties
def test_tensor_tensor_scan_carries_its_state_in_float32(
    case: Any, first: str, second: str, reverse0: bool, reverse1: bool
) -> None:
    """state = (data0_i op0 state) op1 data1_i; rounding to dst does not feed back."""
    dst, left, right, (initial, column) = case
    rows = [tile.logical.reshape(len(column), -1) for tile in (left, right)]
    state = column[:, 0]
    expected = np.empty(rows[0].shape)
    for position in range(rows[0].shape[1]):
        inner = apply(first, rows[0][:, position], state, reverse=reverse0)
        state = apply(second, inner, rows[1][:, position], reverse=reverse1)
        expected[:, position] = state

    def body(d: Any, a: Any, b: Any, start: Any) -> None:
        nisa.tensor_tensor_scan(d, a, b, start, op(first), op(second), reverse0, reverse1)

    check(body, dst, [left, right, initial], expected)


@st.composite
def partition_reductions(draw: Any, dtypes: Any = value_names) -> Any:
    """dst [1, N] and data [P, N], both in SBUF."""
    shape = draw(shapes())
    dtype = dtypes if isinstance(dtypes, str) else draw(dtypes)
    data = draw(tiles(shape, dtype, psum=False, flavour="normal"))
    return draw(results((1, *shape[1:]), dtype, psum=False)), data


@covers("tensor_partition_reduce")
@given(partition_reductions(), st.sampled_from(["add", "average", "max"]))
@properties
def test_tensor_partition_reduce_reduces_partitions(case: Any, name: str) -> None:
    """add, average and maximum over the partition dimension."""
    dst, data = case
    rows = np.moveaxis(float32(data.logical), 0, -1)
    exact, error = reduce_rows("maximum" if name == "max" else "add", rows)
    if name == "average":
        exact, error = exact / rows.shape[-1], error / rows.shape[-1] + np.abs(exact) * STEP
    check(
        lambda d, x: nisa.tensor_partition_reduce(d, op("maximum" if name == "max" else name), x),
        dst,
        [data],
        exact,
        error=error,
    )


@covers("tensor_partition_reduce")
@given(integer_names.flatmap(partition_reductions), st.sampled_from(["bitwise_or", "bitwise_and"]))
@properties
def test_tensor_partition_reduce_combines_bits(case: Any, name: str) -> None:
    """bitwise_or and bitwise_and combine the bit patterns of all partitions."""
    dst, data = case
    bits = as_bits(data.logical, dst.dtype)
    combined = bits[0]
    for row in bits[1:]:
        combined = BITWISE[name](combined, row)
    check(
        lambda d, x: nisa.tensor_partition_reduce(d, op(name), x),
        dst,
        [data],
        from_bits(combined, dst.dtype),
    )


@st.composite
def statistics(draw: Any) -> Any:
    """Data [P, N] with 2 to 512 elements per partition, and a float32 destination of six."""
    partitions = draw(partition_counts)
    count = draw(st.sampled_from([2, 3, 7, 40, 511, 512]))
    dtype = draw(st.sampled_from(["float32", "bfloat16", "int8"]))
    data = draw(tiles((partitions, count), dtype, psum=False))
    return draw(results((partitions, 6), "float32")), data


@covers("bn_stats")
@given(statistics())
@properties
def test_bn_stats_describes_even_and_odd_elements(case: Any) -> None:
    """Count, mean and variance times count, of the even elements and then of the odd ones."""
    dst, data = case
    expected, error = np.zeros((len(data.logical), 6)), np.zeros((len(data.logical), 6))
    for first in (0, 1):
        part = data.logical[:, first::2]
        mean = part.mean(axis=1)
        spread = np.abs(part).max(axis=1)
        squares = np.square(part - mean[:, None]).sum(axis=1)
        expected[:, 3 * first : 3 * first + 3] = np.stack(
            [np.full_like(mean, part.shape[1]), mean, squares], 1
        )
        error_of_mean = 4 * part.shape[1] * STEP * spread
        distances = np.abs(part - mean[:, None]).sum(axis=1)
        error[:, 3 * first + 1] = error_of_mean
        error[:, 3 * first + 2] = (
            8 * part.shape[1] * STEP * squares
            + 2 * error_of_mean * distances
            + part.shape[1] * np.square(error_of_mean)
        )
    check(nisa.bn_stats, dst, [data], expected, error=error)


@covers("bn_aggr")
@given(st.data(), partition_counts, st.lists(st.integers(1, 40), min_size=1, max_size=6), seeds)
@properties
def test_bn_aggr_joins_statistics_of_pieces(data: Any, partitions: int, sizes: list[int], seed: int) -> None:
    """The mean and variance of the whole follow from (count, mean, variance * count) of unequal pieces."""
    whole = make_values((partitions, sum(sizes)), "float32", seed, "normal")
    pieces = np.split(whole, np.cumsum(sizes)[:-1], axis=1)
    triples = [
        np.stack([np.full(partitions, p.shape[1]), p.mean(axis=1), p.var(axis=1) * p.shape[1]], 1)
        for p in pieces
    ]
    source = data.draw(
        tiles((partitions, 3 * len(sizes)), "float32", values=float32(np.concatenate(triples, 1)))
    )
    dst = data.draw(results((partitions, 2), "float32"))
    expected = np.stack([whole.mean(axis=1), whole.var(axis=1)], axis=1)
    scale = np.square(whole).mean(axis=1) + np.abs(whole).max(axis=1)
    error = np.broadcast_to((40 * STEP * scale)[:, None], expected.shape)
    check(nisa.bn_aggr, dst, [source], expected, error=error)


@st.composite
def selections(draw: Any) -> Any:
    """dst, predicate, on_true (not both in PSUM), on_false and a [P, 1] destination."""
    shape = draw(shapes())
    predicate = draw(tiles(shape, narrow_integers, flavour="halves"))
    dtypes = st.sampled_from(["float32", "bfloat16", "float16", "int8", "uint16"])
    on_true = draw(tiles(shape, dtypes, psum=False if predicate.layout.psum else None))
    return (
        draw(results(shape)),
        predicate,
        on_true,
        draw(scalars_or_columns(shape[0])),
        draw(results((shape[0], 1), "float32")),
    )


@covers("select_reduce")
@given(selections(), st.booleans(), st.booleans())
@properties
def test_select_reduce_selects_and_finds_the_largest(case: Any, reverse: bool, twice: bool) -> None:
    """dst is on_true or on_false by the predicate; the register is the row's maximum, over two calls too."""
    dst, predicate, on_true, (on_false, column), largest = case
    chosen = (predicate.logical != 0) != reverse
    other = np.where(~chosen, on_true.logical, over(column, chosen))
    expected = np.where(chosen, on_true.logical, over(column, chosen))
    both = np.concatenate([expected, other], axis=-1) if twice else expected

    def body(d: Any, r: Any, p: Any, t: Any, f: Any) -> None:
        if twice:
            nisa.select_reduce(d, p, t, f, reduce_cmd=nisa.reduce_cmd.reset_reduce, reverse_pred=not reverse)
        command = nisa.reduce_cmd.reduce if twice else nisa.reduce_cmd.reset_reduce
        nisa.select_reduce(d, p, t, f, r, command, reverse_pred=reverse)

    maxima = both.reshape(len(column), -1).max(axis=1)
    check(body, [dst, largest], [predicate, on_true, on_false], [expected, maxima])


@st.composite
def ranges(draw: Any) -> Any:
    """dst, a float tile, two bounds, the range's start, and a [P, 1] destination."""
    shape = draw(shapes())
    start = draw(st.integers(0, 50))
    data = draw(tiles(shape, st.sampled_from(["float32", "bfloat16", "float16", "float8_e5m2"])))
    bounds = [
        Tile("float32", column.layout, np.rint(column.logical * 5) + start)
        for column in (draw(columns(shape[0])), draw(columns(shape[0])))
    ]
    dst = draw(results(shape, st.sampled_from(["float32", "bfloat16", "float16"])))
    return dst, data, bounds, start, draw(results((shape[0], 1), "float32"))


@covers("range_select")
@given(
    ranges(),
    *[st.sampled_from(["equal", "less", "less_equal", "greater", "greater_equal"]) for _ in range(2)],
)
@properties
def test_range_select_masks_by_position(case: Any, first: str, second: str) -> None:
    """Positions that meet both comparisons keep the tile's value; others are the lowest float32."""
    dst, data, bounds, start, largest = case
    rows = data.logical.reshape(len(data.logical), -1)
    positions = start + np.arange(rows.shape[1], dtype=np.float64)
    inside = [apply(name, positions, bound.logical) != 0 for name, bound in zip((first, second), bounds)]
    expected = np.where(inside[0] & inside[1], rows, np.finfo(np.float32).min)

    def body(d: Any, r: Any, x: Any, low: Any, high: Any) -> None:
        nisa.range_select(d, x, op(first), op(second), low, high, reduce_res=r, range_start=start)

    check(body, [dst, largest], [data, *bounds], [expected, expected.max(axis=1)])
