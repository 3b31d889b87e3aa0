"""Properties of moves: DMA, transposes, gathers, shuffles and registers carry values to exactly one place."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from property_reference import NUMPY, float32, rounded
from property_tiles import (
    check,
    covers,
    few_properties,
    make_values,
    partition_counts,
    properties,
    results,
    seeds,
    shapes,
    tiles,
    value_names,
)

from neuron_port.simulator import run_kernel
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl

# ---- DMA ---------------------------------------------------------------------------------------------------


@st.composite
def transfers(draw: Any) -> Any:
    """Source and destination of equal element counts, each in HBM or SBUF, in any views and dtypes."""
    shape = draw(shapes())
    flat = draw(st.sampled_from([shape, (shape[0], int(np.prod(shape[1:])))]))
    source = draw(tiles(shape, psum=False, starts=range(128 - shape[0] + 1)))
    dtype = draw(st.one_of(st.just(source.dtype), value_names))
    dst = draw(results(flat, dtype, psum=False, starts=range(128 - shape[0] + 1)))
    return dst, source


@covers("dma_copy")
@given(transfers())
@properties
def test_dma_copy_between_tiles_casts_through_float32(case: Any) -> None:
    """Any partition start, view and dtype: bits between equal dtypes, one rounding otherwise."""
    dst, source = case
    exact = source.logical if source.dtype == dst.dtype else float32(source.logical)
    check(nisa.dma_copy, dst, [source], exact)


@covers("dma_copy")
@given(transfers(), st.booleans())
@properties
def test_dma_copy_reads_and_writes_views_of_hbm(case: Any, from_view: bool) -> None:
    """Views of HBM tensors are read and written like views on chip; the rest of the tensor stays."""
    dst, source = case

    def kernel(data: Any, prior: Any) -> Any:
        out = nl.ndarray(prior.shape, getattr(nl, dst.dtype), nl.shared_hbm)
        nisa.dma_copy(out, prior)
        staged = nl.ndarray(source.layout.shape, getattr(nl, source.dtype), nl.sbuf)
        nisa.dma_copy(staged, source.layout.view(data))
        nisa.dma_copy(dst.layout.view(out), staged if from_view else source.layout.view(data))
        return out

    whole = np.full(source.layout.allocated, 0.0)
    base = source.layout.mirror(whole, repeated=False)
    base[...] = source.logical[tuple(slice(0, size) for size in base.shape)]
    prior = make_values(dst.layout.allocated, dst.dtype, 1)
    got = run_kernel(kernel, whole.astype(NUMPY[source.dtype]), prior.astype(NUMPY[dst.dtype])).outputs[0]
    expected = prior.copy()
    through = source.logical if source.dtype == dst.dtype else float32(source.logical)
    dst.layout.mirror(expected)[...] = rounded(through, dst.dtype).reshape(dst.layout.shape)
    if "tfloat32" in (dst.dtype, source.dtype):  # inputs travel in float32 and may hold more bits
        expected, got = rounded(expected, "tfloat32"), rounded(got, "tfloat32")
    np.testing.assert_array_equal(got.astype(np.float64), expected)


@covers("dma_copy")
@given(transfers(), st.booleans())
@properties
def test_dma_copy_loads_inputs_of_any_dtype(case: Any, large: bool) -> None:
    """A whole tile filled from an input, small or large, holds its values as the tile's dtype has them."""
    dst, source = case
    shape = (*source.layout.shape, 64) if large else source.layout.shape
    values = make_values(shape, source.dtype, 7)

    def kernel(data: Any) -> Any:
        tile = nl.ndarray(shape, getattr(nl, dst.dtype), nl.sbuf)
        nisa.dma_copy(tile, data)
        out = nl.ndarray(shape, tile.dtype, nl.shared_hbm)
        nisa.dma_copy(out, tile)
        return out

    got = run_kernel(kernel, values.astype(NUMPY[source.dtype])).outputs[0].astype(np.float64)
    through = values if source.dtype == dst.dtype else float32(values)
    np.testing.assert_array_equal(got, rounded(through, dst.dtype))


@st.composite
def row_moves(draw: Any) -> Any:
    """A table [R, N], row indices [P, 1] of which some may lie outside, and rows [P, N]."""
    partitions, rows = draw(st.integers(1, 128)), draw(st.integers(1, 40))
    free = draw(st.integers(1, 12))
    seed = draw(seeds)
    rng = np.random.default_rng(seed)
    indices = rng.integers(0, rows, (partitions, 1))
    return (
        make_values((rows, free), "float32", seed),
        indices,
        make_values((partitions, free), "float32", seed + 1),
    )


@covers("dma_copy")
@given(row_moves(), st.booleans(), st.sampled_from([np.int32, np.uint32]))
@properties
def test_dma_copy_gathers_rows_and_skips_those_outside(case: Any, skips: bool, index_dtype: Any) -> None:
    """Partition p gets row index[p]; with oob_mode.skip a row outside leaves the partition as it was."""
    table, indices, rows = case
    partitions, free = rows.shape
    indices = np.where(np.arange(partitions)[:, None] % 3 == 1, 2**31 - 1 if skips else indices, indices)

    def kernel(data: Any, index: Any, prior: Any) -> Any:
        tile = nl.ndarray((partitions, free), nl.float32, nl.sbuf)
        index_tile = nl.ndarray((partitions, 1), index.dtype, nl.sbuf)
        nisa.dma_copy(tile, prior)
        nisa.dma_copy(index_tile, index)
        source = data.ap(pattern=[[free, partitions], [1, free]], vector_offset=index_tile, indirect_dim=0)
        mode = nisa.oob_mode.skip if skips else nisa.oob_mode.error
        nisa.dma_copy(tile, source, oob_mode=mode)
        out = nl.ndarray((partitions, free), nl.float32, nl.shared_hbm)
        nisa.dma_copy(out, tile)
        return out

    arrays = [table.astype(np.float32), indices.astype(index_dtype), rows.astype(np.float32)]
    inside = indices < len(table)
    expected = np.where(inside, table[np.where(inside, indices, 0)[:, 0]], rows)
    np.testing.assert_array_equal(run_kernel(kernel, *arrays).outputs[0], expected)


@covers("dma_copy", "dma_compute")
@given(row_moves(), st.sampled_from(["write", "add"]), st.booleans())
@properties
def test_rows_are_scattered_or_added_where_their_index_says(case: Any, what: str, skips: bool) -> None:
    """Row index[p] of the table becomes, or grows by, partition p; rows outside are skipped on request."""
    table, _, rows = case
    partitions, free = rows.shape
    count = max(partitions, len(table))  # unique indices need as many rows
    table = np.resize(table, (count, free))
    indices = np.random.default_rng(count).permutation(count)[:partitions, None]
    if skips:
        indices[::2] += count

    def kernel(data: Any, index: Any, source: Any) -> Any:
        out = nl.ndarray((count, free), nl.float32, nl.shared_hbm)
        nisa.dma_copy(out, data)
        tile = nl.ndarray((partitions, free), nl.float32, nl.sbuf)
        index_tile = nl.ndarray((partitions, 1), nl.int32, nl.sbuf)
        nisa.dma_copy(tile, source)
        nisa.dma_copy(index_tile, index)
        chosen = out.ap(pattern=[[free, partitions], [1, free]], vector_offset=index_tile, indirect_dim=0)
        mode = nisa.oob_mode.skip if skips else nisa.oob_mode.error
        if what == "write":
            nisa.dma_copy(chosen, tile, oob_mode=mode)
        else:
            nisa.dma_compute(chosen, [chosen, tile], nl.add, oob_mode=mode)
        return out

    arrays = [table.astype(np.float32), indices.astype(np.int32), rows.astype(np.float32)]
    expected = table.copy()
    for partition, row in enumerate(indices[:, 0]):
        if row < count:
            kept = expected[row] if what == "add" else 0.0
            expected[row] = float32(kept + rows[partition])
    np.testing.assert_array_equal(run_kernel(kernel, *arrays).outputs[0], expected)


@covers("dma_compute")
@given(st.data(), shapes(), st.integers(1, 4))
@properties
def test_dma_compute_adds_in_float32_and_rounds_once(data: Any, shape: tuple[int, ...], count: int) -> None:
    """The sum of any tiles in SBUF, in the order given or any other, rounded once to dst."""
    dst = data.draw(results(shape, psum=False))
    sources = [data.draw(tiles(shape, psum=False)) for _ in range(count)]
    values = np.stack([float32(source.logical) for source in sources])
    error = count * 2.0**-23 * np.abs(values).sum(axis=0) if count > 1 else None
    check(lambda d, *s: nisa.dma_compute(d, list(s), nl.add), dst, sources, values.sum(axis=0), error=error)


TWO_BYTES = st.sampled_from(["bfloat16", "float16", "int16", "uint16"])


@st.composite
def dma_transposes(draw: Any) -> Any:
    """A 2-, 3- or 4-dimensional source of two-byte elements, in SBUF or HBM, and its permutation."""
    rank = draw(st.integers(2, 4))
    shape = tuple(draw(st.integers(1, limit)) for limit in (40, 5, 5, 40)[:1] + (5, 5)[: rank - 2] + (40,))
    axes = {2: (1, 0), 3: (2, 1, 0), 4: (3, 1, 2, 0)}[rank]
    return shape, axes, draw(TWO_BYTES), draw(seeds), draw(st.booleans())


@covers("dma_transpose")
@given(dma_transposes())
@properties
def test_dma_transpose_exchanges_first_and_last(case: Any) -> None:
    """The outer dimensions change places and the middle ones stay, from SBUF and from HBM."""
    shape, axes, dtype, seed, on_chip = case
    values = make_values(shape, dtype, seed)

    def kernel(data: Any) -> Any:
        source = data
        if on_chip:
            source = nl.ndarray(shape, data.dtype, nl.sbuf)
            nisa.dma_copy(source, data)
        dst = nl.ndarray([shape[axis] for axis in axes], data.dtype, nl.sbuf)
        nisa.dma_transpose(dst, source, axes=axes)
        out = nl.ndarray(dst.shape, dst.dtype, nl.shared_hbm)
        nisa.dma_copy(out, dst)
        return out

    got = run_kernel(kernel, values.astype(NUMPY[dtype])).outputs[0]
    np.testing.assert_array_equal(got.astype(np.float64), values.transpose(axes))


# ---- moves on chip -----------------------------------------------------------------------------------------


@st.composite
def transposes(draw: Any) -> Any:
    """[P, N] data and its [N, P] destination on VectorE or TensorE."""
    on_vector = draw(st.booleans())
    limit = 32 if on_vector else 128
    rows, columns = (draw(st.sampled_from([1, 2, 3, 17, 31, limit])) for _ in range(2))
    dtype = draw(value_names.filter(lambda name: on_vector or not name.startswith(("int", "uint"))))
    source = draw(tiles((rows, columns), dtype, psum=None if on_vector else False))
    dst = draw(results((columns, rows), dtype, psum=None if on_vector else True))
    return dst, source, "vector" if on_vector else "tensor"


@covers("nc_transpose")
@given(transposes())
@properties
def test_nc_transpose_exchanges_partitions_and_elements(case: Any) -> None:
    """Bits are kept on VectorE up to [32, 32] and on TensorE up to [128, 128]."""
    dst, source, engine = case
    check(lambda d, x: nisa.nc_transpose(d, x, engine=nisa.engine[engine]), dst, [source], source.logical.T)


@st.composite
def shuffles(draw: Any) -> Any:
    """src and dst of equally many partitions at any legal starts, and a mask within the quadrants."""
    partitions = draw(st.sampled_from([32, 64, 96, 128]))
    shape = (partitions, *draw(shapes())[1:])
    source = draw(tiles(shape))
    dst = draw(results(shape, source.dtype, prior=True))
    mask = draw(st.lists(st.one_of(st.integers(0, 31), st.just(255)), min_size=32, max_size=32))
    return dst, source, mask


@covers("nc_stream_shuffle")
@given(shuffles())
@properties
def test_stream_shuffle_moves_within_quadrants(case: Any) -> None:
    """In each 32 partitions the same mask applies; 255 leaves the partition as it was."""
    dst, source, mask = case
    expected = dst.logical.copy()
    for p in range(len(expected)):
        if mask[p % 32] != 255:
            expected[p] = source.logical[p - p % 32 + mask[p % 32]]
    check(lambda d, x: nisa.nc_stream_shuffle(d, x, mask), dst, [source], expected)


@covers("nc_n_gather")
@given(st.data(), shapes(), st.integers(1, 20), seeds)
@properties
def test_nc_n_gather_picks_by_flat_index(data: Any, shape: tuple[int, ...], count: int, seed: int) -> None:
    """Each partition gathers from its own flattened free dimensions."""
    source = data.draw(tiles(shape, psum=False))
    free = int(np.prod(shape[1:]))
    chosen = np.random.default_rng(seed).integers(0, free, (shape[0], count))
    index = data.draw(tiles(chosen.shape, "uint32", values=chosen.astype(np.float64), psum=False))
    dst = data.draw(results(chosen.shape, source.dtype, psum=False))
    expected = np.take_along_axis(source.logical.reshape(shape[0], free), chosen, axis=1)
    check(nisa.nc_n_gather, dst, [source, index], expected)


@st.composite
def local_gathers(draw: Any) -> Any:
    """Data [P, N], indices [P, K], elements for each index and the number of valid indices."""
    partitions = draw(st.sampled_from([16, 32, 64, 112, 128]))
    elements = draw(st.sampled_from([1, 2, 4, 8]))
    free, width = draw(st.integers(elements, 40)), draw(st.integers(1, 3))
    valid = draw(st.integers(1, 16 * width))
    chosen = np.random.default_rng(draw(seeds)).integers(0, free - elements + 1, (partitions, width))
    source = draw(tiles((partitions, free), psum=False))
    index = draw(tiles(chosen.shape, "uint16", values=chosen.astype(np.float64), psum=False))
    return (
        source,
        index,
        elements,
        valid,
        draw(results((partitions, valid * elements), source.dtype, psum=False)),
    )


@covers("local_gather")
@given(local_gathers())
@properties
def test_local_gather_shares_indices_among_sixteen_partitions(case: Any) -> None:
    """A group's indices, counted along its partitions first, choose runs of elements in each of them."""
    source, index, elements, valid, dst = case
    expected = np.empty((len(source.logical), valid * elements))
    for p in range(len(expected)):
        group = p - p % 16
        flat = [int(index.logical[group + i % 16, i // 16]) for i in range(valid)]
        expected[p] = np.concatenate([source.logical[p, i : i + elements] for i in flat])
    check(
        lambda d, x, i: nisa.local_gather(d, x, i, num_elem_per_idx=elements, num_valid_indices=valid),
        dst,
        [source, index],
        expected,
    )


# ---- registers ---------------------------------------------------------------------------------------------


@covers("register_alloc", "register_load", "register_move", "register_store")
@given(st.integers(-(2**31), 2**31 - 1), st.booleans())
@few_properties
def test_registers_hold_signed_words(value: int, in_hbm: bool) -> None:
    """A word loaded, moved and stored is the same word, from SBUF and from HBM."""

    def kernel(data: Any) -> Any:
        tile = nl.ndarray((1, 1), nl.int32, nl.sbuf)
        nisa.dma_copy(tile, data)
        first, second, constant = nisa.register_alloc(), nisa.register_alloc(), nisa.register_alloc(value)
        nisa.register_load(first, data if in_hbm else tile)
        nisa.register_move(second, first)
        stored = nl.ndarray((1, 2), nl.int32, nl.sbuf)
        nisa.register_store(stored[:, 0:1], second)
        nisa.register_store(stored[:, 1:2], constant)
        out = nl.ndarray((1, 2), nl.int32, nl.shared_hbm)
        nisa.dma_copy(out, stored)
        return out

    got = run_kernel(kernel, np.array([[value]], dtype=np.int32)).outputs[0]
    np.testing.assert_array_equal(got, [[value, value]])


@covers("register_load")
@given(partition_counts, st.integers(1, 6), seeds)
@few_properties
def test_a_register_addresses_columns_at_run_time(partitions: int, width: int, seed: int) -> None:
    """A scalar_offset moves the start of a pattern by whole elements of the indexed dimension."""
    columns = 3 * width
    values = make_values((partitions, columns), "float32", seed)
    begin = seed % (columns - width + 1)

    def kernel(data: Any, where: Any) -> Any:
        tile = nl.ndarray(data.shape, data.dtype, nl.sbuf)
        nisa.dma_copy(tile, data)
        register = nisa.register_alloc()
        nisa.register_load(register, where)
        chosen = nl.ndarray((partitions, width), data.dtype, nl.sbuf)
        pattern = [[columns, partitions], [1, width]]
        nisa.tensor_copy(chosen, tile.ap(pattern=pattern, scalar_offset=register, indirect_dim=1))
        out = nl.ndarray(chosen.shape, data.dtype, nl.shared_hbm)
        nisa.dma_copy(out, chosen)
        return out

    got = run_kernel(kernel, values.astype(np.float32), np.array([[begin]], np.int32)).outputs[0]
    np.testing.assert_array_equal(got, values[:, begin : begin + width])
