"""Operators that move or create elements without arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from neuron_port.lower.builder import Builder, Value
from neuron_port.lower.module import Shape
from neuron_port.lower.registry import Number, as_value, lowers

aten = torch.ops.aten


@lowers(
    aten.alias.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.detach_.default,
    aten.lift_fresh_copy.default,
)
def same(b: Builder, out: Shape, x: Value) -> Value:
    return x


@lowers(
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.flatten.using_ints,
)
def reshape(b: Builder, out: Shape, x: Value, *_: object) -> Value:
    return b.reshape(x, out.dimensions)


@lowers(aten.expand.default)
def expand(b: Builder, out: Shape, x: Value, sizes: Sequence[int], implicit: bool = False) -> Value:
    return b.broadcast(x, out.dimensions)


@lowers(aten.permute.default)
def permute(b: Builder, out: Shape, x: Value, dims: Sequence[int]) -> Value:
    return b.transpose(x, dims)


@lowers(aten.transpose.int)
def transpose(b: Builder, out: Shape, x: Value, first: int, second: int) -> Value:
    order = list(range(x.rank))
    order[first], order[second] = order[second], order[first]
    return b.transpose(x, order)


@lowers(aten.t.default)
def t(b: Builder, out: Shape, x: Value) -> Value:
    return b.transpose(x, range(x.rank - 1, -1, -1))


@lowers(aten.cat.default)
def cat(b: Builder, out: Shape, tensors: Sequence[Value], dim: int = 0) -> Value:
    """Empty one-dimensional tensors are skipped, as torch does."""
    kept = [b.convert(x, out.dtype) for x in tensors if x.shape != (0,)]
    return b.concatenate(kept, dim % len(out.dimensions)) if kept else b.convert(tensors[0], out.dtype)


@lowers(aten.slice.Tensor)
def slice_(
    b: Builder,
    out: Shape,
    x: Value,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Value:
    axis = dim % x.rank
    first, limit, _ = slice(start, end).indices(x.shape[axis])
    return b.slice(x, axis, first, max(first, limit), step)


@lowers(aten.select.int)
def select(b: Builder, out: Shape, x: Value, dim: int, index: int) -> Value:
    axis = dim % x.rank
    position = index % x.shape[axis]
    return b.reshape(b.slice(x, axis, position, position + 1), out.dimensions)


@lowers(aten.split_with_sizes.default, aten.split_with_sizes_copy.default)
def split_with_sizes(
    b: Builder, out: Shape, x: Value, sizes: Sequence[int], dim: int = 0
) -> tuple[Value, ...]:
    parts, start = [], 0
    for size in sizes:
        parts.append(b.slice(x, dim % x.rank, start, start + size))
        start += size
    return tuple(parts)


@lowers(aten.split.Tensor)
def split(b: Builder, out: Shape, x: Value, size: int, dim: int = 0) -> tuple[Value, ...]:
    length = x.shape[dim % x.rank]
    sizes = [min(size, length - start) for start in range(0, length, size)]
    return split_with_sizes(b, out, x, sizes, dim)


@lowers(aten.unbind.int)
def unbind(b: Builder, out: Shape, x: Value, dim: int = 0) -> tuple[Value, ...]:
    return tuple(select(b, part, x, dim, index) for index, part in enumerate(out.elements))


@lowers(aten.stack.default)
def stack(b: Builder, out: Shape, tensors: Sequence[Value], dim: int = 0) -> Value:
    axis = dim % len(out.dimensions)
    shape = [1 if index == axis else size for index, size in enumerate(out.dimensions)]
    return b.concatenate([b.reshape(b.convert(x, out.dtype), shape) for x in tensors], axis)


@lowers(aten.repeat.default)
def repeat(b: Builder, out: Shape, x: Value, repeats: Sequence[int]) -> Value:
    """[n] repeated r times is [r, n] flattened, for every axis at once."""
    shape = [1] * (len(repeats) - x.rank) + list(x.shape)
    pairs = [item for count, size in zip(repeats, shape, strict=True) for item in (count, size)]
    kept = [2 * axis + 1 for axis in range(len(shape))]
    return b.reshape(b.broadcast_in_dim(b.reshape(x, shape), pairs, kept), out.dimensions)


@lowers(aten.flip.default)
def flip(b: Builder, out: Shape, x: Value, dims: Sequence[int]) -> Value:
    axes = sorted(axis % x.rank for axis in dims)
    return b.op("reverse", x.dtype, x.shape, x, dimensions=axes) if axes else x


@lowers(aten.constant_pad_nd.default)
def constant_pad_nd(b: Builder, out: Shape, x: Value, pad: Sequence[int], value: Number = 0) -> Value:
    """`pad` lists (before, after) from the last axis backwards."""
    low, high = [0] * x.rank, [0] * x.rank
    for index in range(len(pad) // 2):
        low[x.rank - 1 - index], high[x.rank - 1 - index] = pad[2 * index], pad[2 * index + 1]
    return b.pad(x, low, high, value) if any(pad) else x


@lowers(aten.slice_scatter.default)
def slice_scatter(
    b: Builder,
    out: Shape,
    x: Value,
    source: Value,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Value:
    axis = dim % x.rank
    first, _, _ = slice(start, end).indices(x.shape[axis])
    if step != 1:
        return _scatter_by_steps(b, x, b.convert(source, x.dtype), axis, first, step)
    starts = [b.constant(first if index == axis else 0, "int32") for index in range(x.rank)]
    return b.op("dynamic-update-slice", x.dtype, x.shape, x, b.convert(source, x.dtype), *starts)


def _scatter_by_steps(b: Builder, x: Value, source: Value, axis: int, first: int, step: int) -> Value:
    """Spread the source out to the places that it takes, and choose it there."""
    count, size = source.shape[axis], x.shape[axis]
    if not count:
        return x
    nothing = [0] * x.rank
    low, high, between = list(nothing), list(nothing), list(nothing)
    between[axis] = step - 1
    low[axis] = first
    high[axis] = size - first - (count - 1) * step - 1
    spread = b.pad(source, low, high, 0, between)
    ones = b.pad(b.filled(1, "int32", [count]), [first], [high[axis]], 0, [step - 1])
    taken = b.broadcast_in_dim(b.convert(ones, "bool"), x.shape, [axis])
    return b.select(taken, spread, x)


@lowers(aten.copy.default)
def copy(b: Builder, out: Shape, x: Value, source: Value) -> Value:
    return b.broadcast(b.convert(source, out.dtype), out.dimensions)


@lowers(aten.select_scatter.default)
def select_scatter(b: Builder, out: Shape, x: Value, source: Value, dim: int, index: int) -> Value:
    axis = dim % x.rank
    position = index % x.shape[axis]
    widened = b.reshape(source, [1 if i == axis else size for i, size in enumerate(x.shape)])
    return slice_scatter(b, out, x, widened, axis, position, position + 1)


@lowers(aten.arange.start_step)
def arange(b: Builder, out: Shape, start: Number, end: Number, step: Number = 1) -> Value:
    steps = b.iota(out.dtype, out.dimensions, 0)
    if step != 1:
        steps = b.elementwise("multiply", steps, b.constant(step, out.dtype))
    return b.elementwise("add", steps, b.constant(start, out.dtype)) if start else steps


@lowers(aten.full.default, aten.full_like.default, aten.new_full.default)
def full(b: Builder, out: Shape, *args: Any) -> Value:
    return b.broadcast(as_value(b, args[-1], out.dtype), out.dimensions)


@lowers(aten.scalar_tensor.default)
def scalar_tensor(b: Builder, out: Shape, value: Number) -> Value:
    return b.constant(value, out.dtype)


@lowers(aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default)
def zeros(b: Builder, out: Shape, *_: object) -> Value:
    return b.filled(0, out.dtype, out.dimensions)


@lowers(aten.ones.default, aten.ones_like.default, aten.new_ones.default)
def ones(b: Builder, out: Shape, *_: object) -> Value:
    return b.filled(1, out.dtype, out.dimensions)


@lowers(
    aten.empty_permuted.default,
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.new_empty.default,
    aten.empty_strided.default,
)
def empty(b: Builder, out: Shape, *_: object) -> Value:
    """Zeros: a graph has no unwritten memory."""
    return b.filled(0, out.dtype, out.dimensions)
