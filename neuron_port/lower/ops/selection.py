"""Where the largest elements are: argmax, top-k, sort.

All of it up to a size uses only compare, select and reduce, so that the very same graph runs on XLA-CPU and on Neuron,
where HLO `sort` is refused. Equal elements are taken in order of their index.
"""

from __future__ import annotations

import math

import torch

from neuron_port.lower.builder import FLOATS, Builder, Value
from neuron_port.lower.module import Shape
from neuron_port.lower.registry import lowers

aten = torch.ops.aten

SORT_BY_RANKING_LIMIT = 1 << 24  # pairs that are compared
TOPK_BY_SELECTION_LIMIT = 64  # beyond it, k passes over the data cost more than a sort


def _ranked(b: Builder, x: Value, axis: int, descending: bool) -> tuple[Value, Value]:
    """An element's rank is the number of those before it; each place of the result keeps the one of that rank.

    Two tables of [.., n, n], no sort, no gather. Numbers only: NaN has no rank.
    """
    size = x.shape[axis]
    order = [*(other for other in range(x.rank) if other != axis), axis]
    last = b.transpose(x, order)
    square = [*last.shape, size]
    low = last.rank - 1
    mine = b.broadcast_in_dim(last, square, range(last.rank))  # [.., i, j]: element i
    other = b.broadcast_in_dim(last, square, [*range(low), low + 1])  # element j
    ahead = b.compare("GT" if descending else "LT", other, mine)
    earlier = b.compare("LT", b.iota("int32", square, low + 1), b.iota("int32", square, low))
    tied = b.elementwise("and", b.compare("EQ", other, mine), earlier)
    before = b.convert(b.elementwise("or", ahead, tied), "int32")
    rank = b.reduce("add", before, [low + 1], keep=True)
    here = b.compare("EQ", rank, b.iota("int32", square, low + 1))  # [.., i, place]
    values = _kept(b, here, mine, low)
    indices = _kept(b, here, b.iota("int32", square, low), low)
    back = [order.index(other) for other in range(x.rank)]
    return b.transpose(values, back), b.transpose(indices, back)


def _kept(b: Builder, chosen: Value, candidates: Value, axis: int) -> Value:
    """The one chosen element along an axis: all others count as nothing."""
    if candidates.dtype == "bool":
        return b.reduce("or", b.elementwise("and", chosen, candidates), [axis])
    nothing = b.constant(0, candidates.dtype)
    return b.reduce("add", b.select(chosen, candidates, nothing), [axis])


def _first_index(b: Builder, hits: Value, positions: Value, axis: int) -> Value:
    """The lowest position along `axis` where `hits` is true (its size if nowhere), with the axis kept."""
    nowhere = b.constant(hits.shape[axis], "int32")
    return b.reduce("minimum", b.select(hits, positions, nowhere), [axis], keep=True)


def _extreme(b: Builder, x: Value, axis: int, opcode: str) -> tuple[Value, Value]:
    """(value, index) of the first extreme element along `axis`, with the axis kept."""
    value = b.reduce(opcode, x, [axis], keep=True)
    return value, _first_index(b, b.compare("EQ", x, value), b.iota("int32", x.shape, axis), axis)


def _arg_extreme(b: Builder, out: Shape, x: Value, dim: int | None, opcode: str) -> Value:
    if dim is None:
        x, dim = b.reshape(x, [math.prod(x.shape)]), 0
    return b.reshape(_extreme(b, x, dim % x.rank, opcode)[1], out.dimensions)


@lowers(aten.argmax.default)
def argmax(b: Builder, out: Shape, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
    return _arg_extreme(b, out, x, dim, "maximum")


@lowers(aten.argmin.default)
def argmin(b: Builder, out: Shape, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
    return _arg_extreme(b, out, x, dim, "minimum")


@lowers(aten.max.dim)
def max_dim(b: Builder, out: Shape, x: Value, dim: int, keepdim: bool = False) -> tuple[Value, ...]:
    found = _extreme(b, x, dim % x.rank, "maximum")
    return tuple(b.reshape(value, part.dimensions) for value, part in zip(found, out.elements, strict=True))


@lowers(aten.min.dim)
def min_dim(b: Builder, out: Shape, x: Value, dim: int, keepdim: bool = False) -> tuple[Value, ...]:
    found = _extreme(b, x, dim % x.rank, "minimum")
    return tuple(b.reshape(value, part.dimensions) for value, part in zip(found, out.elements, strict=True))


@lowers(aten.topk.default)
def topk(
    b: Builder, out: Shape, x: Value, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[Value, Value]:
    axis = dim % x.rank
    if k > TOPK_BY_SELECTION_LIMIT:
        values, indices = _sorted(b, x, axis, descending=largest)
        return b.slice(values, axis, 0, k), b.slice(indices, axis, 0, k)
    signed = x if largest else b.elementwise("negate", x)
    values, indices = _select_largest(b, signed, k, axis)
    return (values if largest else b.elementwise("negate", values)), indices


def _select_largest(b: Builder, x: Value, k: int, axis: int) -> tuple[Value, Value]:
    """Take the first largest element k times; an element that was taken is never a candidate again."""
    limits = (
        torch.finfo(getattr(torch, x.dtype)) if x.dtype in FLOATS else torch.iinfo(getattr(torch, x.dtype))
    )
    lowest = b.constant(limits.min, x.dtype)
    left = b.elementwise("maximum", x, lowest)  # an infinite score must not lie below the mark of taken ones
    positions = b.iota("int32", x.shape, axis)
    free = b.filled(True, "bool", x.shape)
    values, indices = [], []
    for _ in range(k):
        value = b.reduce("maximum", left, [axis], keep=True)
        index = _first_index(b, b.elementwise("and", b.compare("EQ", left, value), free), positions, axis)
        values.append(value)
        indices.append(index)
        free = b.elementwise("and", free, b.compare("NE", positions, index))
        left = b.select(free, left, lowest)
    return b.concatenate(values, axis), b.concatenate(indices, axis)


@lowers(aten.sort.default)
def sort(b: Builder, out: Shape, x: Value, dim: int = -1, descending: bool = False) -> tuple[Value, Value]:
    return _sorted(b, x, dim % x.rank, descending)


@lowers(aten.sort.stable)
def sort_stable(
    b: Builder, out: Shape, x: Value, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[Value, Value]:
    return _sorted(b, x, dim % x.rank, descending)


def _sorted(b: Builder, x: Value, axis: int, descending: bool) -> tuple[Value, Value]:
    """By comparing every pair where there are few enough; beyond, HLO's sort, which runs on the CPU only."""
    if math.prod(x.shape) * x.shape[axis] <= SORT_BY_RANKING_LIMIT:
        return _ranked(b, x, axis, descending)
    positions = b.iota("int32", x.shape, axis)
    parts = (Shape(x.dtype, x.shape), Shape("int32", x.shape))
    pair = b.add(
        "sort",
        Shape("tuple", (), parts),
        [x.id, positions.id],
        dimensions=[axis],
        is_stable=True,
        called_computation_ids=[b.descending(x.dtype, descending)],
    )
    values, indices = (
        b.add("get-tuple-element", part, [pair], tuple_index=n) for n, part in enumerate(parts)
    )
    return Value(values, x.shape, x.dtype), Value(indices, x.shape, "int32")
