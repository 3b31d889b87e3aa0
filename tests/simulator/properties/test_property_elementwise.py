"""Properties of elementwise instructions: bits and rounding exactly as float64 formulas say, on any view."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from property_reference import (
    ALL_INTEGERS,
    ARITHMETIC,
    BITWISE,
    FLOATS,
    NUMPY,
    SHIFTS,
    WORDS,
    apply,
    as_bits,
    float32,
    from_bits,
    rounded,
)
from property_tiles import (
    Tile,
    check,
    covers,
    few_properties,
    integer_names,
    make_values,
    op,
    over,
    properties,
    results,
    scalars_or_columns,
    seeds,
    shapes,
    tiles,
    ulps,
    value_names,
)

from neuron_port.simulator.nki import isa as nisa

ARITHMETIC_NAMES = st.sampled_from(list(ARITHMETIC))


@given(seeds, st.sampled_from([name for name in FLOATS if name != "tfloat32"]))
@few_properties
def test_reference_rounding_agrees_with_ml_dtypes(seed: int, dtype: str) -> None:
    """The rounding written from first principles equals ml_dtypes' on ties, subnormals and overflow."""
    rng = np.random.default_rng(seed)
    values = float32(rng.standard_normal(200) * 2.0 ** rng.integers(-30, 20, 200))
    halves = rounded(values, dtype) * (1 + 2.0 ** -(FLOATS[dtype].mantissa_bits + 1))
    for sample in (values, float32(halves), np.array([np.inf, -np.inf, 0.0, -0.0, np.nan])):
        with np.errstate(all="ignore"):
            wanted = sample.astype(np.float32).astype(NUMPY[dtype]).astype(np.float64)
        if dtype == "float8_e4m3fn":
            wanted, sample = wanted[np.isfinite(sample)], sample[np.isfinite(sample)]
        np.testing.assert_array_equal(rounded(sample, dtype), wanted)


@st.composite
def copies(draw: Any) -> Any:
    """A source and a destination of equal elements per partition, of any dtypes, in any free shapes."""
    shape = draw(shapes())
    source = draw(tiles(shape))
    flat = (shape[0], int(np.prod(shape[1:])))
    dtype = draw(st.one_of(st.just(source.dtype), value_names))
    engine = draw(st.sampled_from(["unknown", "vector", "scalar"]))
    return draw(results(draw(st.sampled_from([shape, flat])), dtype)), source, engine


@covers("tensor_copy")
@given(copies())
@properties
def test_tensor_copy_moves_or_rounds_once(case: Any) -> None:
    """Equal dtypes keep every bit (32-bit integers too); others go through float32 and round once."""
    dst, src, engine = case
    exact = src.logical if src.dtype == dst.dtype else float32(src.logical)
    check(lambda d, s: nisa.tensor_copy(d, s, engine=nisa.engine[engine]), dst, [src], exact)


@st.composite
def fills(draw: Any) -> Any:
    """A destination and a constant of its class."""
    dst = draw(results(draw(shapes())))
    value = float(make_values((1,), dst.dtype, draw(seeds))[0])
    if dst.dtype not in ALL_INTEGERS:
        value = value * 1.001  # needs rounding
    return dst, int(value) if dst.dtype in ALL_INTEGERS else value


@covers("memset")
@given(fills())
@properties
def test_memset_fills_the_view_only(case: Any) -> None:
    """Every element of the view becomes the constant as dst's dtype holds it."""
    dst, value = case
    check(
        lambda d: nisa.memset(d, value),
        dst,
        [],
        np.full(dst.layout.shape, float32(np.float64(value)) if dst.dtype not in ALL_INTEGERS else value),
    )


@st.composite
def pairs(draw: Any, dtypes: Any = value_names, dst_dtypes: Any = value_names) -> Any:
    """A destination and two sources, at most one of them in PSUM."""
    shape = draw(shapes())
    first = draw(tiles(shape, dtypes))
    second = draw(tiles(shape, dtypes, psum=False if first.layout.psum else None))
    return draw(results(shape, dst_dtypes)), first, second


@covers("tensor_tensor")
@given(pairs(), ARITHMETIC_NAMES)
@properties
def test_tensor_tensor_computes_in_float32_and_rounds_once(case: Any, name: str) -> None:
    """Any mixture of dtypes and views gives the float32 operation, rounded to dst."""
    dst, first, second = case
    body = lambda d, a, b: nisa.tensor_tensor(d, a, b, op(name), engine=nisa.engine.vector)  # noqa: E731
    check(body, dst, [first, second], apply(name, first.logical, second.logical))


@st.composite
def words(draw: Any) -> Any:
    """Three 32-bit integer tiles in SBUF, with their operator."""
    shape = draw(shapes())
    dtype = draw(st.sampled_from(list(WORDS)))
    first, second = (draw(tiles(shape, dtype, psum=False)) for _ in range(2))
    return draw(results(shape, dtype, psum=False)), first, second


@covers("tensor_tensor")
@given(words(), st.sampled_from(["add", "subtract", "multiply", "maximum", "minimum", "less", "equal"]))
@properties
def test_tensor_tensor_is_exact_on_words(case: Any, name: str) -> None:
    """All-int32 or all-uint32 tiles in SBUF use native integers; results beyond 32 bits wrap."""
    dst, first, second = case
    integers = [tile.logical.astype(object) for tile in (first, second)]  # Python's own integers
    integers = [np.vectorize(int, otypes=[object])(values) for values in integers]
    exact = {"maximum": np.maximum, "minimum": np.minimum}.get(name) or ARITHMETIC[name]
    values = exact(*integers)
    wrapped = np.vectorize(lambda value: int(value) & 0xFFFFFFFF, otypes=[np.int64])(values)
    check(
        lambda d, a, b: nisa.tensor_tensor(d, a, b, op(name)),
        dst,
        [first, second],
        from_bits(wrapped, dst.dtype),
    )


@st.composite
def bit_pairs(draw: Any) -> Any:
    """Three tiles of one integer dtype."""
    dtype = draw(integer_names)
    return draw(pairs(dtype, dtype))


@covers("tensor_tensor")
@given(bit_pairs(), st.sampled_from(list(BITWISE)))
@properties
def test_tensor_tensor_keeps_bits(case: Any, name: str) -> None:
    """Bitwise operators see bit patterns of the dtype's width."""
    dst, first, second = case
    bits = BITWISE[name](as_bits(first.logical, dst.dtype), as_bits(second.logical, dst.dtype))
    check(
        lambda d, a, b: nisa.tensor_tensor(d, a, b, op(name)),
        dst,
        [first, second],
        from_bits(bits, dst.dtype),
    )


@covers("tensor_tensor")
@given(bit_pairs(), st.sampled_from(list(SHIFTS)), seeds)
@few_properties
def test_tensor_tensor_shifts_logically(case: Any, name: str, seed: int) -> None:
    """Shifts fill with zeros, whatever the sign of the dtype."""
    dst, first, second = case
    width = 8 * NUMPY[dst.dtype].itemsize
    base = np.random.default_rng(seed).integers(0, width, (1,) * len(second.layout.shape)).astype(float)
    amounts = Tile(second.dtype, second.layout, np.broadcast_to(base, second.layout.shape))
    bits = SHIFTS[name](as_bits(first.logical, dst.dtype), amounts.logical.astype(np.int64))
    check(
        lambda d, a, b: nisa.tensor_tensor(d, a, b, op(name)),
        dst,
        [first, amounts],
        from_bits(bits, dst.dtype),
    )


@st.composite
def scaled(draw: Any) -> Any:
    """dst, data, and two operands that are numbers or [P, 1] tiles."""
    shape = draw(shapes())
    return (
        draw(results(shape)),
        draw(tiles(shape)),
        draw(scalars_or_columns(shape[0])),
        draw(scalars_or_columns(shape[0])),
    )


@covers("tensor_scalar")
@given(scaled(), ARITHMETIC_NAMES, st.one_of(st.none(), ARITHMETIC_NAMES), st.booleans(), st.booleans())
@properties
def test_tensor_scalar_applies_one_or_two_steps(
    case: Any, first: str, second: str | None, reverse0: bool, reverse1: bool
) -> None:
    """(data op0 operand0) op1 operand1, each step in float32, operands on either side."""
    dst, data, (operand0, column0), (operand1, column1) = case
    values = apply(first, data.logical, over(column0, data.logical), reverse=reverse0)
    if second is None:
        operand1 = None
    else:
        values = apply(second, values, over(column1, values), reverse=reverse1)

    def body(d: Any, x: Any, a: Any, b: Any) -> None:
        nisa.tensor_scalar(d, x, op(first), a, reverse0, op(second) if second else None, b, reverse1)

    check(body, dst, [data, operand0, operand1], values)


@covers("tensor_scalar")
@given(scaled(), st.sampled_from(["abs", "reciprocal"]))
@few_properties
def test_tensor_scalar_runs_unary_operators_without_operand(case: Any, name: str) -> None:
    """A unary op0 takes no operand, and op1 continues from its float32 result."""
    dst, data, _, (operand1, column1) = case
    with np.errstate(divide="ignore"):
        values = np.abs(data.logical) if name == "abs" else 1.0 / float32(data.logical)
    expected = apply("maximum", float32(values), over(column1, values))
    check(
        lambda d, x, b: nisa.tensor_scalar(d, x, op(name), None, op1=op("maximum"), operand1=b),
        dst,
        [data, operand1],
        expected,
    )


@covers("tensor_scalar")
@given(bit_pairs(), st.sampled_from(list(BITWISE)), seeds, st.booleans())
@few_properties
def test_tensor_scalar_keeps_bits(case: Any, name: str, seed: int, reverse: bool) -> None:
    """With bitwise operators the data are bit patterns, and so is the number."""
    dst, data, _ = case
    number = int(make_values((1,), dst.dtype, seed, "spread")[0])
    bits = BITWISE[name](as_bits(data.logical, dst.dtype), as_bits(np.array(number), dst.dtype))
    check(
        lambda d, x: nisa.tensor_scalar(d, x, op(name), number, reverse),
        dst,
        [data],
        from_bits(bits, dst.dtype),
    )


@covers("scalar_tensor_tensor")
@given(pairs(), st.data(), ARITHMETIC_NAMES, ARITHMETIC_NAMES, st.booleans(), st.booleans())
@properties
def test_scalar_tensor_tensor_applies_both_steps(
    case: Any, data: Any, first: str, second: str, reverse0: bool, reverse1: bool
) -> None:
    """(data op0 operand0) op1 operand1 with a scalar or column first and a tile second."""
    dst, left, right = case
    operand0, column = data.draw(scalars_or_columns(left.layout.shape[0]))
    inner = apply(first, left.logical, over(column, left.logical), reverse=reverse0)
    expected = apply(second, inner, right.logical, reverse=reverse1)

    def body(d: Any, x: Any, a: Any, b: Any) -> None:
        nisa.scalar_tensor_tensor(d, x, op(first), a, op(second), b, reverse0, reverse1)

    check(body, dst, [left, operand0, right], expected)


@covers("reciprocal")
@given(copies())
@properties
def test_reciprocal_divides_in_float32(case: Any) -> None:
    """1 / x, correctly rounded to float32 and then to dst; zeros give infinity."""
    dst, data, _ = case
    with np.errstate(divide="ignore"):
        expected = float32(1.0 / float32(data.logical))
    check(nisa.reciprocal, dst, [data], expected, error=np.where(np.isinf(expected), 0.0, ulps(expected, 1)))
