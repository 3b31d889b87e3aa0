"""DMA: copies, casts, gathers, scatters, transposes; and what the descriptors cannot do."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from neuron_port.simulator import ConstraintError, OutOfBoundsError, UnwrittenReadError, run_kernel, to_hbm
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl

bf16 = ml_dtypes.bfloat16


def copy_kernel(dtype=None, view=lambda t: t, shape=None):
    """A kernel that copies view(x) to SBUF and the tile to the output."""

    def kernel(x):
        tile = nl.ndarray(shape or x.shape, dtype or x.dtype)
        nisa.dma_copy(tile, view(x))
        out = nl.ndarray(tile.shape, tile.dtype, nl.shared_hbm)
        nisa.dma_copy(out, tile)
        return out

    return kernel


@pytest.mark.parametrize("source", [np.float32, bf16, np.float16, np.int32, np.uint8, np.int8])
@pytest.mark.parametrize("target", ["float32", "bfloat16", "int32", "int8", "float8_e4m3"])
def test_copies_cast_through_float32(rng, source, target):
    """A copy between dtypes rounds through float32; equal dtypes keep their values."""
    x = rng.integers(0, 100, (4, 6)).astype(source)
    result = run_kernel(copy_kernel(getattr(nl, target)), x).outputs[0]
    np.testing.assert_array_equal(result, x.astype(np.float32).astype(getattr(nl, target).native))


def test_held_inputs_equal_plain_inputs(rng):
    """A `to_hbm` handle gives the same results as the array it was made from."""
    x = rng.standard_normal((4, 6)).astype(bf16)
    np.testing.assert_array_equal(run_kernel(copy_kernel(), to_hbm(x)).outputs[0], x)


def test_broadcast_over_partitions_from_hbm(rng):
    """A row is loaded into every partition by stride 0."""
    x = rng.standard_normal((1, 6)).astype(bf16)
    kernel = copy_kernel(view=lambda t: t.broadcast(0, 16), shape=(16, 6))
    np.testing.assert_array_equal(run_kernel(kernel, x).outputs[0], np.repeat(x, 16, axis=0))
    by_pattern = copy_kernel(view=lambda t: t.ap([[0, 16], [1, 6]]), shape=(16, 6))
    np.testing.assert_array_equal(run_kernel(by_pattern, x).outputs[0], np.repeat(x, 16, axis=0))


def test_sizes_must_agree(rng):
    """DMA pairs elements in order and never broadcasts."""
    with pytest.raises(ConstraintError, match=r"dst .* has 24 elements, src .* has 12"):
        run_kernel(copy_kernel(view=lambda t: t[0:2]), rng.standard_normal((4, 6)).astype(np.float32))


def gather_kernel(form, rows, dtype=None, **options):
    """Gather rows of `data` by indices in SBUF, with a fill of 7 for skipped rows."""

    def kernel(data, indices):
        index = nl.ndarray((rows, 1), nl.int32)
        nisa.dma_copy(index, indices)
        width = data.shape[1]
        tile = nl.ndarray((rows, width), dtype or data.dtype)
        nisa.memset(tile, 7)
        source = (
            data.ap([[width, rows], [1, width]], vector_offset=index)
            if form == "ap"
            else data.vector_select(0, index)
        )
        nisa.dma_copy(tile, source, **options)
        out = nl.ndarray(tile.shape, tile.dtype, nl.shared_hbm)
        nisa.dma_copy(out, tile)
        return out

    return kernel


@pytest.mark.parametrize("form", ["ap", "vector_select"])
@pytest.mark.parametrize("dtype", [np.float32, bf16, np.int32])
def test_gather_reads_one_row_per_partition(rng, form, dtype):
    """Partition p receives row index[p], for both ways to write it and plain or held inputs."""
    data = rng.integers(0, 99, (20, 6)).astype(dtype)
    indices = rng.integers(0, 20, (9, 1)).astype(np.int32)
    expected = data[indices[:, 0]]
    np.testing.assert_array_equal(run_kernel(gather_kernel(form, 9), data, indices).outputs[0], expected)
    np.testing.assert_array_equal(
        run_kernel(gather_kernel(form, 9), to_hbm(data), indices).outputs[0], expected
    )


def test_gather_of_a_part_of_each_row(rng):
    """The offset and the free pattern select columns of the chosen rows; a cast applies."""
    data = rng.standard_normal((20, 6)).astype(bf16)

    def kernel(data, indices):
        index = nl.ndarray((5, 1), nl.uint32)
        nisa.dma_copy(index, indices)
        tile = nl.ndarray((5, 2), nl.float32)
        nisa.dma_copy(tile, data.ap([[6, 5], [2, 2]], offset=1, vector_offset=index, indirect_dim=0))
        out = nl.ndarray((5, 2), nl.float32, nl.shared_hbm)
        nisa.dma_copy(out, tile)
        return out

    indices = np.array([[3], [19], [0], [3], [7]], dtype=np.uint32)
    expected = data[indices[:, 0]][:, [1, 3]].astype(np.float32)
    np.testing.assert_array_equal(run_kernel(kernel, data, indices).outputs[0], expected)


def test_gather_out_of_bounds(rng):
    """An index outside the tensor is refused, or leaves its row untouched with oob_mode.skip."""
    data = rng.standard_normal((20, 6)).astype(np.float32)
    indices = np.array([[3], [20], [0]], dtype=np.int32)
    with pytest.raises(OutOfBoundsError, match="index 20 of partition 1"):
        run_kernel(gather_kernel("ap", 3), data, indices)
    result = run_kernel(gather_kernel("ap", 3, oob_mode=nisa.oob_mode.skip), data, indices).outputs[0]
    np.testing.assert_array_equal(result, np.stack([data[3], np.full(6, 7, np.float32), data[0]]))


def scatter(cache, rows, indices):
    index = nl.ndarray((rows.shape[0], 1), nl.int32)
    tile = nl.ndarray(rows.shape, rows.dtype)
    nisa.dma_copy(index, indices)
    nisa.dma_copy(tile, rows)
    width = rows.shape[1]
    nisa.dma_copy(cache.ap([[width, rows.shape[0]], [1, width]], vector_offset=index), tile)
    return cache


def test_scatter_updates_a_mutable_input(rng):
    """A mutable handle is written in place and read back; the caller's array stays."""
    cache = rng.standard_normal((10, 6)).astype(bf16)
    rows = rng.standard_normal((3, 6)).astype(bf16)
    indices = np.array([[2], [9], [5]], dtype=np.int32)
    handle = to_hbm(cache, mutable=True)
    before = cache.copy()
    run_kernel(scatter, handle, rows, indices)
    expected = cache.copy()
    expected[[2, 9, 5]] = rows
    np.testing.assert_array_equal(handle.numpy(), expected)
    np.testing.assert_array_equal(cache, before)


def test_inputs_are_read_only(rng):
    """Writing a plain input is refused with the cure."""
    with pytest.raises(ConstraintError, match="mutable=True"):
        run_kernel(
            scatter, np.zeros((10, 6), np.float32), np.ones((3, 6), np.float32), np.zeros((3, 1), np.int32)
        )


def test_scalar_offset_moves_the_start(rng):
    """A (1, 1) index or a register selects rows when the instruction runs."""
    data = rng.standard_normal((20, 6)).astype(np.float32)

    def kernel(data, position):
        index = nl.ndarray((1, 1), nl.int32)
        nisa.dma_copy(index, position)
        tile = nl.ndarray((12, 6), nl.float32)
        nisa.dma_copy(tile[0:4], data.ap([[6, 4], [1, 6]], scalar_offset=index, indirect_dim=0))
        nisa.dma_copy(tile[4:8], data.ap([[0, 4], [1, 6]], scalar_offset=index))
        register = nisa.register_alloc(0)
        nisa.register_load(register, index)
        nisa.dma_copy(tile[8:12], data.ap([[6, 4], [1, 6]], scalar_offset=register))
        out = nl.ndarray((12, 6), nl.float32, nl.shared_hbm)
        nisa.dma_copy(out, tile)
        return out

    result = run_kernel(kernel, data, np.array([[11]], np.int32)).outputs[0]
    np.testing.assert_array_equal(result, np.concatenate([data[11:15], data[[11] * 4], data[11:15]]))
    with pytest.raises(OutOfBoundsError):
        run_kernel(kernel, data, np.array([[17]], np.int32))


def test_dynamic_select_on_chip_and_in_hbm(rng):
    """.select(dim, tile) picks one element of a dimension at run time."""
    data = rng.standard_normal((8, 5, 6)).astype(np.float32)

    def kernel(data, position):
        index = nl.ndarray((1, 1), nl.int32)
        nisa.dma_copy(index, position)
        tile = nl.ndarray((8, 5, 6), nl.float32)
        nisa.dma_copy(tile, data)
        chosen = nl.ndarray((8, 6), nl.float32)
        nisa.tensor_copy(chosen, tile.select(1, index))
        row = nl.ndarray((5, 6), nl.float32)
        nisa.dma_copy(row, data.select(0, index))
        out, second = (
            nl.ndarray((8, 6), nl.float32, nl.shared_hbm),
            nl.ndarray((5, 6), nl.float32, nl.shared_hbm),
        )
        nisa.dma_copy(out, chosen)
        nisa.dma_copy(second, row)
        return out, second

    chosen, row = run_kernel(kernel, data, np.array([[3]], np.int32)).outputs
    np.testing.assert_array_equal(chosen, data[:, 3])
    np.testing.assert_array_equal(row, data[3])


def test_indirect_views_go_only_where_they_are_resolved(rng):
    """A gather view is no operand of a compute instruction, and a vector offset needs HBM."""

    def computes(data, indices):
        index = nl.ndarray((4, 1), nl.int32)
        nisa.dma_copy(index, indices)
        tile = nl.ndarray((4, 6), nl.float32)
        nisa.tensor_tensor(tile, data.vector_select(0, index), tile, nl.add)

    def on_chip(data, indices):
        index = nl.ndarray((4, 1), nl.int32)
        nisa.dma_copy(index, indices)
        nl.ndarray((4, 6), nl.float32).vector_select(0, index)

    arguments = np.zeros((9, 6), np.float32), np.zeros((4, 1), np.int32)
    with pytest.raises(Exception, match="run-time address"):
        run_kernel(computes, *arguments)
    with pytest.raises(ConstraintError, match="must be in HBM"):
        run_kernel(on_chip, *arguments)


def test_psum_is_out_of_reach():
    """DMA neither reads nor writes PSUM."""

    def kernel(x):
        psum = nl.ndarray(x.shape, x.dtype, nl.psum)
        nisa.dma_copy(psum, x)

    with pytest.raises(ConstraintError, match="PSUM, which DMA cannot access"):
        run_kernel(kernel, np.zeros((4, 6), np.float32))


@pytest.mark.parametrize(
    ("target", "dtype", "fine"),
    [
        ("trn2", nl.float32, True),
        ("trn2", nl.bfloat16, False),
        ("trn1", nl.float32, False),
    ],
)
def test_hardware_descriptors_move_raw_bytes(target, dtype, fine):
    """hwdge exists from NeuronCore-v3 on and cannot cast."""

    def kernel(x):
        tile = nl.ndarray(x.shape, dtype)
        nisa.dma_copy(tile, x, dge_mode=nisa.dge_mode.hwdge)
        out = nl.ndarray(x.shape, dtype, nl.shared_hbm)
        nisa.dma_copy(out, tile)
        return out

    if fine:
        run_kernel(kernel, np.ones((4, 6), np.float32), target=target)
    else:
        with pytest.raises(ConstraintError, match="hwdge"):
            run_kernel(kernel, np.ones((4, 6), np.float32), target=target)


@pytest.mark.parametrize("shape", [(16, 70), (2, 8, 100), (2, 3, 8, 100)])
def test_dma_transpose_exchanges_first_and_last(rng, shape):
    """2-D, 3-D and 4-D transposes of 2- and 4-byte data."""
    axes = {2: (1, 0), 3: (2, 1, 0), 4: (3, 1, 2, 0)}[len(shape)]
    x = rng.standard_normal(shape).astype(bf16)

    def kernel(x, wrong=False):
        turned = [shape[axis] for axis in axes]
        tile = nl.ndarray([*turned[:-1], turned[-1] + wrong], x.dtype)
        nisa.dma_transpose(tile, x, axes)
        out = nl.ndarray(turned, x.dtype, nl.shared_hbm)
        nisa.dma_copy(out, tile)
        return out

    np.testing.assert_array_equal(run_kernel(kernel, x).outputs[0], x.transpose(axes))
    with pytest.raises(ConstraintError, match="must have shape"):
        run_kernel(kernel, x, wrong=1)
    wide = x.astype(np.float32)
    np.testing.assert_array_equal(run_kernel(kernel, wide).outputs[0], wide.transpose(axes))
    with pytest.raises(ConstraintError, match="2 or 4 bytes"):
        run_kernel(kernel, x.astype(np.int8))


def test_private_hbm_must_be_written_before_it_is_read():
    """Unwritten HBM is as unreadable as an unwritten tile."""

    def kernel(x):
        scratch = nl.ndarray((4, 6), nl.float32, nl.hbm)
        nisa.dma_copy(scratch[0:3], x[0:3])
        out = nl.ndarray((4, 6), nl.float32, nl.shared_hbm)
        nisa.dma_copy(out, scratch)
        return out

    with pytest.raises(UnwrittenReadError, match="some of its elements"):
        run_kernel(kernel, np.zeros((4, 6), np.float32))


def test_traffic_is_counted_per_side(rng):
    """HBM bytes count in the dtype of the HBM side."""
    run = run_kernel(copy_kernel(nl.float32), rng.standard_normal((4, 6)).astype(bf16))
    assert (run.hbm_read_bytes, run.hbm_write_bytes) == (4 * 6 * 2, 4 * 6 * 4)
