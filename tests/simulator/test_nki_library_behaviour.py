"""Behaviour that AWS's public kernels force: each found by running them, each pinned here by a kernel of our own."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import pytest

from neuron_port.simulator import (
    ConstraintError,
    OutOfBoundsError,
    OutputError,
    UnwrittenReadError,
    run_kernel,
    to_hbm,
)
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl

bf16 = ml_dtypes.bfloat16
P = 128


def stored(tile, dtype=None):
    """An output with the tile's contents."""
    out = nl.ndarray(tile.shape, dtype or tile.dtype, nl.shared_hbm)
    nisa.dma_copy(out, tile)
    return out


# ---- elements that nothing has written -------------------------------------------------------------------


def padded(x, rows=P, columns=None):
    """x in the corner of a larger tile whose rest is never written."""
    tile = nl.ndarray((rows, columns or x.shape[1]), x.dtype)
    nisa.dma_copy(tile[0 : x.shape[0], 0 : x.shape[1]], x)
    return tile


def test_a_transpose_of_a_padded_tile_serves_its_written_part(rng):
    """The transpose of a partly written tile may be computed whole; only its padding is refused in an output."""
    x = rng.standard_normal((40, 64)).astype(np.float32)

    def kernel(x, columns):
        turned = nl.ndarray((64, P), x.dtype, nl.psum)
        nisa.nc_transpose(turned, padded(x))
        copied = nl.ndarray((64, P), x.dtype)
        nisa.tensor_copy(copied, turned)
        return stored(copied[:, 0:columns])

    np.testing.assert_array_equal(run_kernel(kernel, x, columns=40).outputs[0], x.T)
    with pytest.raises(UnwrittenReadError, match="nc_transpose: data `tile`"):
        run_kernel(kernel, x, columns=41)


def test_a_matmul_of_a_padded_operand_serves_its_written_columns(rng):
    """Unwritten columns of stationary spoil rows of the product, of moving its columns, and nothing else."""
    left, right = rng.standard_normal((2, P, 16)).astype(np.float32)

    def kernel(left, right, rows, columns):
        psum = nl.ndarray((32, 32), nl.float32, nl.psum)
        nisa.nc_matmul(psum, padded(left, columns=32), padded(right, columns=32))
        copied = nl.ndarray((32, 32), nl.float32)
        nisa.tensor_copy(copied, psum)
        return stored(copied[0:rows, 0:columns])

    product = run_kernel(kernel, left, right, rows=16, columns=16).outputs[0]
    np.testing.assert_allclose(product, left.T @ right, rtol=1e-4, atol=1e-4)
    with pytest.raises(UnwrittenReadError, match="stationary"):
        run_kernel(kernel, left, right, rows=17, columns=16)
    with pytest.raises(UnwrittenReadError, match=r"stationary|moving"):
        run_kernel(kernel, left, right, rows=16, columns=17)


def test_an_unwritten_row_of_the_contraction_spoils_the_whole_product(rng):
    """A sum over partitions of which one was never written is refused wherever it is used."""
    left, right = rng.standard_normal((2, P - 1, 16)).astype(np.float32)

    def kernel(left, right):
        psum = nl.ndarray((16, 16), nl.float32, nl.psum)
        nisa.nc_matmul(psum, padded(left), padded(right))
        copied = nl.ndarray((16, 16), nl.float32)
        nisa.tensor_copy(copied, psum)
        return stored(copied[0:1, 0:1])

    with pytest.raises(UnwrittenReadError, match="some of its elements"):
        run_kernel(kernel, left, right)


def test_garbage_stays_garbage_when_a_matmul_adds_to_it(rng):
    """Accumulating onto PSUM that holds the product of unwritten elements does not make it defined."""
    left, right = rng.standard_normal((2, P, 16)).astype(np.float32)

    def kernel(left, right, columns):
        psum = nl.ndarray((16, 32), nl.float32, nl.psum)
        stationary = padded(left)
        nisa.nc_matmul(psum, stationary, padded(right, columns=32))
        whole = nl.ndarray((P, 32), nl.float32)
        nisa.memset(whole, 1.0)
        nisa.nc_matmul(psum, stationary, whole)
        copied = nl.ndarray((16, 32), nl.float32)
        nisa.tensor_copy(copied, psum)
        return stored(copied[:, 0:columns])

    sums = run_kernel(kernel, left, right, columns=16).outputs[0]
    np.testing.assert_allclose(sums, left.T @ (right + 1), rtol=1e-4, atol=1e-3)
    with pytest.raises(UnwrittenReadError, match="moving"):
        run_kernel(kernel, left, right, columns=17)


def test_a_select_that_leaves_the_padding_out_defines_it(rng):
    """affine_select over a padded row replaces what was never written, and the result is an ordinary tile."""
    x = rng.standard_normal((4, 10)).astype(np.float32)

    def kernel(x, kept):
        tile = padded(x, rows=4, columns=16)
        chosen = nl.ndarray((4, 16), x.dtype)
        nisa.affine_select(
            chosen,
            pattern=[[-1, 16]],
            channel_multiplier=0,
            on_true_tile=tile,
            on_false_value=0.0,
            cmp_op=nl.greater_equal,
            offset=kept - 1,
        )
        return stored(chosen)

    expected = np.zeros((4, 16), np.float32)
    expected[:, :10] = x
    np.testing.assert_array_equal(run_kernel(kernel, x, kept=10).outputs[0], expected)
    with pytest.raises(UnwrittenReadError, match="on_true_tile"):
        run_kernel(kernel, x, kept=11)


def test_a_shuffle_carries_written_rows_only(rng):
    """Moving row 16 to row 0 of a quadrant leaves the unwritten rows between them out."""
    x = rng.standard_normal((1, 8)).astype(np.float32)

    def kernel(x, rows):
        tile = nl.ndarray((32, 8), x.dtype)
        nisa.dma_copy(tile[0:1], x)
        nisa.dma_copy(tile[16:17], x)
        nisa.nc_stream_shuffle(dst=tile, src=tile, shuffle_mask=[16] + [255] * 31)
        return stored(tile[0:rows])

    np.testing.assert_array_equal(run_kernel(kernel, x, rows=1).outputs[0], x)
    with pytest.raises((UnwrittenReadError, OutputError)):
        run_kernel(kernel, x, rows=2)


@pytest.mark.parametrize("scatters", [True, False])
def test_gathers_and_scatters_carry_garbage_by_row(scatters):
    """Only the rows that a gather or scatter moves matter, each with its own unwritten elements."""
    order = np.array([2, 0, 3, 1], np.int32)[:, None]

    def kernel(x, order, rows):
        index = nl.ndarray((4, 1), nl.int32)
        nisa.dma_copy(index, order)
        tile = nl.ndarray((4, 8), x.dtype)
        nisa.dma_copy(tile[0:3], x)
        table = nl.ndarray((5, 8), x.dtype, nl.hbm)
        result = nl.ndarray((5, 8), x.dtype)
        if scatters:
            nisa.dma_copy(table.ap([[8, 4], [1, 8]], vector_offset=index), tile)
            nisa.dma_copy(result, table)
        else:
            nisa.dma_copy(table[0:3], tile[0:3])
            nisa.dma_copy(result[0:4], table.ap([[8, 4], [1, 8]], vector_offset=index))
        return stored(result[rows : rows + 1])

    x = np.arange(24, dtype=np.float32).reshape(3, 8)
    good, bad = (2, 1) if scatters else (3, 2)
    moved = run_kernel(kernel, x, order, rows=good).outputs[0]
    np.testing.assert_array_equal(moved[0], x[0 if scatters else 1])
    with pytest.raises(UnwrittenReadError):
        run_kernel(kernel, x, order, rows=bad)


def test_an_address_may_lie_on_any_partition():
    """A (1, 1) index is read from any partition, as no engine walks it; tiles that engines read start at 0, 32, ..."""
    table = np.arange(40, dtype=np.float32).reshape(10, 4)

    def kernel(table, order, add):
        index = nl.ndarray((4, 1), nl.int32)
        nisa.dma_copy(index, order)
        row = nl.ndarray((1, 4), table.dtype)
        if add:
            nisa.tensor_scalar(index[3:4], index[3:4], nl.add, 1)
        nisa.dma_copy(row, table.ap([[4, 1], [1, 4]], scalar_offset=index[3:4], indirect_dim=0))
        return stored(row)

    order = np.array([[1], [2], [3], [7]], np.int32)
    np.testing.assert_array_equal(run_kernel(kernel, table, order, add=False).outputs[0], table[7:8])
    with pytest.raises(ConstraintError, match="starts at partition 3"):
        run_kernel(kernel, table, order, add=True)


def test_an_input_is_not_updated_with_garbage():
    """A cache that the kernel updates in place is observed like an output."""

    def kernel(cache, x, columns):
        tile = padded(x, rows=4, columns=8)
        copied = nl.ndarray((4, 8), x.dtype)
        nisa.tensor_copy(copied, tile)
        nisa.dma_copy(cache[:, 0:columns], copied[:, 0:columns])
        return cache

    x = np.ones((4, 5), np.float32)
    cache = to_hbm(np.zeros((4, 8), np.float32), mutable=True)
    run_kernel(kernel, cache, x, columns=5)
    np.testing.assert_array_equal(cache.numpy()[:, :5], x)
    with pytest.raises(UnwrittenReadError, match=r"`tile`.*`cache`"):
        run_kernel(kernel, cache, x, columns=6)


def test_an_unwritten_index_is_refused_at_once():
    """An address is never guessed: reading it from an unwritten part of a tile stops there."""
    table = np.arange(40, dtype=np.float32).reshape(10, 4)

    def kernel(table):
        index = nl.ndarray((4, 1), nl.int32)
        nisa.memset(index[0:2], 1)
        rows = nl.ndarray((4, 4), table.dtype)
        nisa.dma_copy(rows, table.ap([[4, 4], [1, 4]], vector_offset=index))
        return stored(rows[0:2])

    with pytest.raises(UnwrittenReadError, match="vector_offset"):
        run_kernel(kernel, table)


def test_reading_padding_warns_where_it_is_read():
    """A read of unwritten elements that never matters leaves a warning with its line."""

    def kernel(x):
        tile = padded(x, rows=4, columns=8)
        doubled = nl.ndarray((4, 8), x.dtype)
        nisa.tensor_scalar(doubled, tile, nl.multiply, 2.0)
        return stored(doubled[:, 0:5])

    run = run_kernel(kernel, np.ones((4, 5), np.float32))
    (warning,) = run.warnings
    assert "test_nki_library_behaviour.py" in warning
    assert "never written" in warning


# ---- access patterns -------------------------------------------------------------------------------------


def test_a_pattern_beyond_its_tensor_is_refused_where_it_is_used():
    """A loop may build the view of a last, incomplete round that an `if` then leaves out."""

    def kernel(x, guard):
        tile = nl.ndarray(x.shape, x.dtype)
        nisa.dma_copy(tile, x)
        half = nl.ndarray((4, 3), x.dtype)
        for start in (0, 3, 6):
            view = tile.ap([[6, 4], [1, 3]], offset=start)
            assert view.shape == (4, 3)
            if start + 3 <= guard:
                nisa.tensor_copy(half, view)
        return stored(half)

    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    np.testing.assert_array_equal(run_kernel(kernel, x, guard=6).outputs[0], x[:, 3:])
    with pytest.raises(OutOfBoundsError, match=r"ap: .* leaves `tile`"):
        run_kernel(kernel, x, guard=9)


def test_a_destination_of_step_zero_keeps_the_last_element(rng):
    """Results that nobody needs go to one column; the sum over them is exact all the same."""
    x = rng.standard_normal((P, 40)).astype(np.float32)

    def kernel(x):
        tile = nl.ndarray(x.shape, x.dtype)
        nisa.dma_copy(tile, x)
        unused, total = nl.ndarray((P, 1), x.dtype), nl.ndarray((P, 1), nl.float32)
        nisa.activation_reduce(
            dst=unused.ap([[1, P], [0, 40]]), op=nl.square, data=tile, reduce_op=nl.add, reduce_res=total
        )
        return stored(total), stored(unused)

    total, last = run_kernel(kernel, x).outputs
    np.testing.assert_allclose(total[:, 0], (x**2).sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(last[:, 0], x[:, -1] ** 2, rtol=1e-6)


# ---- DMA -------------------------------------------------------------------------------------------------


def test_a_core_without_work_may_take_an_empty_slice():
    """An empty slice of HBM is a view like another as long as no instruction takes it."""

    def kernel(x, copy):
        nothing = x[nl.ds(2, 0)]
        if copy:
            nisa.dma_copy(nl.ndarray((1, 3), x.dtype), nothing)
        tile = nl.ndarray(x.shape, x.dtype)
        nisa.dma_copy(tile, x)
        return stored(tile)

    x = np.ones((4, 3), np.float32)
    np.testing.assert_array_equal(run_kernel(kernel, x, copy=False).outputs[0], x)
    with pytest.raises(ConstraintError, match=r"src `x`.* has 0"):
        run_kernel(kernel, x, copy=True)


def test_an_empty_slice_on_chip_is_refused():
    """On chip an empty slice is always a mistake."""

    def kernel(x):
        tile = nl.ndarray((4, 3), x.dtype)
        return stored(tile[:, 2:2])

    with pytest.raises(OutOfBoundsError, match="not empty"):
        run_kernel(kernel, np.ones((4, 3), np.float32))


def test_dge_mode_by_its_number_warns():
    """Kernels of NKI 0.3 give the number of a descriptor mode; other numbers are refused."""

    def kernel(x, mode):
        tile = nl.ndarray(x.shape, x.dtype)
        nisa.dma_copy(tile, x, dge_mode=mode)
        return stored(tile)

    x = np.ones((4, 3), np.float32)
    assert "nisa.dge_mode.none" in run_kernel(kernel, x, mode=3).warnings[0]
    with pytest.raises(ConstraintError, match="dge_mode is 7"):
        run_kernel(kernel, x, mode=7)


@pytest.mark.parametrize("columns", [1, 2])
def test_dma_transpose_gathers_rows_down_the_columns_of_its_indices(rng, columns):
    """Row k of the source is flat index k of the indices read column by column; the result is transposed."""
    table = rng.standard_normal((300, 64)).astype(bf16)
    indices = rng.integers(0, 300, (P, columns)).astype(np.uint32)

    def kernel(table, indices):
        index = nl.ndarray(indices.shape, nl.uint32)
        nisa.dma_copy(index, indices)
        turned = nl.ndarray((64, P * columns), table.dtype)
        source = table.ap([[64, P * columns], [1, 64]], vector_offset=index, indirect_dim=0)
        nisa.dma_transpose(turned, source, axes=(1, 0))
        return stored(turned)

    np.testing.assert_array_equal(
        run_kernel(kernel, table, indices).outputs[0], table[indices.T.reshape(-1)].T
    )
    beyond = indices.copy()
    beyond[5, 0] = 300
    with pytest.raises(OutOfBoundsError, match="index 300"):
        run_kernel(kernel, table, beyond)


@pytest.mark.parametrize(
    ("rows", "dtype", "complaint"),
    [(24, bf16, "no multiple of 16"), (32, np.float32, "not of 2 bytes")],
)
def test_a_gathering_transpose_keeps_the_rules_of_its_descriptors(rows, dtype, complaint):
    """Multiples of 16 rows of 2-byte elements; hwdge has no indices."""

    def kernel(table, index, mode):
        tile = nl.ndarray(index.shape, nl.uint32)
        nisa.dma_copy(tile, index)
        turned = nl.ndarray((8, index.shape[0]), table.dtype)
        source = table.ap([[8, index.shape[0]], [1, 8]], vector_offset=tile)
        nisa.dma_transpose(turned, source, dge_mode=mode)
        return stored(turned)

    good = np.zeros((32, 1), np.uint32)
    run_kernel(kernel, np.ones((40, 8), bf16), good, mode=nisa.dge_mode.swdge)
    with pytest.raises(ConstraintError, match=complaint):
        run_kernel(kernel, np.ones((40, 8), dtype), np.zeros((rows, 1), np.uint32), mode=nisa.dge_mode.swdge)
    with pytest.raises(ConstraintError, match="hwdge is not swdge"):
        run_kernel(kernel, np.ones((40, 8), bf16), good, mode=nisa.dge_mode.hwdge)


def test_a_copy_takes_one_index_for_each_partition():
    """Columns of indices are for dma_transpose; a copy refuses them by name."""

    def kernel(table, indices):
        index = nl.ndarray(indices.shape, nl.int32)
        nisa.dma_copy(index, indices)
        rows = nl.ndarray((8, 4), table.dtype)
        nisa.dma_copy(rows, table.ap([[4, 8], [1, 4]], vector_offset=index))
        return stored(rows)

    table = np.arange(40, dtype=np.float32).reshape(10, 4)
    one = np.arange(8, dtype=np.int32)[:, None]
    np.testing.assert_array_equal(run_kernel(kernel, table, one).outputs[0], table[:8])
    with pytest.raises(ConstraintError, match=r"must have shape \(8, 1\)"):
        run_kernel(kernel, table, one.reshape(4, 2))


# ---- records ---------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Sizes(nl.NKIObject):
    rows: int
    columns: int
    label = "default"


def test_records_take_undeclared_fields_and_may_lack_declared_ones():
    """A keyword without an annotation sets an attribute; a field that was not given is None."""
    sizes = Sizes(rows=3, label="mine", depth=7)
    assert (sizes.rows, sizes.label, sizes.depth) == (3, "mine", 7)
    assert Sizes(1, 2).columns == 2
    assert sizes.columns is None


def test_records_with_their_own_constructor_stay_strict():
    """A class that writes its own __init__ keeps its signature."""

    class Counter(nl.NKIObject):
        def __init__(self, start):
            self.start = start

    assert Counter(start=2).start == 2
    with pytest.raises(TypeError, match="step"):
        Counter(start=2, step=1)


# ---- enums and dtypes ------------------------------------------------------------------------------------


def test_generations_compare_in_their_order():
    """Kernels branch on `nisa.get_nc_version() >= nisa.nc_version.gen3`."""

    def kernel(x):
        assert nisa.get_nc_version() >= nisa.nc_version.gen3
        assert not nisa.get_nc_version() < nisa.nc_version.gen3
        tile = nl.ndarray(x.shape, x.dtype)
        nisa.dma_copy(tile, x)
        return stored(tile)

    run_kernel(kernel, np.ones((4, 3), np.float32), target="trn2")
    with pytest.raises(AssertionError):
        run_kernel(kernel, np.ones((4, 3), np.float32), target="trn1")


def test_dtypes_survive_copies_and_pickling():
    """A dtype inside a configuration that is deep-copied or pickled is still the same dtype."""
    import copy
    import pickle

    assert copy.deepcopy({"dtype": nl.bfloat16})["dtype"] is nl.bfloat16
    assert pickle.loads(pickle.dumps(nl.float8_e4m3)) is nl.float8_e4m3
