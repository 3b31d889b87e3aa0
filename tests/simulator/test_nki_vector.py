"""VectorE elementwise and reduction instructions against NumPy formulas written independently."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuron_port.simulator import ConstraintError
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl
from tests.simulator.properties.property_reference import ARITHMETIC

bf16 = ml_dtypes.bfloat16


def halves(rng, shape):
    """Small multiples of 1/2, zeros and ties included, exact in every float dtype here."""
    return (rng.integers(-6, 7, shape) / 2).astype(np.float32)


@pytest.mark.parametrize("name", ARITHMETIC)
@pytest.mark.parametrize("dtype", [np.float32, bf16, np.float16, np.int32])
def test_tensor_tensor_follows_numpy(on_tiles, rng, name, dtype):
    """Each binary operator computes elementwise in float32 and rounds once to dst's dtype."""
    a, b = halves(rng, (5, 7)).astype(dtype), halves(rng, (5, 7)).astype(dtype)
    expected = ARITHMETIC[name](a.astype(np.float32), b.astype(np.float32))
    result = on_tiles(lambda dst, x, y: nisa.tensor_tensor(dst, x, y, getattr(nl, name)), a, b)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("name", ARITHMETIC)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("vector", [False, True])
def test_tensor_scalar_follows_numpy(on_tiles, rng, name, reverse, vector):
    """tensor_scalar broadcasts a number or a column, on either side of the operator."""
    a, column = halves(rng, (6, 9)), halves(rng, (6, 1))
    other = column if vector else np.float32(1.5)
    expected = ARITHMETIC[name](other, a) if reverse else ARITHMETIC[name](a, other)

    def body(dst, x, c):
        nisa.tensor_scalar(dst, x, getattr(nl, name), c if vector else 1.5, reverse0=reverse)

    np.testing.assert_array_equal(on_tiles(body, a, column), np.broadcast_to(expected, a.shape))


def test_tensor_scalar_applies_two_operators_in_order(on_tiles, rng):
    """(data - column) * 3, then with both operands reversed: 3 - (column - data)."""
    a, column = halves(rng, (4, 6)), halves(rng, (4, 1))

    def forward(dst, x, c):
        nisa.tensor_scalar(dst, x, nl.subtract, c, op1=nl.multiply, operand1=3.0)

    def backward(dst, x, c):
        nisa.tensor_scalar(dst, x, nl.subtract, c, True, nl.subtract, 3.0, True)

    np.testing.assert_array_equal(on_tiles(forward, a, column), (a - column) * 3)
    np.testing.assert_array_equal(on_tiles(backward, a, column), 3 - (column - a))


def test_comparison_feeds_arithmetic_as_one_and_zero(on_tiles, rng):
    """A comparison as op0 gives 1.0 and 0.0 to an arithmetic op1."""
    a = halves(rng, (4, 6))
    result = on_tiles(
        lambda dst, x: nisa.tensor_scalar(dst, x, nl.greater, 0.0, op1=nl.subtract, operand1=1.0), a
    )
    np.testing.assert_array_equal(result, (a > 0) - 1.0)


def test_rsqrt_by_addition_and_power(on_tiles):
    """(x + eps) ** -0.5 and nl.rsqrt agree; both run on GpSimdE."""
    a = np.linspace(0.1, 9.0, 24, dtype=np.float32).reshape(4, 6)
    by_power = on_tiles(lambda d, x: nisa.tensor_scalar(d, x, nl.add, 0.5, op1=nl.power, operand1=-0.5), a)
    by_rsqrt = on_tiles(lambda d, x: nisa.tensor_scalar(d, x, nl.add, 0.5, op1=nl.rsqrt, operand1=0.0), a)
    np.testing.assert_allclose(by_power, 1 / np.sqrt(a + 0.5), rtol=1e-6)
    np.testing.assert_allclose(by_rsqrt, by_power, rtol=1e-6)


def test_scalar_tensor_tensor_follows_numpy(on_tiles, rng):
    """(data op0 operand0) op1 operand1, with both orders of the second operator."""
    a, b, column = halves(rng, (4, 6)), halves(rng, (4, 6)), halves(rng, (4, 1))

    def body(dst, x, y, c):
        nisa.scalar_tensor_tensor(dst, x, nl.multiply, c, nl.subtract, y, reverse1=True)

    np.testing.assert_array_equal(on_tiles(body, a, b, column), b - a * column)


@pytest.mark.parametrize(("name", "reduce"), [("add", np.sum), ("multiply", np.prod), ("maximum", np.max)])
@pytest.mark.parametrize("axis", [3, (2, 3), (1, 2, 3), -1])
def test_tensor_reduce_over_trailing_dimensions(on_tiles, rng, name, reduce, axis):
    """tensor_reduce reduces the last free dimensions, and negates on request."""
    a = halves(rng, (3, 2, 3, 4))
    expected = reduce(a, axis=axis)
    shape = expected.shape if expected.ndim > 1 else (3, 1)

    def body(dst, x):
        nisa.tensor_reduce(dst, getattr(nl, name), x, axis, negate=True)

    np.testing.assert_array_equal(on_tiles(body, a, shape=shape), -expected.reshape(shape))


@pytest.mark.parametrize("axis", [0, (0, 1), 1])
def test_tensor_reduce_refuses_other_axes(on_tiles, rng, axis):
    """The partition dimension and an inner free dimension cannot be reduced."""
    with pytest.raises(ConstraintError, match="last free dimensions"):
        on_tiles(
            lambda dst, x: nisa.tensor_reduce(dst, nl.add, x, axis), halves(rng, (3, 2, 4)), shape=(3, 4)
        )


def test_reciprocal_and_unary_abs(on_tiles, rng):
    """reciprocal is 1/x; a unary operator takes no operand."""
    a = halves(rng, (4, 6)) + np.float32(0.25)
    np.testing.assert_array_equal(on_tiles(lambda d, x: nisa.reciprocal(d, x), a), np.float32(1) / a)
    np.testing.assert_array_equal(on_tiles(lambda d, x: nisa.tensor_scalar(d, x, nl.abs, None), a), np.abs(a))


def test_bitwise_operators_see_bits(on_tiles, rng):
    """Bitwise operators work on integers untouched; shifts are logical even for signed dtypes."""
    a = rng.integers(-(2**31), 2**31, (4, 6)).astype(np.int32)
    b = rng.integers(-(2**31), 2**31, (4, 6)).astype(np.int32)
    xor = on_tiles(lambda d, x, y: nisa.tensor_tensor(d, x, y, nl.bitwise_xor), a, b, dtype=nl.int32)
    np.testing.assert_array_equal(xor, a ^ b)
    shifted = on_tiles(lambda d, x: nisa.tensor_scalar(d, x, nl.right_shift, 4), a, dtype=nl.int32)
    np.testing.assert_array_equal(shifted, (a.view(np.uint32) >> 4).view(np.int32))
    masked = on_tiles(
        lambda d, x: nisa.tensor_scalar(d, x, nl.bitwise_and, 255, op1=nl.left_shift, operand1=1),
        a,
        dtype=nl.int32,
    )
    np.testing.assert_array_equal(masked, (a & 255) << 1)


def test_bitwise_operators_refuse_floats(on_tiles, rng):
    """A float tile has no bits to a bitwise operator."""
    a = halves(rng, (4, 6))
    with pytest.raises(ConstraintError, match="works on bits"):
        on_tiles(lambda d, x: nisa.tensor_tensor(d, x, x, nl.bitwise_and), a)


def test_int32_is_exact_on_gpsimd_and_rounded_on_vector(on_tiles, run_tiles):
    """32-bit integers add exactly by default; engine=vector goes through float32 and is warned about."""
    a = np.full((4, 6), 2**24, dtype=np.int32)
    one = np.ones((4, 6), dtype=np.int32)

    def exact(d, x, y):
        nisa.tensor_tensor(d, x, y, nl.add)

    def rounded(d, x, y):
        nisa.tensor_tensor(d, x, y, nl.add, engine=nisa.engine.vector)

    np.testing.assert_array_equal(on_tiles(exact, a, one, dtype=nl.int32), a + 1)
    big = a + 2**20 + 1
    run = run_tiles(rounded, big, one, dtype=nl.int32)
    np.testing.assert_array_equal(run.outputs[0], (big.astype(np.float32) + 1).astype(np.int32))
    assert "2**24" in run.warnings[0]


@given(
    values=st.lists(st.floats(-300, 300, width=32), min_size=4, max_size=4),
    dtype=st.sampled_from(["bfloat16", "float16", "float8_e5m2", "float8_e4m3", "int8", "uint8", "int32"]),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_results_round_once_to_the_destination(on_tiles, values, dtype):
    """Float results round to nearest even as ml_dtypes does; integers round to nearest even and saturate."""
    a = np.array(values, dtype=np.float32).reshape(2, 2)
    result = on_tiles(lambda d, x: nisa.tensor_copy(d, x), a, dtype=getattr(nl, dtype))
    if dtype in ("int8", "uint8", "int32"):
        limits = np.iinfo(dtype)
        expected = np.clip(np.rint(a.astype(np.float64)), limits.min, limits.max).astype(dtype)
    else:
        with np.errstate(over="ignore"):
            expected = a.astype(getattr(ml_dtypes, dtype, dtype))
    np.testing.assert_array_equal(result.astype(np.float32), expected.astype(np.float32))


def test_memset_fills_and_checks_the_class_of_its_value(on_tiles, rng):
    """An integer tile takes an integer; a float is refused."""
    a = halves(rng, (4, 6))
    result = on_tiles(lambda d, x: nisa.memset(d, 0.1), a, dtype=nl.bfloat16)
    np.testing.assert_array_equal(result, np.full((4, 6), 0.1, dtype=bf16))
    np.testing.assert_array_equal(
        on_tiles(lambda d, x: nisa.memset(d, 7), a, dtype=nl.int32), np.full((4, 6), 7)
    )
    with pytest.raises(ConstraintError, match="no integer"):
        on_tiles(lambda d, x: nisa.memset(d, 7.0), a, dtype=nl.int32)


def test_divide_is_no_operator_of_the_alu(on_tiles, rng):
    """Division is refused with the cure."""
    a = halves(rng, (4, 6))
    with pytest.raises(ConstraintError, match="reciprocal"):
        on_tiles(lambda d, x: nisa.tensor_tensor(d, x, x, nl.divide), a)


def test_nothing_broadcasts_by_itself(on_tiles, rng):
    """tensor_tensor with a column is refused; the same column broadcast by a view passes."""
    a, column = halves(rng, (4, 6)), halves(rng, (4, 1))
    with pytest.raises(ConstraintError, match="do not broadcast"):
        on_tiles(lambda d, x, c: nisa.tensor_tensor(d, x, c, nl.add), a, column)
    result = on_tiles(lambda d, x, c: nisa.tensor_tensor(d, x, c.broadcast(1, 6), nl.add), a, column)
    np.testing.assert_array_equal(result, a + column)


def test_equal_elements_per_partition_suffice(on_tiles, rng):
    """Operands of different rank pair element by element in row-major order."""
    a = halves(rng, (4, 2, 3))
    result = on_tiles(lambda d, x: nisa.tensor_copy(d, x.permute((0, 2, 1))), a, shape=(4, 6))
    np.testing.assert_array_equal(result, a.transpose(0, 2, 1).reshape(4, 6))


def test_wrappers_compute_what_tokens_name(on_tiles, rng):
    """nl.add(x, y) and friends allocate a tile and run the instruction."""
    a, b = halves(rng, (4, 6)), halves(rng, (4, 6))

    def body(dst, x, y):
        nisa.tensor_copy(dst, nl.multiply(nl.add(x, y), nl.exp(nl.maximum(x, 0.5))))

    np.testing.assert_allclose(on_tiles(body, a, b), (a + b) * np.exp(np.maximum(a, 0.5)), rtol=1e-6)
    total = on_tiles(lambda d, x: nisa.tensor_copy(d, nl.sum(x, axis=1)), a, shape=(4, 1))
    np.testing.assert_array_equal(total, a.sum(1, keepdims=True))


def test_composed_functions_match_numpy(on_tiles, rng):
    """nl.softmax, rms_norm, where, negative and broadcast_to (over partitions too) are NumPy's."""
    x, w = rng.standard_normal((6, 9)).astype(np.float32), rng.standard_normal((6, 9)).astype(np.float32)
    powers = np.exp(x - x.max(1, keepdims=True))
    result = on_tiles(lambda d, t: nisa.tensor_copy(d, nl.softmax(t, axis=1)), x)
    np.testing.assert_allclose(result, powers / powers.sum(1, keepdims=True), rtol=1e-6)
    result = on_tiles(lambda d, t, v: nisa.tensor_copy(d, nl.rms_norm(t, v, axis=1, n=9)), x, w)
    np.testing.assert_allclose(result, x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-6) * w, rtol=1e-5)
    result = on_tiles(lambda d, t, v: nisa.tensor_copy(d, nl.where(nl.greater(t, 0.0), t, v)), x, w)
    np.testing.assert_array_equal(result, np.where(x > 0, x, w))
    np.testing.assert_array_equal(on_tiles(lambda d, t: nisa.tensor_copy(d, nl.negative(t)), x), -x)
    result = on_tiles(lambda d, t: nisa.tensor_copy(d, nl.broadcast_to(t, (100, 9))), x[:1], shape=(100, 9))
    np.testing.assert_array_equal(result, np.repeat(x[:1], 100, axis=0))
