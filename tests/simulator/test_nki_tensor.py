"""Views: indexing, reshaping, raw access patterns, reinterpreted bits; all against NumPy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuron_port.simulator import ConstraintError, OutOfBoundsError, UnsupportedError, run_kernel
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl

bf16 = ml_dtypes.bfloat16


def view_of(x, view, dtype=None):
    """Copy x to SBUF and return the elements of view(tile) as an array of shape [partitions, elements]."""

    def kernel(tensor):
        tile = nl.ndarray(tensor.shape, tensor.dtype)
        nisa.dma_copy(tile, tensor)
        chosen = view(tile)
        out = nl.ndarray(chosen.shape, chosen.dtype, nl.shared_hbm)
        nisa.dma_copy(out, chosen)
        return out

    return run_kernel(kernel, x).outputs[0]


def inspect(shape, look, buffer=nl.sbuf, dtype=nl.float32):
    """Run look(tensor) inside a kernel and hand back what it returns."""
    found = []

    def kernel(x):
        found.append(look(nl.ndarray(shape, dtype, buffer)))
        out = nl.ndarray((1, 1), nl.float32, nl.shared_hbm)
        nisa.dma_copy(out, x)
        return out

    run_kernel(kernel, np.zeros((1, 1), np.float32))
    return found[0]


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ((slice(0, 4),), (4, 6, 5)),
        ((2,), (1, 6, 5)),
        ((slice(None), 3), (8, 5)),
        ((slice(None), 3, 2), (8, 1)),
        ((Ellipsis, 1), (8, 6)),
        ((slice(None), slice(1, 6, 2)), (8, 3, 5)),
        ((-1,), (1, 6, 5)),
        ((slice(None), slice(-3, None)), (8, 3, 5)),
        ((2, 3, 4), (1, 1)),
    ],
)
def test_indexing_on_chip_keeps_partition_and_two_dimensions(key, shape):
    """An integer keeps the partition dimension, drops a free one, and never leaves less than two."""
    assert inspect((8, 6, 5), lambda t: t[key].shape) == shape


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ((2,), (6, 5)),
        ((2, 3), (5,)),
        ((2, 3, 4), (1,)),
        ((Ellipsis, 0), (8, 6)),
        ((slice(1, 3),), (2, 6, 5)),
    ],
)
def test_indexing_in_hbm_drops_dimensions(key, shape):
    """In HBM an integer drops its dimension; one dimension remains."""
    assert inspect((8, 6, 5), lambda t: t[key].shape, nl.hbm) == shape


@pytest.mark.parametrize(
    "key",
    [
        (slice(0, 9),),
        (8,),
        (-9,),
        (slice(3, 3),),
        (slice(None), slice(5, 7)),
        (0, 0, 0, 0),
        (nl.ds(6, 3),),
    ],
)
def test_indices_are_never_clamped(key):
    """A slice beyond the end, an empty slice and a surplus index are refused."""
    with pytest.raises(OutOfBoundsError):
        inspect((8, 6, 5), lambda t: t[key])


def test_partitions_are_contiguous():
    """A step over partitions is no tile; a step over elements is."""
    with pytest.raises(ConstraintError, match="skips partitions"):
        inspect((8, 6), lambda t: t[0:8:2])
    assert inspect((8, 6), lambda t: t[:, 0:6:2].strides) == (6, 2)


def test_shape_equals_lists_and_tuples():
    """Kernels compare shapes with either."""
    assert inspect((8, 6), lambda t: (t.shape == [8, 6], t.shape == (8, 6), t.shape != [8, 5])) == (
        True,
        True,
        True,
    )


def test_reshaping_views_match_numpy(rng):
    """reshape, reshape_dim, flatten_dims, permute, expand, squeeze and broadcast are NumPy's."""
    x = rng.standard_normal((4, 6, 10)).astype(np.float32)
    np.testing.assert_array_equal(view_of(x, lambda t: t.reshape((4, 60))), x.reshape(4, 60))
    np.testing.assert_array_equal(view_of(x, lambda t: t.reshape_dim(1, (2, -1))), x.reshape(4, 2, 3, 10))
    np.testing.assert_array_equal(view_of(x, lambda t: t.flatten_dims(1, 2)), x.reshape(4, 60))
    np.testing.assert_array_equal(view_of(x, lambda t: t.permute((0, 2, 1))), x.transpose(0, 2, 1))
    np.testing.assert_array_equal(
        view_of(x, lambda t: t.expand_dim(2).broadcast(2, 3)), np.stack([x] * 3, axis=2)
    )
    np.testing.assert_array_equal(view_of(x, lambda t: t[:, 2:3].squeeze_dim(1)), x[:, 2])
    np.testing.assert_array_equal(view_of(x, lambda t: t.slice(2, 1, 9, 3)), x[:, :, 1:9:3])
    np.testing.assert_array_equal(view_of(x, lambda t: t.select(1, 3)), x[:, 3])
    einops = view_of(x, lambda t: t.rearrange(("p", ("a", "b"), "c"), ("p", "b", "a", "c"), {"a": 2}))
    np.testing.assert_array_equal(einops, x.reshape(4, 2, 3, 10).transpose(0, 2, 1, 3))
    merged = view_of(x, lambda t: t.rearrange(("p", "a", "c"), ("p", ("a", "c"))))
    np.testing.assert_array_equal(merged, x.reshape(4, 60))


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t.reshape((8, 30)),
        lambda t: t.reshape((4, 61)),
        lambda t: t.permute((1, 0, 2)),
        lambda t: t.broadcast(1, 3),
        lambda t: t.squeeze_dim(1),
        lambda t: t.expand_dim(0),
        lambda t: t.flatten_dims(0, 1),
        lambda t: t[:, :, 0:5].reshape((4, 30)),
        lambda t: t.reshape_dim(1, (4, 2)),
    ],
)
def test_illegal_views_are_refused(view):
    """Views that move partitions, change the element count or need a copy are named."""
    with pytest.raises(ConstraintError):
        inspect((4, 6, 10), view)


def test_access_pattern_reads_any_strides(rng):
    """.ap() walks the storage by explicit strides, ignoring the view's own shape."""
    x = rng.standard_normal((8, 12)).astype(np.float32)
    np.testing.assert_array_equal(view_of(x, lambda t: t.ap([[12, 8], [2, 6]])), x[:, ::2])
    np.testing.assert_array_equal(
        view_of(x, lambda t: t.ap([[12, 4], [1, 3]], offset=12 * 2 + 5)), x[2:6, 5:8]
    )
    np.testing.assert_array_equal(
        view_of(x, lambda t: t.ap([[12, 8], [0, 2], [1, 3]])), np.stack([x[:, :3]] * 2, axis=1)
    )
    inner = view_of(x, lambda t: t[:, 4:8].ap([[12, 8], [1, 2]]))
    np.testing.assert_array_equal(inner, x[:, 4:6])


@pytest.mark.parametrize(
    ("pattern", "offset"),
    [
        ([[12, 8], [1, 13]], None),
        ([[12, 8], [1, 12]], 1),
        ([[12, 8], [1, 2]], 12),
    ],
)
def test_access_pattern_stays_in_its_partition(pattern, offset):
    """A pattern that runs into the next partition, or past the last, is refused where it is used."""
    with pytest.raises(OutOfBoundsError):
        inspect((8, 12), lambda t: t.ap(pattern, offset).strides)


def test_access_pattern_steps_by_one_partition():
    """The first stride on chip is the number of free elements."""
    with pytest.raises(ConstraintError, match="steps 24 elements per partition"):
        inspect((8, 12), lambda t: t.ap([[24, 4], [1, 12]]))


def test_pattern_and_offset_describe_a_view():
    """get_pattern and offset are those of the documentation's example."""
    assert inspect((128, 64), lambda t: (t[:, 8:24].get_pattern(), t[:, 8:24].offset)) == (
        [[64, 128], [1, 16]],
        8,
    )
    assert inspect(
        (4, 6), lambda t: (t.is_contiguous(), t[:, 0:3].is_contiguous(), t[:, 0:6:2].is_contiguous())
    ) == (
        True,
        True,
        False,
    )


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (np.float32, "int32"),
        (np.float32, "uint8"),
        (np.uint8, "float32"),
        (bf16, "uint16"),
        (np.uint16, "bfloat16"),
        (bf16, "float16"),
        (np.uint8, "float8_e4m3"),
        (np.int32, "bfloat16"),
        (np.float32, "bfloat16"),
    ],
)
def test_reinterpreted_bits(rng, source, target):
    """.view(dtype) reads the same bits, and slices of it as well."""
    x = rng.integers(0, 100, (4, 16)).astype(source)
    native = getattr(nl, target).native
    expected = x.view(native)
    result = view_of(x, lambda t: t.view(getattr(nl, target)))
    np.testing.assert_array_equal(result.view(np.uint8), expected.view(np.uint8))
    part = view_of(x, lambda t: t.view(getattr(nl, target))[1:3, 1:4])
    np.testing.assert_array_equal(
        part.view(np.uint8), np.ascontiguousarray(expected[1:3, 1:4]).view(np.uint8)
    )


def test_reinterpreted_view_sees_later_writes(rng):
    """A view from bfloat16 to uint16 decodes when it is read, not when it is made."""

    def kernel(x):
        tile = nl.ndarray(x.shape, x.dtype)
        bits = tile.view(nl.uint16)[:, 1:3]
        nisa.dma_copy(tile, x)
        out = nl.ndarray((4, 2), nl.uint16, nl.shared_hbm)
        nisa.dma_copy(out, bits)
        return out

    x = rng.standard_normal((4, 6)).astype(bf16)
    np.testing.assert_array_equal(run_kernel(kernel, x).outputs[0], x.view(np.uint16)[:, 1:3])


def test_access_pattern_with_another_dtype(rng):
    """dtype= counts pattern and offset in its own elements."""
    x = rng.integers(0, 2**31, (4, 8)).astype(np.int32)
    result = view_of(x, lambda t: t.ap([[16, 4], [1, 4]], offset=2, dtype=nl.uint16))
    np.testing.assert_array_equal(result, x.view(np.uint16)[:, 2:6])


def test_tensors_have_no_python_value():
    """Tensor indices and item assignment are refused by name."""
    with pytest.raises(UnsupportedError, match="scalar_offset"):
        inspect((4, 6), lambda t: t[:, t])
    with pytest.raises(UnsupportedError, match="assignment"):
        inspect((4, 6), lambda t: t.__setitem__(0, 1))


def test_a_tensor_as_a_condition_is_true_with_a_warning():
    """Kernels ask `if tensor:` for `is not None`; what it holds is not known when the kernel is traced."""

    def kernel(x, look):
        out = nl.ndarray((1, 1), nl.float32, nl.shared_hbm)
        nisa.dma_copy(out, x)
        return out if not look or x else None

    zero = np.zeros((1, 1), np.float32)
    assert not run_kernel(kernel, zero, look=False).warnings
    (warning,) = run_kernel(kernel, zero, look=True).warnings
    assert "true, whatever the tensor holds" in warning


@st.composite
def slices(draw, size):
    start = draw(st.integers(0, size - 1))
    return slice(start, draw(st.integers(start + 1, size)), draw(st.integers(1, 3)))


@given(data=st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_chain_of_slices_is_numpys(data):
    """Two random slices in a row, then a permutation, give NumPy's elements, and writes reach them alone."""
    x = np.arange(4 * 7 * 6, dtype=np.float32).reshape(4, 7, 6)
    first = (slice(None), data.draw(slices(7)), data.draw(slices(6)))
    middle = x[first]
    second = (slice(None), data.draw(slices(middle.shape[1])), data.draw(slices(middle.shape[2])))
    order = data.draw(st.sampled_from([(0, 1, 2), (0, 2, 1)]))
    expected = middle[second].transpose(order)
    np.testing.assert_array_equal(view_of(x, lambda t: t[first][second].permute(order)), expected)

    def kernel(tensor):
        tile = nl.ndarray(tensor.shape, tensor.dtype)
        nisa.dma_copy(tile, tensor)
        nisa.memset(tile[first][second].permute(order), -1.0)
        out = nl.ndarray(tensor.shape, tensor.dtype, nl.shared_hbm)
        nisa.dma_copy(out, tile)
        return out

    changed = x.copy()
    changed[first][second] = -1
    np.testing.assert_array_equal(run_kernel(kernel, x).outputs[0], changed)
