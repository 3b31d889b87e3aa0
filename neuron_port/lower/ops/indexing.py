"""Reading and writing at positions that are known only when the graph runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from neuron_port.errors import LoweringError
from neuron_port.lower.builder import FLOATS, Builder, Value, broadcast_shape, identity
from neuron_port.lower.module import Shape
from neuron_port.lower.ops.reduction import running_sum
from neuron_port.lower.registry import Number, as_value, lowers

aten = torch.ops.aten
PAIRS_LIMIT = 1 << 24  # of a place and an update that are compared
SCATTER_BY_SELECTION_LIMIT = 64  # beyond it, a choice for each index costs more than a scatter


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
    """NumPy's advanced indexing with integer tensors; None keeps an axis.

    A mask alone is possible where the number of its true elements is known, as it is when the result meets a tensor
    of static shape.
    """
    if len(indices) == 1 and indices[0] is not None and indices[0].dtype == "bool":
        return _masked_rows(b, x, indices[0], out.dimensions)
    axes, starts = _index_vectors(b, x, indices)
    adjacent = axes == list(range(axes[0], axes[0] + len(axes)))
    return _gather(b, x, axes, starts, axes[0] if adjacent else 0)


def _masked_rows(b: Builder, x: Value, mask: Value, shape: tuple[int, ...]) -> Value:
    """The rows under the mask, in order: row k stands where k + 1 true elements have been counted first."""
    size, count = math.prod(mask.shape), shape[0]
    flat = b.convert(b.reshape(mask, [size]), "int32")
    counted = running_sum(b, flat, 0)
    table = [count, size]
    passed = b.compare("LE", b.broadcast_in_dim(counted, table, [1]), b.iota("int32", table, 0))
    places = b.reduce("add", b.convert(passed, "int32"), [1])
    places = b.elementwise("minimum", places, b.constant(size - 1, "int32"))
    return _take(b, b.reshape(x, [size, *x.shape[mask.rank :]]), 0, places)


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


def _write_slices(b: Builder, x: Value, axis: int, starts: Value, updates: Value) -> Value:
    """Overwrite slices of integers: each place finds the last update that names it, and takes it.

    NeuronCore-v3 scatters no integers (error-codes/EVRF060).
    """
    count = math.prod(starts.shape[:-1])
    size = x.shape[axis]
    table = [count, size]
    named = b.broadcast_in_dim(b.reshape(starts, [count]), table, [0])
    hit = b.compare("EQ", named, b.iota("int32", table, 1))
    last = b.reduce("maximum", b.select(hit, b.iota("int32", table, 0), b.constant(-1, "int32")), [0])
    flat = b.reshape(updates, [count, *updates.shape[starts.rank - 1 :]])
    taken = _take(b, flat, 0, b.elementwise("maximum", last, b.constant(0, "int32")))
    taken = b.transpose(taken, [*range(1, axis + 1), 0, *range(axis + 1, x.rank)])
    written = b.compare("GE", last, b.constant(0, "int32"))
    return b.select(b.broadcast_in_dim(written, x.shape, [axis]), taken, x)


def _scatter(b: Builder, x: Value, axes: Sequence[int], starts: Value, updates: Value, combine: str) -> Value:
    """Write `updates` [*starts.shape[:-1], *window] at `starts`; combine "second" overwrites."""
    pairs = math.prod(starts.shape[:-1]) * x.shape[axes[0]]
    if combine == "second" and x.dtype not in FLOATS and len(axes) == 1 and pairs <= PAIRS_LIMIT:
        return _write_slices(b, x, axes[0], starts, updates)
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
    """A few indices along an axis are compared with the places of that axis: no scatter, and integers stay exact."""
    updates = (
        b.broadcast(b.constant(source, x.dtype), index.shape) if not isinstance(source, Value) else source
    )
    for axis, size in enumerate(index.shape):  # torch reads only the part of the source that the index covers
        updates = b.slice(updates, axis, 0, size)
    axis = dim % x.rank if x.rank else 0
    others_full = index.shape[:axis] + index.shape[axis + 1 :] == x.shape[:axis] + x.shape[axis + 1 :]
    if (
        x.rank
        and others_full
        and index.shape[axis] <= SCATTER_BY_SELECTION_LIMIT
        and combine in _BY_SELECTION
    ):
        return _select_elements(b, x, axis, index, b.convert(updates, x.dtype), combine)
    starts = _element_positions(b, x, dim % x.rank, index)
    return _scatter(b, x, range(x.rank), starts, b.convert(updates, x.dtype), combine)


_BY_SELECTION = ("second", "add", "maximum", "minimum", "multiply")


def _select_elements(b: Builder, x: Value, axis: int, index: Value, updates: Value, combine: str) -> Value:
    """One index after another: where a place along the axis is the index, its update is combined."""
    places = b.iota("int32", x.shape, axis)
    positions = b.convert(index, "int32")
    for number in range(index.shape[axis]):
        hit = b.compare("EQ", places, b.slice(positions, axis, number, number + 1))
        update = b.slice(updates, axis, number, number + 1)
        x = b.select(hit, update if combine == "second" else b.elementwise(combine, x, update), x)
    return x


@lowers(aten.scatter_reduce.two)
def scatter_reduce(
    b: Builder,
    out: Shape,
    x: Value,
    dim: int,
    index: Value,
    source: Value,
    reduce: str,
    include_self: bool = True,
) -> Value:
    """Without `include_self`, elements that are written start from the reduction's identity."""
    combine = {"sum": "add", "prod": "multiply", "amax": "maximum", "amin": "minimum"}[reduce]
    if not include_self:
        x = _scatter_elements(b, x, dim, index, identity(combine, x.dtype), "second")
    return _scatter_elements(b, x, dim, index, source, combine)


@lowers(aten.index_put.default)
def index_put(
    b: Builder, out: Shape, x: Value, indices: Sequence[Value | None], values: Value, accumulate: bool = False
) -> Value:
    """The indexed axes are brought to the front for the scatter, and back."""
    axes, starts = _index_vectors(b, x, indices)
    kept = [axis for axis in range(x.rank) if axis not in axes]
    order = axes + kept
    batch = list(starts.shape[:-1])
    adjacent = axes == list(range(axes[0], axes[0] + len(axes)))
    place = axes[0] if adjacent else 0  # where the positions' axes stand in x[indices], and so in the values
    shape = [*(x.shape[axis] for axis in kept)]
    shape[place:place] = batch
    updates = b.broadcast(b.convert(values, x.dtype), shape)
    moved = [*range(place, place + len(batch)), *range(place), *range(place + len(batch), len(shape))]
    combine = "add" if accumulate else "second"
    leading = list(range(len(axes)))
    written = _scatter(b, b.transpose(x, order), leading, starts, b.transpose(updates, moved), combine)
    return b.transpose(written, [order.index(axis) for axis in range(x.rank)])


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
    a scatter: the slice is one dense DMA, and the update happens in place when the cache is aliased. What is new
    from end to end is the cache.
    """
    if new.shape == cache.shape:
        return b.convert(new, cache.dtype)
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


def row_write(b: Builder, out: Shape, state: Value, row: Value, slot: Value) -> Value:
    """Write `row` [1, ..] over the beginning of row slot[0] of `state` [B, ..]: one dynamic-update-slice.

    Everything else of the state stays where it is, and is not read either when the state is aliased.
    """
    start = b.reshape(b.convert(slot, "int32"), ())
    starts = [start, *[b.constant(0, "int32")] * (state.rank - 1)]
    return b.op("dynamic-update-slice", state.dtype, state.shape, state, row, *starts)
