"""Reading and writing at positions that are known only when the graph runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from neuron_port.errors import LoweringError
from neuron_port.lower.builder import Builder, Value, broadcast_shape
from neuron_port.lower.module import Shape
from neuron_port.lower.registry import Number, as_value, lowers

aten = torch.ops.aten


@lowers(aten.embedding.default)
def embedding(b: Builder, out: Shape, weight: Value, indices: Value, *_: object) -> Value:
    """weight: [V, H]; indices: [..] -> [.., H]."""
    return _take(b, weight, 0, b.convert(indices, "int32"))


@lowers(aten.index_select.default)
def index_select(b: Builder, out: Shape, x: Value, dim: int, index: Value) -> Value:
    return _take(b, x, dim % x.rank, b.convert(index, "int32"))


def _take(b: Builder, x: Value, axis: int, positions: Value) -> Value:
    """Whole slices of `x` at `positions` along `axis`; the axis is replaced by the positions' axes."""
    return _gather(b, x, [axis], b.reshape(positions, [*positions.shape, 1]), axis)


def _gather(b: Builder, x: Value, axes: Sequence[int], starts: Value, place: int) -> Value:
    """Index `axes` of `x` by the last axis of `starts`, whose other axes stand at `place` in the result."""
    batch = starts.rank - 1
    window = [size for axis, size in enumerate(x.shape) if axis not in axes]
    shape = [*window[:place], *starts.shape[:-1], *window[place:]]
    numbers = {
        "offset_dims": [axis for axis in range(len(shape)) if not place <= axis < place + batch],
        "collapsed_slice_dims": sorted(axes),
        "start_index_map": list(axes),
        "index_vector_dim": batch,
    }
    sizes = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
    return b.op(
        "gather", x.dtype, shape, x, starts, gather_dimension_numbers=numbers, gather_slice_sizes=sizes
    )


@lowers(aten.index.Tensor)
def index(b: Builder, out: Shape, x: Value, indices: Sequence[Value | None]) -> Value:
    """NumPy's advanced indexing with integer tensors; None keeps an axis."""
    axes, starts = _index_vectors(b, x, indices)
    adjacent = axes == list(range(axes[0], axes[0] + len(axes)))
    return _gather(b, x, axes, starts, axes[0] if adjacent else 0)


def _index_vectors(b: Builder, x: Value, indices: Sequence[Value | None]) -> tuple[list[int], Value]:
    """The indexed axes, and [.., len(axes)] non-negative positions."""
    axes = [axis for axis, item in enumerate(indices) if item is not None]
    columns = []
    for axis, item in enumerate(indices):
        if item is None:
            continue
        if item.dtype in ("bool", "uint8"):
            raise LoweringError(
                f"Indexing with a mask {item} makes a result whose size depends on the data",
                hint="Neuron graphs have static shapes: use torch.where, or multiply by the mask.",
            )
        columns.append(_from_the_end(b, b.convert(item, "int32"), x.shape[axis]))
    common = broadcast_shape([column.shape for column in columns])
    parts = [b.reshape(b.broadcast(column, common), [*common, 1]) for column in columns]
    return axes, b.concatenate(parts, len(common))


def _from_the_end(b: Builder, positions: Value, size: int) -> Value:
    """Negative positions count from the end, as in Python."""
    if b.instructions[positions.id].opcode == "iota":
        return positions
    wrapped = b.elementwise("add", positions, b.constant(size, "int32"))
    return b.select(b.compare("LT", positions, b.constant(0, "int32")), wrapped, positions)


@lowers(aten.gather.default)
def gather(b: Builder, out: Shape, x: Value, dim: int, index: Value, sparse_grad: bool = False) -> Value:
    """out[i, j] = x[i, index[i, j]] for dim = 1: one element per index."""
    if not x.rank:
        return x
    return _gather(b, x, range(x.rank), _element_positions(b, x, dim % x.rank, index), 0)


def _element_positions(b: Builder, x: Value, axis: int, index: Value) -> Value:
    """[*index.shape, rank]: the full coordinates of the element that each index names."""
    columns = [
        b.convert(index, "int32") if position == axis else b.iota("int32", index.shape, position)
        for position in range(x.rank)
    ]
    return b.concatenate([b.reshape(column, [*index.shape, 1]) for column in columns], index.rank)


def _scatter(b: Builder, x: Value, axes: Sequence[int], starts: Value, updates: Value, combine: str) -> Value:
    """Write `updates` [*starts.shape[:-1], *window] at `starts`; combine "second" overwrites."""
    batch = starts.rank - 1
    numbers = {
        "update_window_dims": list(range(batch, updates.rank)),
        "inserted_window_dims": sorted(axes),
        "scatter_dims_to_operand_dims": list(axes),
        "index_vector_dim": batch,
    }
    called = b.scalar_function(combine, x.dtype)
    return b.op(
        "scatter",
        x.dtype,
        x.shape,
        x,
        starts,
        updates,
        scatter_dimension_numbers=numbers,
        called_computation_ids=[called],
    )


@lowers(aten.scatter.src, aten.scatter.value)
def scatter(b: Builder, out: Shape, x: Value, dim: int, index: Value, source: Value | Number) -> Value:
    return _scatter_elements(b, x, dim, index, source, "second")


@lowers(aten.scatter_add.default)
def scatter_add(b: Builder, out: Shape, x: Value, dim: int, index: Value, source: Value) -> Value:
    return _scatter_elements(b, x, dim, index, source, "add")


def _scatter_elements(
    b: Builder, x: Value, dim: int, index: Value, source: Value | Number, combine: str
) -> Value:
    updates = (
        b.broadcast(b.constant(source, x.dtype), index.shape) if not isinstance(source, Value) else source
    )
    for axis, size in enumerate(index.shape):  # torch reads only the part of the source that the index covers
        updates = b.slice(updates, axis, 0, size)
    starts = _element_positions(b, x, dim % x.rank, index)
    return _scatter(b, x, range(x.rank), starts, b.convert(updates, x.dtype), combine)


@lowers(aten.index_put.default)
def index_put(
    b: Builder, out: Shape, x: Value, indices: Sequence[Value | None], values: Value, accumulate: bool = False
) -> Value:
    axes, starts = _index_vectors(b, x, indices)
    if axes != list(range(len(axes))):
        raise NotImplementedError(f"index_put on axes {axes}, not the leading ones")
    shape = [*starts.shape[:-1], *x.shape[len(axes) :]]
    updates = b.broadcast(b.convert(values, x.dtype), shape)
    return _scatter(b, x, axes, starts, updates, "add" if accumulate else "second")


@lowers(aten.index_add.default)
def index_add(
    b: Builder, out: Shape, x: Value, dim: int, index: Value, source: Value, alpha: Number = 1
) -> Value:
    axis = dim % x.rank
    if axis != 0 or alpha != 1:
        raise NotImplementedError(f"index_add with dim {dim} and alpha {alpha}")
    starts = b.reshape(b.convert(index, "int32"), [math.prod(index.shape), 1])
    return _scatter(b, x, [0], starts, as_value(b, source, x.dtype), "add")


def kv_write(b: Builder, out: Shape, cache: Value, new: Value, positions: Value, axis: int) -> Value:
    """Write `new` into `cache` along `axis`, row b of the batch starting at positions[b].

    cache: [B, G, ..]; new: the same but S along `axis`; positions: [B]. One dynamic-update-slice a row, never
    a scatter: the slice is one dense DMA, and the update happens in place when the cache is aliased.
    """
    zero = b.constant(0, "int32")
    for row in range(cache.shape[0]):
        part = b.slice(new, 0, row, row + 1)
        start = b.reshape(b.slice(b.convert(positions, "int32"), 0, row, row + 1), ())
        starts = [zero] * cache.rank
        starts[0], starts[axis % cache.rank] = b.constant(row, "int32"), start
        cache = b.op(
            "dynamic-update-slice", cache.dtype, cache.shape, cache, b.convert(part, cache.dtype), *starts
        )
    return cache
