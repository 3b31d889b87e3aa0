"""TensorE: products, accumulation into PSUM, transposes, and what it refuses."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from neuron_port.simulator import AccumulationError, ConstraintError, run_kernel
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl

bf16 = ml_dtypes.bfloat16


def matmul_kernel(steps, out_dtype=nl.float32, **allocation):
    """A kernel that loads two matrices, runs steps(psum, stationary, moving) and returns psum."""

    def kernel(left, right):
        stationary = nl.ndarray(left.shape, left.dtype)
        moving = nl.ndarray(right.shape, right.dtype)
        nisa.dma_copy(stationary, left)
        nisa.dma_copy(moving, right)
        psum = nl.ndarray((left.shape[1], right.shape[1]), out_dtype, nl.psum, **allocation)
        steps(psum, stationary, moving)
        tile = nl.ndarray(psum.shape, psum.dtype)
        nisa.tensor_copy(tile, psum)
        out = nl.ndarray(psum.shape, psum.dtype, nl.shared_hbm)
        nisa.dma_copy(out, tile)
        return out

    return kernel


def once(psum, stationary, moving, **options):
    nisa.nc_matmul(psum, stationary, moving, **options)


@pytest.mark.parametrize("dtype", [np.float32, bf16, np.float16])
@pytest.mark.parametrize(("k", "m", "n"), [(128, 128, 512), (37, 5, 19), (1, 1, 1)])
def test_product_is_stationary_transposed_times_moving(rng, dtype, k, m, n):
    """dst = stationary.T @ moving in float32, also for narrow inputs and odd sizes."""
    left = rng.standard_normal((k, m)).astype(dtype)
    right = rng.standard_normal((k, n)).astype(dtype)
    run = run_kernel(matmul_kernel(once), left, right)
    expected = left.astype(np.float64).T @ right.astype(np.float64)
    np.testing.assert_allclose(run.outputs[0], expected, rtol=1e-4, atol=1e-4)
    assert run.matmul_macs == k * m * n


def test_free_dimensions_count_as_one(rng):
    """A moving tile [K, 2, 3] multiplies like [K, 6]."""
    left, right = rng.standard_normal((8, 4)), rng.standard_normal((8, 6))

    def steps(psum, stationary, moving):
        nisa.nc_matmul(psum, stationary.reshape((8, 2, 2)), moving.reshape((8, 2, 3)))

    result = run_kernel(matmul_kernel(steps), left.astype(np.float32), right.astype(np.float32)).outputs[0]
    np.testing.assert_allclose(result, left.T @ right, rtol=1e-4, atol=1e-5)


def twice(first, second):
    def steps(psum, stationary, moving):
        nisa.nc_matmul(psum, stationary, moving, accumulate=first)
        nisa.nc_matmul(psum, stationary, moving, accumulate=second)

    return steps


@pytest.mark.parametrize(
    ("first", "second", "factor"), [(None, None, 2), (False, True, 2), (False, None, 2), (None, False, 1)]
)
def test_accumulate_flag(rng, first, second, factor):
    """None overwrites what was never written and adds later; True adds; False overwrites."""
    left = rng.standard_normal((8, 4)).astype(np.float32)
    right = rng.standard_normal((8, 6)).astype(np.float32)
    result = run_kernel(matmul_kernel(twice(first, second)), left, right).outputs[0]
    np.testing.assert_allclose(result, factor * (left.T @ right), rtol=1e-5, atol=1e-6)


def test_accumulation_is_tracked_by_element(rng):
    """Overlapping writes add where they overlap and overwrite elsewhere."""
    left = rng.standard_normal((8, 4)).astype(np.float32)
    right = rng.standard_normal((8, 6)).astype(np.float32)

    def steps(psum, stationary, moving):
        nisa.nc_matmul(psum[:, 0:4], stationary, moving[:, 0:4])
        nisa.nc_matmul(psum[:, 2:6], stationary, moving[:, 2:6])

    expected = left.T @ right
    expected[:, 2:4] *= 2
    result = run_kernel(matmul_kernel(steps), left, right).outputs[0]
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def after_memset(accumulate, value=0.0):
    def steps(psum, stationary, moving):
        nisa.memset(psum, value)
        nisa.nc_matmul(psum, stationary, moving, accumulate=accumulate)

    return steps


@pytest.mark.parametrize("target", ["trn1", "trn2"])
@pytest.mark.parametrize(("accumulate", "value"), [(True, 0.0), (True, 2.0), (None, 2.0)])
def test_accumulating_onto_memset_is_refused(rng, target, accumulate, value):
    """PSUM that memset wrote last cannot be accumulated onto; overwriting it is fine."""
    left = rng.standard_normal((8, 4)).astype(np.float32)
    right = rng.standard_normal((8, 6)).astype(np.float32)
    with pytest.raises(AccumulationError, match="drop the memset"):
        run_kernel(matmul_kernel(after_memset(accumulate, value)), left, right, target=target)
    run_kernel(matmul_kernel(after_memset(False, value)), left, right, target=target)


def test_the_first_matmul_onto_cleared_psum_warns(rng):
    """Overwriting zeros and adding to them give the same, so accumulate=None on a memset of zero only warns."""
    left = rng.standard_normal((8, 4)).astype(np.float32)
    right = rng.standard_normal((8, 6)).astype(np.float32)
    run = run_kernel(matmul_kernel(after_memset(None)), left, right)
    np.testing.assert_allclose(run.outputs[0], left.T @ right, rtol=1e-5, atol=1e-6)
    assert any("cleared by another instruction" in warning for warning in run.warnings)


def test_accumulating_onto_a_partial_copy_is_refused(rng):
    """One element written by another instruction spoils the accumulation."""
    left = rng.standard_normal((8, 4)).astype(np.float32)
    right = rng.standard_normal((8, 6)).astype(np.float32)

    def steps(psum, stationary, moving):
        nisa.nc_matmul(psum, stationary, moving)
        nisa.tensor_copy(psum[:, 2:3], moving[0:4, 2:3])
        nisa.nc_matmul(psum, stationary, moving)

    with pytest.raises(AccumulationError, match="no matmul"):
        run_kernel(matmul_kernel(steps), left, right)


@pytest.mark.parametrize("written", [False, True])
def test_accumulating_onto_unwritten_psum_is_refused(rng, written):
    """accumulate=True needs every element to be written by a matmul before."""
    left = rng.standard_normal((8, 4)).astype(np.float32)
    right = rng.standard_normal((8, 6)).astype(np.float32)

    def steps(psum, stationary, moving):
        if written:
            nisa.nc_matmul(psum[:, 0:3], stationary, moving[:, 0:3])
        nisa.nc_matmul(psum, stationary, moving, accumulate=True)

    with pytest.raises(AccumulationError, match="never written"):
        run_kernel(matmul_kernel(steps), left, right)


def test_mixing_float32_with_bfloat16_is_refused(rng):
    """float32 multiplies only with float32; two different 16-bit floats are fine."""
    left = rng.standard_normal((8, 4)).astype(np.float32)
    right = rng.standard_normal((8, 6)).astype(bf16)
    with pytest.raises(ConstraintError, match="mix a 32-bit with a narrower"):
        run_kernel(matmul_kernel(once), left, right)
    run_kernel(matmul_kernel(once), left.astype(np.float16), right)


def test_contraction_is_over_equal_partitions(rng):
    """stationary and moving share K; the cure names the layout."""
    with pytest.raises(ConstraintError, match="contraction dimension K"):
        run_kernel(matmul_kernel(once), np.ones((8, 4), np.float32), np.ones((7, 6), np.float32))


def test_moving_columns_are_limited():
    """512 columns pass, 513 are refused."""

    def steps(psum, stationary, moving):
        nisa.nc_matmul(psum[:, 0:512], stationary, moving[:, 0:512])
        nisa.nc_matmul(psum[:, 512:1024], stationary, moving[:, 512:1024])

    def too_wide(psum, stationary, moving):
        nisa.nc_matmul(psum[:, 0:513], stationary, moving[:, 0:513])

    left, right = np.ones((8, 4), np.float32), np.ones((8, 1024), np.float32)
    np.testing.assert_array_equal(
        run_kernel(matmul_kernel(steps), left, right).outputs[0], np.full((4, 1024), 8.0)
    )
    with pytest.raises(ConstraintError, match="513 columns"):
        run_kernel(matmul_kernel(too_wide), left, right)


def test_result_stays_in_one_bank():
    """A destination across two PSUM banks is refused."""

    def steps(psum, stationary, moving):
        nisa.nc_matmul(psum[:, 256:768], stationary, moving[:, 256:768])

    with pytest.raises(ConstraintError, match="crosses a PSUM bank"):
        run_kernel(matmul_kernel(steps), np.ones((8, 4), np.float32), np.ones((8, 1024), np.float32))


def test_bfloat16_destination_is_refused():
    """A product accumulates in float32."""
    with pytest.raises(ConstraintError, match="must be float32"):
        run_kernel(matmul_kernel(once, nl.bfloat16), np.ones((8, 4), bf16), np.ones((8, 6), bf16))


def test_operands_have_their_memories(rng):
    """stationary comes from SBUF and dst is PSUM."""
    x = rng.standard_normal((8, 8)).astype(np.float32)

    def swapped(psum, stationary, moving):
        nisa.nc_matmul(stationary, moving, moving)

    def from_psum(psum, stationary, moving):
        nisa.nc_matmul(psum, stationary, moving)
        nisa.nc_matmul(psum, psum, moving)

    with pytest.raises(ConstraintError, match="must be in PSUM"):
        run_kernel(matmul_kernel(swapped), x, x)
    with pytest.raises(ConstraintError, match="must be in SBUF"):
        run_kernel(matmul_kernel(from_psum), x, x)


@pytest.mark.parametrize(
    ("target", "position", "size", "fine"),
    [
        ("trn2", (32, 0), (32, 128), True),
        ("trn1", (32, 0), (32, 128), False),
        ("trn1", (64, 0), (64, 128), True),
        ("trn2", (16, 0), (32, 128), False),
        ("trn2", (0, 0), (8, 128), False),
        ("trn2", (0, 0), (), False),
    ],
)
def test_tiling_of_the_array(rng, target, position, size, fine):
    """Row tiles start at multiples of their size; tiles of 32 rows need NeuronCore-v3."""
    x = rng.standard_normal((16, 16)).astype(np.float32)

    def steps(psum, stationary, moving):
        nisa.nc_matmul(psum, stationary, moving, tile_position=position, tile_size=size)

    if fine:
        np.testing.assert_allclose(
            run_kernel(matmul_kernel(steps), x, x, target=target).outputs[0], x.T @ x, rtol=1e-5
        )
    else:
        with pytest.raises(ConstraintError):
            run_kernel(matmul_kernel(steps), x, x, target=target)


def transpose_kernel(memory, **options):
    def kernel(x):
        tile = nl.ndarray(x.shape, x.dtype)
        nisa.dma_copy(tile, x)
        turned = nl.ndarray((x.shape[1], x.shape[0]), x.dtype, memory)
        nisa.nc_transpose(turned, tile, **options)
        copy = nl.ndarray(turned.shape, x.dtype)
        nisa.tensor_copy(copy, turned)
        out = nl.ndarray(turned.shape, x.dtype, nl.shared_hbm)
        nisa.dma_copy(out, copy)
        return out

    return kernel


@pytest.mark.parametrize("dtype", [np.float32, bf16])
def test_transpose_on_both_engines(rng, dtype):
    """TensorE transposes SBUF into PSUM up to [128, 128], VectorE up to [32, 32] anywhere."""
    large = rng.standard_normal((128, 70)).astype(dtype)
    small = rng.standard_normal((32, 20)).astype(dtype)
    run = run_kernel(transpose_kernel(nl.psum), large)
    np.testing.assert_array_equal(run.outputs[0], large.T)
    assert run.trace.counts_by_engine()["tensor"] == 1
    run = run_kernel(transpose_kernel(nl.sbuf), small)
    np.testing.assert_array_equal(run.outputs[0], small.T)
    assert run.trace.counts_by_engine()["tensor"] == 0


def test_transpose_refuses_wrong_memory_and_size(rng):
    """A large transpose must land in PSUM; VectorE stops at [32, 32]."""
    large = rng.standard_normal((128, 70)).astype(np.float32)
    with pytest.raises(ConstraintError, match="must be in PSUM"):
        run_kernel(transpose_kernel(nl.sbuf), large)
    with pytest.raises(ConstraintError, match=r"\[32, 32\]"):
        run_kernel(transpose_kernel(nl.sbuf, engine=nisa.engine.vector), large)


def test_infinity_spoils_a_transpose_on_gen2_only():
    """NeuronCore-v2 transposes by an identity product, where infinity times zero is NaN."""
    x = np.ones((40, 40), np.float32)
    x[3, 5] = np.inf
    assert np.isnan(run_kernel(transpose_kernel(nl.psum), x, target="trn1").outputs[0]).any()
    np.testing.assert_array_equal(run_kernel(transpose_kernel(nl.psum), x, target="trn2").outputs[0], x.T)
