"""Values that an engine gets wrong, or wrong silently: each is computed as documented, and warned of or refused."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from neuron_port.simulator import ConstraintError, OutOfBoundsError, run_kernel
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl


def test_sine_beyond_pi_follows_its_last_cubic(run_tiles):
    """activation(sin) has no range reduction: sin(9) is the documented 27.65, odd, and continuous at pi."""
    x = np.array([[9.0, -9.0, 3.2, math.pi, -math.pi, 1.0]], np.float32)
    run = run_tiles(lambda d, t: nisa.activation(d, nl.sin, t), x)
    nine, minus_nine, near, *inside = run.outputs[0][0]
    assert nine == pytest.approx(27.65, abs=0.005)
    assert minus_nine == -nine
    assert near == pytest.approx(math.sin(3.2), abs=1e-5)
    np.testing.assert_allclose(inside, np.sin(x[0, 3:]), atol=3e-7)
    assert "nki.api.shared" in run.warnings[0]


def test_the_sine_of_the_language_reduces_its_range(run_tiles):
    """nl.sin stays accurate where the instruction does not."""

    def body(d: Any, t: Any) -> None:
        nisa.tensor_copy(d, nl.sin(t))

    x = np.linspace(-30, 30, 256, dtype=np.float32).reshape(4, 64)
    run = run_tiles(body, x)
    np.testing.assert_allclose(run.outputs[0], np.sin(x), atol=2e-5)
    assert run.warnings == ()


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("log", 2.0**-64, 2.0**-66),
        ("sqrt", 2.0**118, 2.0**120),
        ("rsqrt", 2.0**-87, 2.0**-89),
        ("reciprocal", -(2.0**42), -(2.0**44)),
        ("arctan", 1.5, 1.6),
    ],
)
def test_the_documented_ranges_are_warned_of_at_their_ends(run_tiles, name, inside, outside):
    """The last legal value passes in silence, one beyond it is named with the range."""

    def body(d: Any, t: Any) -> None:
        nisa.activation(d, getattr(nl, name), t)

    assert run_tiles(body, np.full((2, 4), inside, np.float32)).warnings == ()
    (warning,) = run_tiles(body, np.full((2, 4), outside, np.float32)).warnings
    assert f"nl.{name}" in warning
    assert "valid only in" in warning


@pytest.mark.parametrize(("largest", "warned"), [(2**24, False), (2**24 + 2, True)])
def test_integers_beyond_2_to_24_lose_bits_on_the_float32_engines(run_tiles, largest, warned):
    """An int32 input that float32 cannot hold is warned of; GpSimdE is exact and silent."""
    x = np.full((4, 4), largest, np.int32)
    run = run_tiles(lambda d, t: nisa.tensor_scalar(d, t, nl.add, 0.0), x, dtype=nl.int32)
    assert bool(run.warnings) is warned
    exact = run_tiles(lambda d, t: nisa.tensor_tensor(d, t, t, nl.maximum), x, dtype=nl.int32)
    assert exact.warnings == ()
    assert (exact.outputs[0] == largest).all()


@pytest.mark.parametrize(("factor", "warned"), [(4096.0, False), (4097.0, True)])
def test_integer_results_beyond_2_to_24_are_warned_of(run_tiles, factor, warned):
    """A product of small integers may leave the range that float32 counts exactly."""
    x = np.full((4, 4), 4096, np.int32)
    run = run_tiles(lambda d, t: nisa.tensor_scalar(d, t, nl.multiply, factor), x, dtype=nl.int32)
    assert bool(run.warnings) is warned


@pytest.mark.parametrize(("value", "warned"), [(240.0, False), (260.0, True)])
@pytest.mark.parametrize("by_dma", [True, False])
def test_overflowing_fp8_is_warned_of(value, warned, by_dma):
    """float8_e4m3 ends at 240: beyond, copies and casts by DMA give infinity, with a warning."""

    def kernel(x: Any) -> Any:
        tile = nl.ndarray(x.shape, nl.float32, nl.sbuf)
        nisa.dma_copy(tile, x)
        small = nl.ndarray(x.shape, nl.float8_e4m3, nl.sbuf)
        (nisa.dma_copy if by_dma else nisa.tensor_copy)(small, tile)
        out = nl.ndarray(x.shape, nl.float8_e4m3, nl.shared_hbm)
        nisa.dma_copy(out, small)
        return out

    run = run_kernel(kernel, np.full((4, 4), value, np.float32))
    assert np.isinf(run.outputs[0].astype(np.float32)).all() == warned
    assert any("float8_e4m3" in warning for warning in run.warnings) is warned


@pytest.mark.parametrize(("start", "refused"), [(2**24 - 8, False), (2**24 - 7, True)])
def test_range_select_counts_to_2_to_24(start, refused):
    """Positions are compared in float32, so range_start plus the width may not exceed 2**24."""

    def kernel(x: Any) -> Any:
        tile = nl.ndarray(x.shape, nl.float32, nl.sbuf)
        nisa.dma_copy(tile, x)
        low, high = (nl.ndarray((4, 1), nl.float32, nl.sbuf) for _ in range(2))
        nisa.memset(low, 0.0)
        nisa.memset(high, float(2**25))
        dst = nl.ndarray(x.shape, nl.float32, nl.sbuf)
        nisa.range_select(dst, tile, nl.greater_equal, nl.less, low, high, range_start=start)
        out = nl.ndarray(x.shape, nl.float32, nl.shared_hbm)
        nisa.dma_copy(out, dst)
        return out

    x = np.ones((4, 8), np.float32)
    if refused:
        with pytest.raises(ConstraintError, match=r"2\*\*24"):
            run_kernel(kernel, x, target="trn2")
    else:
        np.testing.assert_array_equal(run_kernel(kernel, x, target="trn2").outputs[0], x)


@pytest.mark.parametrize("target", ["inf2", "trn2"])
def test_nan_spreads_in_a_transpose_of_gen2_only(target):
    """TensorE of NeuronCore-v2 multiplies by an identity: NaN fills its column; later ones move bits."""

    def kernel(x: Any) -> Any:
        tile = nl.ndarray(x.shape, nl.float32, nl.sbuf)
        nisa.dma_copy(tile, x)
        turned = nl.ndarray((64, 64), nl.float32, nl.psum)
        nisa.nc_transpose(turned, tile, engine=nisa.engine.tensor)
        dst = nl.ndarray((64, 64), nl.float32, nl.sbuf)
        nisa.tensor_copy(dst, turned)
        out = nl.ndarray((64, 64), nl.float32, nl.shared_hbm)
        nisa.dma_copy(out, dst)
        return out

    x = np.ones((64, 64), np.float32)
    x[3, 5] = np.nan
    run = run_kernel(kernel, x, target=target)
    assert np.isnan(run.outputs[0]).sum() == (64 if target == "inf2" else 1)
    assert any("NaN or infinity" in warning for warning in run.warnings) is (target == "inf2")


@pytest.mark.parametrize(("row", "refused"), [(9, False), (10, True)])
def test_a_gather_outside_the_table_is_refused(row, refused):
    """The last row is read, one beyond it names the index and its partition."""

    def kernel(table: Any, rows: Any) -> Any:
        index = nl.ndarray((4, 1), nl.int32, nl.sbuf)
        nisa.dma_copy(index, rows)
        tile = nl.ndarray((4, 6), nl.float32, nl.sbuf)
        nisa.dma_copy(tile, table.ap([[6, 4], [1, 6]], vector_offset=index))
        out = nl.ndarray((4, 6), nl.float32, nl.shared_hbm)
        nisa.dma_copy(out, tile)
        return out

    table = np.arange(60, dtype=np.float32).reshape(10, 6)
    rows = np.array([[0], [3], [row], [1]], np.int32)
    if refused:
        with pytest.raises(OutOfBoundsError, match="index 10 of partition 2"):
            run_kernel(kernel, table, rows)
    else:
        np.testing.assert_array_equal(run_kernel(kernel, table, rows).outputs[0], table[rows[:, 0]])


# ---- the same bits as another dtype ------------------------------------------------------------------------

PAIRS = [
    ("bfloat16", "uint16"), ("bfloat16", "uint8"), ("bfloat16", "float32"), ("float8_e5m2", "uint32"),
    ("float16", "bfloat16"), ("uint32", "bfloat16"), ("uint32", "float8_e5m2"), ("uint8", "float16"),
    ("float32", "float16"), ("int32", "float8_e4m3fn"), ("uint16", "float8_e5m2"),
    ("float8_e4m3fn", "float8_e4m3fn_x4"), ("bfloat16", "float4_e2m1fn_x4"),
]  # fmt: skip


def finite(rng: np.random.Generator, dtype: Any, shape: tuple[int, int]) -> np.ndarray:
    """Values whose bits are numbers in every dtype of the tests: small ones of bfloat16's pattern."""
    bits = rng.integers(0x3C, 0x3F, (shape[0], shape[1] * np.dtype(dtype).itemsize), dtype=np.uint8)
    return bits.view(np.uint8).view(f"u{np.dtype(dtype).itemsize}").view(dtype)


@pytest.mark.parametrize(("declared", "viewed"), PAIRS)
@pytest.mark.parametrize("part", [slice(None), slice(0, 8), slice(4, 8)])
def test_bits_are_written_through_views_of_other_dtypes(rng, declared, viewed, part):
    """Writing a part of a tile through .view(dtype) changes those bytes of every row and no other."""
    held, other = getattr(nl, declared), getattr(nl, viewed)

    def kernel(first: Any, second: Any) -> Any:
        tile = nl.ndarray((8, 32), held, nl.sbuf)
        nisa.dma_copy(tile, first)
        target = tile.view(other)[:, part]
        nisa.dma_copy(target, second.view(other)[:, part])
        copy = nl.ndarray(target.shape, other, nl.sbuf)
        nisa.tensor_copy(copy, target)
        nisa.tensor_copy(tile.view(other)[:, part], copy)
        out = nl.ndarray((8, 32), held, nl.shared_hbm)
        nisa.dma_copy(out, tile)
        return out

    first, second = (finite(rng, held.native, (8, 32)) for _ in range(2))
    (result,) = run_kernel(kernel, first, second, target="trn3").outputs
    row_bytes = 32 * held.itemsize
    expected = first.view(np.uint8).reshape(8, row_bytes).copy()
    columns = np.arange(row_bytes).reshape(-1, other.itemsize)[part].reshape(-1)
    expected[:, columns] = second.view(np.uint8).reshape(8, row_bytes)[:, columns]
    np.testing.assert_array_equal(result.view(np.uint8).reshape(8, row_bytes), expected)


def test_a_packed_tile_is_filled_by_a_transpose_of_pairs(rng):
    """An access pattern of bfloat16 over a packed tile is written by dma_transpose, as MX kernels do."""

    def kernel(x: Any) -> Any:
        packed = nl.ndarray((128, 16), nl.float8_e4m3fn_x4, nl.sbuf)
        pairs = packed.ap([[32, 128], [1, 32]], dtype=nl.bfloat16)
        nisa.dma_transpose(pairs, x.view(nl.bfloat16))
        out = nl.ndarray((128, 16), nl.uint32, nl.shared_hbm)
        nisa.dma_copy(out, packed.view(nl.uint32))
        return out

    x = finite(rng, np.uint16, (32, 128))
    (result,) = run_kernel(kernel, x, target="trn3").outputs
    np.testing.assert_array_equal(result.view(np.uint16), x.T)


def test_a_view_starts_on_its_own_element(rng):
    """A packed view of an odd byte is refused."""

    def kernel(x: Any, *, first: int) -> Any:
        tile = nl.ndarray((8, 32), nl.float8_e4m3fn, nl.sbuf)
        nisa.dma_copy(tile, x)
        out = nl.ndarray((8, 4), nl.uint32, nl.shared_hbm)
        nisa.dma_copy(out, tile[:, first : first + 16].view(nl.uint32))
        return out

    x = finite(rng, ml_dtypes.float8_e4m3fn, (8, 32))
    (result,) = run_kernel(kernel, x, first=4, target="trn3").outputs
    np.testing.assert_array_equal(result, np.ascontiguousarray(x[:, 4:20]).view(np.uint32))
    with pytest.raises(ConstraintError, match="do not divide into uint32"):
        run_kernel(kernel, x, first=2, target="trn3")


@pytest.mark.parametrize(
    ("value", "warned", "refused"), [(0, False, False), (0.0, True, False), (2.0, False, True)]
)
def test_memset_of_integers_takes_integers(run_tiles, value, warned, refused):
    """A float is refused, but for the zero that public kernels write, which is warned of."""

    def body(d: Any, t: Any) -> None:
        nisa.memset(d, value)

    x = np.ones((4, 4), np.uint8)
    if refused:
        with pytest.raises(ConstraintError, match="is no integer"):
            run_tiles(body, x, dtype=nl.uint8)
    else:
        run = run_tiles(body, x, dtype=nl.uint8)
        assert not run.outputs[0].any()
        assert bool(run.warnings) is warned
