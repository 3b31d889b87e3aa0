"""Reductions and normalisations. Floating point is summed in float32 and rounded once, whatever the dtype."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from neuron_port.lower.builder import FLOATS, Builder, Value
from neuron_port.lower.module import Shape
from neuron_port.lower.registry import Number, lowers

aten = torch.ops.aten


def _axes(x: Value, dim: int | Sequence[int] | None) -> list[int]:
    if dim is None or (not isinstance(dim, int) and not dim):
        return list(range(x.rank))
    return [dim] if isinstance(dim, int) else list(dim)


def _wide(b: Builder, x: Value) -> Value:
    """float32 for floats, int32 for integers and booleans."""
    return b.convert(x, "float32" if x.dtype in FLOATS else "int32")


def _mean(b: Builder, wide: Value, axes: Sequence[int]) -> Value:
    """The mean with the axes kept; `wide` is float32."""
    count = math.prod(wide.shape[axis] for axis in axes)
    return b.elementwise("divide", b.reduce("add", wide, axes, keep=True), b.constant(count, "float32"))


@lowers(aten.sum.dim_IntList, aten.sum.default)
def sum_(b: Builder, out: Shape, x: Value, dim: Sequence[int] | None = None, keepdim: bool = False) -> Value:
    return b.convert(b.reduce("add", _wide(b, x), _axes(x, dim), keepdim), out.dtype)


@lowers(aten.mean.dim, aten.mean.default)
def mean(b: Builder, out: Shape, x: Value, dim: Sequence[int] | None = None, keepdim: bool = False) -> Value:
    result = _mean(b, b.convert(x, "float32"), _axes(x, dim))
    return b.convert(b.reshape(result, out.dimensions), out.dtype)


def _variance(b: Builder, wide: Value, axes: Sequence[int], correction: Number | None) -> tuple[Value, Value]:
    """(variance, mean) with the axes kept; correction is what is taken off the count, 1 unless given."""
    average = _mean(b, wide, axes)
    centred = b.elementwise("subtract", wide, average)
    total = b.reduce("add", b.elementwise("multiply", centred, centred), axes, keep=True)
    freedom = math.prod(wide.shape[axis] for axis in axes) - (1 if correction is None else correction)
    return b.elementwise("divide", total, b.constant(freedom, "float32")), average


@lowers(aten.var.correction)
def var(
    b: Builder,
    out: Shape,
    x: Value,
    dim: Sequence[int] | None = None,
    correction: Number | None = None,
    keepdim: bool = False,
) -> Value:
    variance, _ = _variance(b, b.convert(x, "float32"), _axes(x, dim), correction)
    return b.convert(b.reshape(variance, out.dimensions), out.dtype)


@lowers(aten.var_mean.correction)
def var_mean(
    b: Builder,
    out: Shape,
    x: Value,
    dim: Sequence[int] | None = None,
    correction: Number | None = None,
    keepdim: bool = False,
) -> tuple[Value, ...]:
    pair = _variance(b, b.convert(x, "float32"), _axes(x, dim), correction)
    return tuple(
        b.convert(b.reshape(value, part.dimensions), part.dtype)
        for value, part in zip(pair, out.elements, strict=True)
    )


@lowers(aten.prod.dim_int)
def prod(b: Builder, out: Shape, x: Value, dim: int, keepdim: bool = False) -> Value:
    return b.convert(b.reduce("multiply", _wide(b, x), [dim], keepdim), out.dtype)


@lowers(aten.amax.default)
def amax(b: Builder, out: Shape, x: Value, dim: Sequence[int] = (), keepdim: bool = False) -> Value:
    return b.reduce("maximum", x, _axes(x, dim), keepdim)


@lowers(aten.max.default)
def max_all(b: Builder, out: Shape, x: Value) -> Value:
    return b.reduce("maximum", x, range(x.rank))


@lowers(aten.min.default)
def min_all(b: Builder, out: Shape, x: Value) -> Value:
    return b.reduce("minimum", x, range(x.rank))


@lowers(aten.amin.default)
def amin(b: Builder, out: Shape, x: Value, dim: Sequence[int] = (), keepdim: bool = False) -> Value:
    return b.reduce("minimum", x, _axes(x, dim), keepdim)


@lowers(aten.any.default, aten.any.dim, aten.any.dims)
def any_(
    b: Builder, out: Shape, x: Value, dim: int | Sequence[int] | None = None, keepdim: bool = False
) -> Value:
    return b.reduce("or", b.convert(x, "bool"), _axes(x, dim), keepdim)


@lowers(aten.all.default, aten.all.dim, aten.all.dims, aten._is_all_true.default)
def all_(
    b: Builder, out: Shape, x: Value, dim: int | Sequence[int] | None = None, keepdim: bool = False
) -> Value:
    return b.reduce("and", b.convert(x, "bool"), _axes(x, dim), keepdim)


@lowers(aten._softmax.default)
def softmax(b: Builder, out: Shape, x: Value, dim: int, half_to_float: bool = False) -> Value:
    wide = b.convert(x, "float32")
    shifted = b.elementwise("subtract", wide, b.reduce("maximum", wide, [dim], keep=True))
    weights = b.elementwise("exponential", shifted)
    return b.convert(b.elementwise("divide", weights, b.reduce("add", weights, [dim], keep=True)), out.dtype)


@lowers(aten._log_softmax.default)
def log_softmax(b: Builder, out: Shape, x: Value, dim: int, half_to_float: bool = False) -> Value:
    wide = b.convert(x, "float32")
    shifted = b.elementwise("subtract", wide, b.reduce("maximum", wide, [dim], keep=True))
    total = b.elementwise("log", b.reduce("add", b.elementwise("exponential", shifted), [dim], keep=True))
    return b.convert(b.elementwise("subtract", shifted, total), out.dtype)


@lowers(aten.native_layer_norm.default)
def native_layer_norm(
    b: Builder,
    out: Shape,
    x: Value,
    normalized_shape: Sequence[int],
    weight: Value | None,
    bias: Value | None,
    eps: float,
) -> tuple[Value, Value, Value]:
    """(normalised, mean, reciprocal standard deviation)."""
    axes = list(range(x.rank - len(normalized_shape), x.rank))
    wide = b.convert(x, "float32")
    variance, average = _variance(b, wide, axes, 0)
    centred = b.elementwise("subtract", wide, average)
    scale = b.elementwise("rsqrt", b.elementwise("add", variance, b.constant(eps, "float32")))
    result = b.elementwise("multiply", centred, scale)
    if weight is not None:
        result = b.elementwise("multiply", result, b.convert(weight, "float32"))
    if bias is not None:
        result = b.elementwise("add", result, b.convert(bias, "float32"))
    statistics = out.elements[1].dtype
    return (
        b.convert(result, out.elements[0].dtype),
        b.convert(average, statistics),
        b.convert(scale, statistics),
    )


@lowers(aten.cumsum.default)
def cumsum(b: Builder, out: Shape, x: Value, dim: int) -> Value:
    return b.convert(running_sum(b, _wide(b, x), dim % x.rank) if x.rank else x, out.dtype)


def running_sum(b: Builder, total: Value, axis: int) -> Value:
    """log2(n) shifted adds along an axis: neither reduce-window nor a scan is sure to compile on Neuron."""
    step = 1
    while step < total.shape[axis]:
        low, high = [0] * total.rank, [0] * total.rank
        low[axis], high[axis] = step, -step
        total = b.elementwise("add", total, b.pad(total, low, high, 0))
        step *= 2
    return total
