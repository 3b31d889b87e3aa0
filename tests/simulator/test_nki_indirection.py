"""Tensor indirection of NeuronCore-v4: gathers and scatters along the free dimension, and their rules."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from neuron_port.simulator import (
    ConstraintError,
    OutOfBoundsError,
    SimulatorError,
    UnwrittenReadError,
    run_kernel,
)
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl


def snake(offsets: list[int], partitions: int, group: int = 16) -> np.ndarray:
    """The index tile [partitions, K] that gives every group of partitions the same offsets."""
    columns = -(-len(offsets) // group)
    one = np.zeros((group, columns), np.uint32)
    for i, offset in enumerate(offsets):
        one[i % group, i // group] = offset
    return np.tile(one, (partitions // group, 1))


def loaded(tensor: Any, dtype: Any = None) -> Any:
    """An SBUF tile with the contents of an HBM tensor."""
    tile = nl.ndarray(tensor.shape, dtype or tensor.dtype, nl.sbuf)
    nisa.dma_copy(tile, tensor)
    return tile


def stored(tile: Any) -> Any:
    """An output with the contents of an SBUF tile."""
    out = nl.ndarray(tile.shape, tile.dtype, nl.shared_hbm)
    nisa.dma_copy(out, tile)
    return out


OFFSETS = [5, 0, 39, 7, 7, 21, 13, 2, 30, 11, 1, 3, 38, 6, 9, 17, 25, 33]


@pytest.mark.parametrize("partitions", [16, 32, 128])
def test_a_copy_gathers_the_offsets_in_snake_order(rng, partitions):
    """Offset i is read from index[i % 16, i // 16] of each group of 16 partitions."""

    def kernel(x: Any, index: Any) -> Any:
        gathered = nl.ndarray((partitions, len(OFFSETS)), nl.float32, nl.sbuf)
        nisa.tensor_copy(gathered, loaded(x).indirect(loaded(index), len(OFFSETS)))
        return stored(gathered)

    x = rng.standard_normal((partitions, 40)).astype(np.float32)
    run = run_kernel(kernel, x, snake(OFFSETS, partitions), target="trn3")
    np.testing.assert_array_equal(run.outputs[0], x[:, OFFSETS])
    assert run.warnings == ()


def test_a_copy_scatters_and_leaves_the_rest(rng):
    """An indirect destination writes the named columns only."""
    offsets = [3, 0, 9, 7]

    def kernel(x: Any, index: Any) -> Any:
        tile = nl.ndarray((32, 12), nl.float32, nl.sbuf)
        nisa.memset(tile, 5.0)
        nisa.tensor_copy(tile.indirect(loaded(index), 4), loaded(x))
        return stored(tile)

    x = rng.standard_normal((32, 4)).astype(np.float32)
    expected = np.full((32, 12), 5.0, np.float32)
    expected[:, offsets] = x
    (result,) = run_kernel(kernel, x, snake(offsets, 32), target="trn3").outputs
    np.testing.assert_array_equal(result, expected)


def test_arithmetic_and_reductions_gather(rng):
    """tensor_tensor, tensor_scalar, tensor_reduce, activation and exponential read gathered columns."""

    def kernel(x: Any, y: Any, index: Any) -> Any:
        tile, other, offsets = loaded(x), loaded(y), loaded(index)
        view = tile.indirect(offsets, 18)
        results = nl.ndarray((32, 5, 18), nl.float32, nl.sbuf)
        nisa.tensor_tensor(results[:, 0, :], view, other, nl.multiply)
        nisa.tensor_scalar(results[:, 1, :], view, nl.add, 2.0)
        nisa.activation(results[:, 2, :], nl.tanh, view)
        nisa.exponential(results[:, 3, :], view, max_value=1.0)
        total = nl.ndarray((32, 1), nl.float32, nl.sbuf)
        nisa.tensor_reduce(total, nl.add, view, axis=1)
        nisa.tensor_scalar(results[:, 4, :], other, nl.multiply, total)
        return stored(results)

    x = rng.standard_normal((32, 40)).astype(np.float32)
    y = rng.standard_normal((32, 18)).astype(np.float32)
    (result,) = run_kernel(kernel, x, y, snake(OFFSETS, 32), target="trn3").outputs
    g = x[:, OFFSETS].astype(np.float64)
    expected = [g * y, g + 2, np.tanh(g), np.exp(g - 1), y * g.sum(axis=1, keepdims=True)]
    np.testing.assert_allclose(result, np.stack(expected, axis=1), rtol=1e-5, atol=1e-5)


def test_a_matmul_gathers_columns_by_groups_of_32_partitions(rng):
    """TensorE reads offset i from index[i % 32, i // 32]."""
    offsets = list(range(39, -1, -1))

    def kernel(a: Any, b: Any, index: Any) -> Any:
        left, right = loaded(a, nl.bfloat16), loaded(b, nl.bfloat16)
        product = nl.ndarray((8, 40), nl.float32, nl.psum)
        nisa.nc_matmul(product, left, right.indirect(loaded(index), 40))
        result = nl.ndarray((8, 40), nl.float32, nl.sbuf)
        nisa.tensor_copy(result, product)
        return stored(result)

    a = rng.integers(-8, 8, (64, 8)).astype(np.float32)
    b = rng.integers(-8, 8, (64, 40)).astype(np.float32)
    (result,) = run_kernel(kernel, a, b, snake(offsets, 64, 32), target="trn3").outputs
    np.testing.assert_array_equal(result, a.T @ b[:, offsets])


def test_a_matmul_scatters_into_psum_and_accumulates_there(rng):
    """The columns that a scattered matmul has written are added to by the next, the others are overwritten."""

    def kernel(a: Any, b: Any, first: Any, second: Any) -> Any:
        left, right = loaded(a), loaded(b)
        product = nl.ndarray((32, 6), nl.float32, nl.psum)
        nisa.nc_matmul(product.indirect(loaded(first), 4), left, right)
        nisa.nc_matmul(product.indirect(loaded(second), 4), left, right)
        result = nl.ndarray((32, 6), nl.float32, nl.sbuf)
        nisa.tensor_copy(result, product)
        return stored(result)

    a = rng.integers(-8, 8, (32, 32)).astype(ml_dtypes.bfloat16)
    b = rng.integers(-8, 8, (32, 4)).astype(ml_dtypes.bfloat16)
    once = a.astype(np.float32).T @ b.astype(np.float32)
    expected = np.zeros((32, 6), np.float32)
    expected[:, [0, 1, 2, 3]] += once
    expected[:, [5, 4, 1, 0]] += once
    run = run_kernel(kernel, a, b, snake([0, 1, 2, 3], 32, 32), snake([5, 4, 1, 0], 32, 32), target="trn3")
    np.testing.assert_array_equal(run.outputs[0], expected)


def test_copy_predicated_scatters_chosen_elements(rng):
    """Only elements whose predicate is set are scattered."""

    def kernel(x: Any, mask: Any, index: Any) -> Any:
        tile = nl.ndarray((16, 8), nl.float32, nl.sbuf)
        nisa.memset(tile, 1.0)
        nisa.tensor_copy_predicated(tile.indirect(loaded(index), 4), loaded(x), loaded(mask))
        return stored(tile)

    x = rng.standard_normal((16, 4)).astype(np.float32)
    mask = rng.integers(0, 2, (16, 4)).astype(np.uint8)
    offsets = [7, 2, 0, 5]
    expected = np.ones((16, 8), np.float32)
    expected[:, offsets] = np.where(mask, x, 1.0)
    (result,) = run_kernel(kernel, x, mask, snake(offsets, 16), target="trn3").outputs
    np.testing.assert_array_equal(result, expected)


def test_the_trace_shows_the_index_and_the_tile(rng):
    """A gather is recorded with the offsets as an operand and a region that covers all of the tile."""

    def kernel(x: Any, index: Any) -> Any:
        gathered = nl.ndarray((16, 4), nl.float32, nl.sbuf)
        nisa.tensor_copy(gathered, loaded(x).indirect(loaded(index), 4))
        return stored(gathered)

    run = run_kernel(kernel, np.ones((16, 40), np.float32), snake([1, 2, 3, 4], 16), target="trn3")
    copy = next(instruction for instruction in run.trace if instruction.opcode == "tensor_copy")
    dst, src, index = copy.operands
    assert (dst.elements_per_partition, src.elements_per_partition) == (4, 4)
    assert src.region == (0, 16, 0, 160)
    assert index.dtype == "uint32"


def gather(
    offsets: list[int] | None = None,
    count: int | None = 4,
    partitions: int = 32,
    start: int = 0,
    index_dtype: Any = nl.uint32,
    use: Any = None,
    target: str = "trn3",
) -> Any:
    """Copy gathered columns; every part of it can be chosen, and the defaults are legal."""
    index = snake(offsets or [1, 2, 3, 4], 128)

    def kernel(x: Any, given: Any) -> Any:
        tile = loaded(x)
        spread = nl.ndarray(given.shape, index_dtype, nl.sbuf)
        nisa.dma_copy(spread, given)
        view = tile[:partitions].indirect(spread[start : start + partitions], count)
        dst = nl.ndarray((partitions, view.shape[1]), nl.float32, nl.sbuf)
        if use is None:
            nisa.tensor_copy(dst, view)
        else:
            use(dst, tile[:partitions], view)
        return stored(dst)

    return run_kernel(kernel, np.ones((128, 40), np.float32), index, target=target)


def test_a_legal_gather_passes():
    """The parts that the next test breaks one by one are legal."""
    np.testing.assert_array_equal(gather().outputs[0], np.ones((32, 4)))
    added = gather(use=lambda dst, tile, view: nisa.tensor_tensor(dst, view, tile[:, 0:4], nl.add))
    np.testing.assert_array_equal(added.outputs[0], np.full((32, 4), 2.0))


@pytest.mark.parametrize(
    ("broken", "error", "complaint"),
    [
        ({"target": "trn2"}, ConstraintError, "NeuronCore-v4"),
        ({"count": 17}, ConstraintError, "each group of 16 partitions .* holds 16"),
        ({"count": None}, ConstraintError, "uses 32 offsets"),
        ({"count": 0}, ConstraintError, "positive integer"),
        ({"offsets": [40, 0, 0, 0]}, OutOfBoundsError, "offset 40 .* leaves the 40"),
        ({"index_dtype": nl.float32}, ConstraintError, "integer tile"),
        ({"start": 16}, ConstraintError, "multiple of 32"),
        ({"start": 32}, ConstraintError, "must start at the same"),
        (
            {"use": lambda dst, tile, view: nisa.tensor_tensor(dst, tile[:, 0:4], view, nl.add)},
            ConstraintError,
            "data2 .* does not take tensor indirection; dst and data1 do",
        ),
        (
            {"use": lambda dst, tile, view: nisa.tensor_copy(dst, view, engine=nisa.engine.gpsimd)},
            ConstraintError,
            "GpSimdE does not take",
        ),
        ({"use": lambda dst, tile, view: nisa.reciprocal(dst, view)}, SimulatorError, "does not take"),
        ({"use": lambda dst, tile, view: view[:, 0:1]}, SimulatorError, "cannot be sliced"),
    ],
)
def test_an_illegal_gather_is_named(broken, error, complaint):
    """Generation, number and range of offsets, their place, and operands that take none are checked."""
    with pytest.raises(error, match=complaint):
        gather(**broken)


def test_groups_with_different_offsets_are_warned_of():
    """Each group follows its own list, which the documentation does not spell out."""

    def kernel(x: Any, index: Any) -> Any:
        dst = nl.ndarray((32, 1), nl.float32, nl.sbuf)
        nisa.tensor_copy(dst, loaded(x).indirect(loaded(index), 1))
        return stored(dst)

    x = np.arange(32 * 4, dtype=np.float32).reshape(32, 4)
    index = np.repeat([[1], [3]], 16, axis=0).astype(np.uint32)
    run = run_kernel(kernel, x, index, target="trn3")
    np.testing.assert_array_equal(run.outputs[0][:, 0], x[np.arange(32), index[:, 0]])
    assert any("different offsets" in warning for warning in run.warnings)


def test_unwritten_offsets_and_elements_are_refused():
    """Reading offsets or gathered elements that nothing wrote is an error; elements beside them do not matter."""

    def kernel(x: Any, index: Any, *, rows: int, columns: int) -> Any:
        tile = nl.ndarray((16, 8), nl.float32, nl.sbuf)
        nisa.memset(tile[:, :columns], 1.0)
        offsets = nl.ndarray((16, 1), nl.uint32, nl.sbuf)
        nisa.dma_copy(offsets[:rows], index[:rows])
        dst = nl.ndarray((16, 4), nl.float32, nl.sbuf)
        nisa.tensor_copy(dst, tile.indirect(offsets, 4))
        return stored(dst)

    index = snake([0, 1, 2, 3], 16)
    assert (run_kernel(kernel, X, index, rows=4, columns=4, target="trn3").outputs[0] == 1).all()
    with pytest.raises(UnwrittenReadError, match="offsets were never written"):
        run_kernel(kernel, X, index, rows=3, columns=4, target="trn3")
    with pytest.raises(UnwrittenReadError):
        run_kernel(kernel, X, index, rows=4, columns=3, target="trn3")


X = np.zeros((1, 1), np.float32)


def test_a_scatter_of_two_values_to_one_element_is_warned_of():
    """The order in which the device writes is undefined."""

    def kernel(x: Any, index: Any) -> Any:
        tile = nl.ndarray((16, 4), nl.float32, nl.sbuf)
        nisa.memset(tile, 0.0)
        nisa.tensor_copy(tile.indirect(loaded(index), 2), loaded(x))
        return stored(tile)

    run = run_kernel(kernel, np.ones((16, 2), np.float32), snake([1, 1], 16), target="trn3")
    assert any("twice" in warning for warning in run.warnings)


@pytest.mark.parametrize(
    ("engine", "buffer", "refused"),
    [("scalar", nl.sbuf, False), ("vector", nl.psum, False), ("scalar", nl.psum, True)],
)
def test_scalar_engine_does_not_scatter_into_psum(engine, buffer, refused):
    """VectorE scatters anywhere, ScalarE into SBUF only."""

    def kernel(x: Any, index: Any) -> Any:
        tile = nl.ndarray((16, 4), nl.float32, buffer)
        nisa.memset(tile, 0.0)
        nisa.tensor_copy(tile.indirect(loaded(index), 2), loaded(x), engine=getattr(nisa.engine, engine))
        return stored(loaded(x))

    arguments = (np.ones((16, 2), np.float32), snake([1, 2], 16))
    if refused:
        with pytest.raises(ConstraintError, match="cannot scatter into PSUM"):
            run_kernel(kernel, *arguments, target="trn3")
    else:
        run_kernel(kernel, *arguments, target="trn3")


@pytest.mark.parametrize(
    ("options", "dtype", "complaint"),
    [
        ({}, nl.bfloat16, None),
        ({"tile_position": (32, 0), "tile_size": (32, 128)}, nl.bfloat16, "tile_position"),
        ({"is_transpose": True}, nl.bfloat16, "is_transpose"),
        ({}, nl.float32, "16 or 8 bits"),
    ],
)
def test_a_gathering_matmul_names_what_it_excludes(options, dtype, complaint):
    """No tiles of the array, no transposition of indirect moving, no 32-bit operands."""

    def kernel(x: Any, index: Any) -> Any:
        tile = loaded(x, dtype)
        product = nl.ndarray((32, 32), nl.float32, nl.psum)
        nisa.nc_matmul(product, tile, tile.indirect(loaded(index), 32), **options)
        return stored(loaded(x))

    arguments = (np.eye(32, dtype=np.float32), snake(list(range(32)), 32, 32))
    if complaint is None:
        run_kernel(kernel, *arguments, target="trn3")
    else:
        with pytest.raises(ConstraintError, match=complaint):
            run_kernel(kernel, *arguments, target="trn3")


@pytest.mark.parametrize("both", [True, False])
def test_an_mx_matrix_is_gathered_with_its_scales(rng, both):
    """Data and scales of one matrix use the same index, or neither is indirect."""
    offsets = [6, 1, 4, 3]

    def kernel(x: Any, y: Any, index: Any) -> Any:
        packs = []
        for source in (x, y):
            tile = loaded(source)
            data = nl.ndarray((64, source.shape[1] // 4), nl.float8_e4m3fn_x4, nl.sbuf)
            scale = nl.ndarray((64, source.shape[1] // 4), nl.uint8, nl.sbuf)
            nisa.memset(scale, 0)
            nisa.quantize_mx(data, tile, scale)
            packs.append((data, scale))
        chosen = loaded(index)
        results = []
        for gathers in (True, False):
            data, scale = packs[1]
            product = nl.ndarray((8, 4 if gathers else 8), nl.float32, nl.psum)
            if gathers:
                data = data.indirect(chosen, 4)
                scale = scale.indirect(chosen, 4) if both else scale[:, :4]
            nisa.nc_matmul_mx(product, packs[0][0], data, packs[0][1], scale)
            result = nl.ndarray(product.shape, nl.float32, nl.sbuf)
            nisa.tensor_copy(result, product)
            results.append(stored(result))
        return tuple(results)

    x = rng.standard_normal((64, 32)).astype(ml_dtypes.bfloat16)
    y = rng.standard_normal((64, 32)).astype(ml_dtypes.bfloat16)
    if both:
        gathered, whole = run_kernel(kernel, x, y, snake(offsets, 64, 32), target="trn3").outputs
        np.testing.assert_array_equal(gathered, whole[:, offsets])
    else:
        with pytest.raises(ConstraintError, match="one matrix"):
            run_kernel(kernel, x, y, snake(offsets, 64, 32), target="trn3")
