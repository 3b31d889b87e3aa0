"""Modes of nc_matmul: double rows of 8-bit floats, tiles of the array, hints, transposes, NeuronCore-v4."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuron_port.simulator import AccumulationError, ConstraintError, run_kernel
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl

bf16 = ml_dtypes.bfloat16
e4m3, e5m2, e4m3fn = ml_dtypes.float8_e4m3, ml_dtypes.float8_e5m2, ml_dtypes.float8_e4m3fn


def multiplying(m, n, dtype=nl.float32, times=1, **options):
    """A kernel that returns nc_matmul(left, right, **options), `times` times, as [m, n]."""

    def kernel(left, right):
        stationary, moving = nl.load(left), nl.load(right)
        psum = nl.ndarray((m, n), dtype, nl.psum)
        for _ in range(times):
            nisa.nc_matmul(psum, stationary, moving, **options)
        tile = nl.ndarray((m, n), dtype)
        nisa.tensor_copy(tile, psum)
        out = nl.ndarray((m, n), dtype, nl.shared_hbm)
        nl.store(out, tile)
        return out

    return kernel


DOUBLE = {"perf_mode": nisa.matmul_perf_mode.double_row}


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_double_row_contracts_two_rows_of_each_partition(data):
    """[P, 2, M] and [P, 2, N] in any mixture of 8-bit formats: the sum runs over partitions and pairs."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    p, m, n = (data.draw(st.integers(1, most)) for most in (128, 128, 64))
    left = rng.standard_normal((p, 2, m)).astype(data.draw(st.sampled_from([e4m3, e5m2])))
    right = rng.standard_normal((p, 2, n)).astype(data.draw(st.sampled_from([e4m3, e5m2])))
    mode = data.draw(st.sampled_from(["double_row", nisa.matmul_perf_mode.double_row]))
    run = run_kernel(multiplying(m, n, perf_mode=mode), left, right)
    expected = np.einsum("pim,pin->mn", left.astype(np.float64), right.astype(np.float64))
    np.testing.assert_allclose(run.outputs[0], expected, rtol=1e-4, atol=1e-4)
    assert run.matmul_macs == 2 * p * m * n
    assert run.trace.instructions[2].attributes["perf_mode"] == "double_row"


LEFT, RIGHT = np.ones((8, 2, 4), e4m3), np.ones((8, 2, 6), e4m3)


@pytest.mark.parametrize(
    ("left", "right", "options", "match"),
    [
        (LEFT.astype(bf16), RIGHT, {}, "double_row takes 8-bit floats; stationary"),
        (LEFT, RIGHT.reshape(8, 12), {}, "needs moving"),
        (np.ones((8, 3, 4), e4m3), np.ones((8, 3, 6), e4m3), {}, "needs stationary"),
        (LEFT, RIGHT, {"is_transpose": True}, "combined with is_transpose"),
        (LEFT, RIGHT, {"tile_position": (0, 0), "tile_size": (64, 64)}, "combined with column tiles"),
        (LEFT, RIGHT, {"perf_mode": "triple_row"}, "perf_mode is 'triple_row'"),
    ],
)
def test_rules_of_double_row(left, right, options, match):
    """8-bit floats, pairs as the first free dimension, no transposes and no column tiles; row tiles are fine."""
    good = {"tile_position": (64, 0), "tile_size": (64, 128)}
    run_kernel(multiplying(4, 6, **DOUBLE, **good), LEFT, RIGHT)
    with pytest.raises(ConstraintError, match=match):
        run_kernel(multiplying(4, 6, **(DOUBLE | options)), left, right)


def test_double_row_needs_gen3():
    """Trn1 has no performance modes."""
    with pytest.raises(ConstraintError, match="NeuronCore-v3"):
        run_kernel(multiplying(4, 6, **DOUBLE), LEFT, RIGHT, target="trn1")


@pytest.mark.parametrize("position", [(0, 0), (0, 64), (64, 64), (96, 32)])
def test_tiles_of_the_array_do_not_change_the_product(rng, position):
    """Row and column tiles are a matter of time; column tiles warn, as the documents contradict each other."""
    left = rng.standard_normal((32, 32)).astype(np.float32)
    right = rng.standard_normal((32, 6)).astype(np.float32)
    size = (32, 32) if position[0] % 64 else (64, 64)
    run = run_kernel(multiplying(32, 6, tile_position=position, tile_size=size), left, right)
    np.testing.assert_allclose(run.outputs[0], left.T @ right, rtol=1e-4, atol=1e-5)
    assert any("column_size 128" in warning for warning in run.warnings)
    assert not run_kernel(
        multiplying(32, 6, tile_position=(64, 0), tile_size=(64, 128)), left, right
    ).warnings


@pytest.mark.parametrize(
    ("position", "size", "match"),
    [
        ((128, 0), (64, 128), "below 128"),
        ((0, 0), (16, 128), "made of 32, 64 and 128"),
        ((0, 0), (), "pairs"),
    ],
)
def test_rules_of_tiles(position, size, match):
    """Positions inside the array, sizes of 32, 64 or 128, both given."""
    arrays = np.ones((32, 4), np.float32), np.ones((32, 6), np.float32)
    with pytest.raises(ConstraintError, match=match):
        run_kernel(multiplying(4, 6, tile_position=position, tile_size=size), *arrays)


@pytest.mark.parametrize("side", ["stationary", "moving"])
def test_onezero_hints_are_checked(rng, side):
    """A 32-bit operand that is promised to hold ones and zeros must do so; narrower ones do not care."""
    bits = rng.integers(0, 2, (8, 4)).astype(np.float32), rng.integers(0, 2, (8, 6)).astype(np.float32)
    kernel = multiplying(4, 6, **{f"is_{side}_onezero": True})
    run = run_kernel(kernel, *bits)
    np.testing.assert_array_equal(run.outputs[0], bits[0].T @ bits[1])
    assert run.trace.instructions[2].attributes["onezero"]
    with pytest.raises(ConstraintError, match=f"is_{side}_onezero promises .* holds 0.5"):
        run_kernel(kernel, *(array * np.float32(0.5) for array in bits))
    run_kernel(kernel, *((array * 0.5).astype(bf16) for array in bits))


def test_transpose_mode_keeps_what_multiplication_would_spread(rng):
    """is_transpose with an identity moves bits from NeuronCore-v3 on: NaN and infinity stay in their place."""
    data = rng.standard_normal((16, 5)).astype(np.float32)
    data[3, 2], data[4, 1] = np.nan, np.inf
    result = run_kernel(multiplying(5, 16, is_transpose=True), data, np.eye(16, dtype=np.float32)).outputs[0]
    np.testing.assert_array_equal(result, data.T)
    spread = run_kernel(multiplying(5, 16), data, np.eye(16, dtype=np.float32)).outputs[0]
    assert np.isnan(spread[2]).all()


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int16])
def test_integers_transpose_on_tensor_engine_from_gen3(rng, dtype):
    """Bits move unchanged, with a warning about contradicting documents; NeuronCore-v2 multiplies floats."""
    data = rng.integers(0, 100, (64, 40)).astype(dtype)
    data[0, 0] = np.iinfo(dtype).max

    def kernel(x):
        psum = nl.ndarray((40, 64), x.dtype, nl.psum)
        nisa.nc_transpose(psum, nl.load(x), engine=nisa.engine.tensor)
        out = nl.ndarray((40, 64), x.dtype, nl.shared_hbm)
        nl.store(out, nl.copy(psum))
        return out

    run = run_kernel(kernel, data)
    np.testing.assert_array_equal(run.outputs[0], data.T)
    assert any("allows any dtype" in warning for warning in run.warnings)
    with pytest.raises(ConstraintError, match="transposes by multiplying floats"):
        run_kernel(kernel, data, target="trn1")


# ---- NeuronCore-v4 ----------------------------------------------------------------------------------------------


def test_gen4_accumulates_in_bfloat16(rng):
    """Every sum is made in float32 and rounded to bfloat16; earlier generations write float32 only."""
    left = rng.standard_normal((8, 4)).astype(np.float32)
    right = rng.standard_normal((8, 6)).astype(np.float32)
    result = run_kernel(multiplying(4, 6, nl.bfloat16, times=2), left, right, target="trn3").outputs[0]
    once = (left.T @ right).astype(bf16).astype(np.float32)
    np.testing.assert_array_equal(result, (once + left.T @ right).astype(bf16))
    with pytest.raises(ConstraintError, match="must be float32"):
        run_kernel(multiplying(4, 6, nl.bfloat16), left, right, target="trn2")


@pytest.mark.parametrize(("dtype", "columns"), [(nl.float32, 4096), (nl.bfloat16, 8192)])
def test_gen4_multiplies_into_all_of_psum(dtype, columns):
    """4096 columns into float32, 8192 into bfloat16; one more is refused, and on Trn2 more than 512."""

    def widest(n):
        def kernel(left, right):
            moving = nl.zeros((2, n), nl.bfloat16)
            nisa.nc_matmul(nl.ndarray((4, n), dtype, nl.psum), nl.load(left), moving)
            return nl.zeros((1, 1), nl.float32, nl.shared_hbm)

        return kernel

    left, right = np.ones((2, 4), bf16), np.ones((1, 1), bf16)
    run_kernel(widest(columns), left, right, target="trn3")
    with pytest.raises(ConstraintError, match="at most 512"):
        run_kernel(widest(513), left, right, target="trn2")


def test_gen4_adds_to_what_a_memset_wrote(rng):
    """The note that this is undefined names NeuronCore-v2 and v3 only."""
    left = rng.standard_normal((8, 4)).astype(np.float32)

    def kernel(x):
        tile = nl.load(x)
        psum = nl.full((4, 4), 3.0, nl.float32, nl.psum)
        nisa.nc_matmul(psum, tile, tile, accumulate=True)
        out = nl.ndarray((4, 4), nl.float32, nl.shared_hbm)
        nl.store(out, nl.copy(psum))
        return out

    result = run_kernel(kernel, left, target="trn3").outputs[0]
    np.testing.assert_allclose(result, 3 + left.T @ left, rtol=1e-5)
    with pytest.raises(AccumulationError):
        run_kernel(kernel, left, target="trn2")


def test_gen4_multiplies_float8_e4m3fn():
    """OCP's format multiplies on NeuronCore-v4, but not with the older one of the same size."""
    left, right = np.ones((8, 4), e4m3fn), np.full((8, 6), 2.0, e4m3fn)
    result = run_kernel(multiplying(4, 6), left, right, target="trn3").outputs[0]
    assert (result == 16).all()
    with pytest.raises(ConstraintError, match="mix float8_e4m3 with float8_e4m3fn"):
        run_kernel(multiplying(4, 6), left, right.astype(e4m3), target="trn3")
    with pytest.raises(ConstraintError, match="float8_e4m3fn"):
        run_kernel(multiplying(4, 6), left, right, target="trn2")
