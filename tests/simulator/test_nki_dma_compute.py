"""dma_compute: sums, and additions to gathered or scattered rows, against NumPy; and what it refuses."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuron_port.simulator import ConstraintError, OutOfBoundsError, UnwrittenReadError, run_kernel, to_hbm
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl

bf16 = ml_dtypes.bfloat16
DTYPES = {"float32": np.float32, "bfloat16": bf16, "float16": np.float16, "int32": np.int32}


def summing(dtype, in_sbuf=(), **options):
    """A kernel that returns the sum of its inputs; those numbered in `in_sbuf` are loaded first."""

    def kernel(*inputs):
        sources = [nl.load(x) if i in in_sbuf else x for i, x in enumerate(inputs)]
        out = nl.ndarray(inputs[0].shape, dtype, nl.shared_hbm)
        nisa.dma_compute(out, sources, nl.add, **options)
        return out

    return kernel


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_sum_is_rounded_once(data):
    """Up to 16 tensors of any dtypes add in float32; the sum alone is rounded to dst's dtype."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    shape = (data.draw(st.integers(1, 128)), data.draw(st.integers(1, 40)))
    names = data.draw(st.lists(st.sampled_from(sorted(DTYPES)), min_size=1, max_size=16))
    out = data.draw(st.sampled_from(["float32", "bfloat16", "float16"]))
    in_sbuf = data.draw(st.sets(st.integers(0, len(names) - 1)))
    arrays = [(rng.standard_normal(shape) * 8).astype(DTYPES[name]) for name in names]
    expected = arrays[0].astype(np.float32)
    for array in arrays[1:]:
        expected = expected + array.astype(np.float32)
    result = run_kernel(summing(getattr(nl, out), in_sbuf), *arrays).outputs[0]
    np.testing.assert_array_equal(result, expected.astype(DTYPES[out]))


def test_sum_takes_views_of_any_shape(rng):
    """Only the number of elements counts; patterns and shapes may differ, and dst may be a source."""
    x = rng.standard_normal((4, 6)).astype(np.float32)

    def kernel(x):
        out = nl.ndarray((6, 4), nl.float32, nl.shared_hbm)
        nisa.dma_compute(out, [x.ap([[1, 24]]), x.reshape((2, 12))], nl.add, scales=(1.0, 1.0))
        nisa.dma_compute(out, (out, x.ap([[6, 4], [1, 6]])), nl.add)
        return out

    run = run_kernel(kernel, x)
    np.testing.assert_array_equal(run.outputs[0], (x + x + x).reshape(6, 4))
    assert (run.hbm_read_bytes, run.hbm_write_bytes) == (4 * 24 * 4, 2 * 24 * 4)


def rmw(kind, dtype=nl.float32, **options):
    """A kernel that adds x [P, N] to rows of the table (scatter), or rows of the table to x (gather)."""

    def kernel(table, x, index):
        tile, chosen = nl.load(x, dtype), nl.load(index)
        width = x.shape[1]
        rows = table.ap([[width, x.shape[0]], [1, width]], vector_offset=chosen, indirect_dim=0)
        if kind == "scatter":
            nisa.dma_compute(rows, [rows, tile], nl.add, **options)
            return table
        nisa.dma_compute(tile, [rows, tile], nl.add, **options)
        out = nl.ndarray(x.shape, tile.dtype, nl.shared_hbm)
        nl.store(out, tile)
        return out

    return kernel


@pytest.mark.parametrize("index_dtype", [np.int32, np.uint32])
@pytest.mark.parametrize(("dtype", "native"), [(nl.float32, np.float32), (nl.bfloat16, bf16)])
def test_gather_adds_the_chosen_rows(rng, index_dtype, dtype, native):
    """dst[p] += table[index[p]]; rows may repeat, the sum is float32 and rounded once."""
    table = rng.standard_normal((10, 5)).astype(np.float32)
    x = rng.standard_normal((4, 5)).astype(native)
    index = np.array([[3], [9], [3], [0]], index_dtype)
    result = run_kernel(rmw("gather", dtype), table, x, index).outputs[0]
    expected = (x.astype(np.float32) + table[index[:, 0]]).astype(native)
    np.testing.assert_array_equal(result, expected)


def test_scatter_adds_to_the_chosen_rows(rng):
    """table[index[p]] += src[p]; all other rows stay."""
    table = rng.standard_normal((10, 5)).astype(np.float32)
    x = rng.standard_normal((4, 5)).astype(np.float32)
    index = np.array([[3], [9], [1], [0]], np.int32)
    expected = table.copy()
    np.add.at(expected, index[:, 0], x)
    run = run_kernel(rmw("scatter"), to_hbm(table, mutable=True), x, index)
    np.testing.assert_array_equal(run.outputs[0], expected)
    last = run.trace.instructions[-1]
    assert (last.opcode, last.attributes["indirect"], last.attributes["dge_mode"]) == (
        "dma_compute",
        "scatter",
        "swdge",
    )
    assert last.dma_bytes == x.nbytes


def test_repeated_rows_of_a_scatter_are_refused(rng):
    """Two partitions that add to one row race; the message names row and partitions."""
    table = to_hbm(np.zeros((10, 5), np.float32), mutable=True)
    x = rng.standard_normal((3, 5)).astype(np.float32)
    run_kernel(rmw("scatter"), table, x, np.array([[3], [9], [2]], np.int32))
    with pytest.raises(ConstraintError, match="row 3 from partitions 0 and 2"):
        run_kernel(rmw("scatter"), table, x, np.array([[3], [9], [3]], np.int32))


@pytest.mark.parametrize("kind", ["gather", "scatter"])
def test_invalid_rows_raise_or_are_skipped(rng, kind):
    """An index outside the table is an error, or with oob_mode.skip leaves its row alone."""
    table = rng.standard_normal((6, 5)).astype(np.float32)
    x = rng.standard_normal((3, 5)).astype(np.float32)
    index = np.array([[2], [6], [5]], np.int32)
    with pytest.raises(OutOfBoundsError, match="index 6 of partition 1"):
        run_kernel(rmw(kind), to_hbm(table, mutable=True), x, index)
    skip = rmw(kind, oob_mode=nisa.oob_mode.skip)
    result = run_kernel(skip, to_hbm(table, mutable=True), x, index).outputs[0]
    if kind == "scatter":
        expected = table.copy()
        expected[[2, 5]] += x[[0, 2]]
    else:
        expected = x.copy()
        expected[[0, 2]] += table[[2, 5]]
    np.testing.assert_array_equal(result, expected)


X = np.ones((4, 6), np.float32)


def outcome(body, *arrays):
    """Run body(out, *inputs) with an HBM output like the first input."""

    def kernel(*inputs):
        out = nl.ndarray(inputs[0].shape, nl.float32, nl.shared_hbm)
        body(out, *inputs)
        return out

    return run_kernel(kernel, *arrays)


def in_psum(out, x):
    tile = nl.ndarray((4, 6), nl.float32, nl.psum)
    nisa.memset(tile, 0.0)
    nisa.dma_compute(out, [x, tile], nl.add)


def unwritten(out, x):
    nisa.dma_compute(out, [x, nl.ndarray((4, 6), nl.float32)], nl.add)


def scalar_address(out, x):
    register = nisa.register_alloc(0)
    nisa.dma_compute(out, [x, x.ap([[6, 4], [1, 6]], scalar_offset=register)], nl.add)


@pytest.mark.parametrize(
    ("good", "bad", "match"),
    [
        (
            lambda out, x: nisa.dma_compute(out, [x] * 16, nl.add),
            lambda out, x: nisa.dma_compute(out, [x] * 17, nl.add),
            "srcs is 17",
        ),
        (
            lambda out, x: nisa.dma_compute(out, [x, x], nl.add),
            lambda out, x: nisa.dma_compute(out, x, nl.add),
            "must be a list",
        ),
        (
            lambda out, x: nisa.dma_compute(out, [x, x], nl.add),
            lambda out, x: nisa.dma_compute(out, [x, x], nl.maximum),
            "reduce_op is nl.maximum",
        ),
        (
            lambda out, x: nisa.dma_compute(out, [x, x], nl.add, scales=[1.0, 1.0]),
            lambda out, x: nisa.dma_compute(out, [x, x], nl.add, scales=[1.0, 0.5]),
            "scales is",
        ),
        (
            lambda out, x: nisa.dma_compute(out, [x, x[0:4]], nl.add),
            lambda out, x: nisa.dma_compute(out, [x, x[0:2]], nl.add),
            "has 12 elements",
        ),
        (
            lambda out, x: nisa.dma_compute(out, [x, x], nl.add),
            lambda out, x: nisa.dma_compute(out, [x, x], nl.add, oob_mode=nisa.oob_mode.skip),
            "no tensor has a vector_offset",
        ),
        (lambda out, x: nisa.dma_compute(out, [x, nl.load(x)], nl.add), in_psum, "DMA cannot access"),
        (lambda out, x: nisa.dma_compute(out, [x, x], nl.add), scalar_address, "run-time address"),
    ],
)
def test_rules_of_the_sum(good, bad, match):
    """One kernel passes, the one that differs by a line is refused by name."""
    outcome(good, X)
    with pytest.raises(ConstraintError, match=match):
        outcome(bad, X)


def test_unwritten_source_is_refused():
    """Adding a tile that nothing wrote is an error."""
    with pytest.raises(UnwrittenReadError, match=r"srcs\[1\]"):
        outcome(unwritten, X)


@pytest.mark.parametrize(
    ("options", "other", "match"),
    [
        ({"unique_indices": False}, "dst", "unique_indices=False"),
        ({}, "another", "must be the same tile"),
        ({}, "both", "takes two sources"),
    ],
)
def test_rules_of_read_modify_write(options, other, match):
    """Unique indices, two sources, and dst itself as the second one."""

    def kernel(table, index, good):
        tile, spare, chosen = nl.load(table[0:3]), nl.load(table[0:3]), nl.load(index)
        rows = table.ap([[6, 3], [1, 6]], vector_offset=chosen, indirect_dim=0)
        sources = {"dst": [rows, tile], "another": [rows, spare], "both": [rows, tile, spare]}[other]
        nisa.dma_compute(tile, [tile, rows] if good else sources, nl.add, **({} if good else options))
        out = nl.ndarray((3, 6), nl.float32, nl.shared_hbm)
        nl.store(out, tile)
        return out

    index = np.array([[0], [1], [2]], np.int32)
    np.testing.assert_array_equal(run_kernel(kernel, X, index, good=True).outputs[0], 2 * X[:3])
    with pytest.raises(ConstraintError, match=match):
        run_kernel(kernel, X, index, good=False)


def test_scatter_needs_the_same_rows_as_source():
    """The indirect source must be the indirect dst, and the addend lies in SBUF."""

    def kernel(table, index, other, fault):
        tile, first, second = nl.load(table[0:3]), nl.load(index), nl.load(other)
        rows = table.ap([[6, 3], [1, 6]], vector_offset=first, indirect_dim=0)
        different = table.ap([[6, 3], [1, 6]], vector_offset=second, indirect_dim=0)
        sources = {"none": [rows, tile], "rows": [different, tile], "hbm": [rows, table[0:3]]}[fault]
        nisa.dma_compute(rows, sources, nl.add)
        return table

    first, second = np.array([[0], [1], [2]], np.int32), np.array([[1], [0], [2]], np.int32)
    arguments = (to_hbm(X, mutable=True), first, second)
    run_kernel(kernel, *arguments, fault="none")
    with pytest.raises(ConstraintError, match="is not the indirect dst"):
        run_kernel(kernel, *arguments, fault="rows")
    with pytest.raises(ConstraintError, match="must be in SBUF"):
        run_kernel(kernel, *arguments, fault="hbm")
