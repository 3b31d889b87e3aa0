"""Matrix products and convolution: the work of TensorE."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from neuron_port.lower.builder import Builder, Value
from neuron_port.lower.module import Shape
from neuron_port.lower.ops.elementwise import arithmetic
from neuron_port.lower.registry import Number, lowers

aten = torch.ops.aten


@lowers(aten.mm.default, aten.bmm.default)
def mm(b: Builder, out: Shape, left: Value, right: Value) -> Value:
    return b.matmul(left, right)


@lowers(aten.addmm.default, aten.baddbmm.default)
def addmm(
    b: Builder, out: Shape, bias: Value, left: Value, right: Value, beta: Number = 1, alpha: Number = 1
) -> Value:
    product = b.matmul(left, right)
    if alpha != 1:
        product = arithmetic(b, "multiply", out.dtype, product, alpha)
    if beta != 1:
        bias = arithmetic(b, "multiply", out.dtype, bias, beta)
    return b.elementwise("add", product, b.broadcast(bias, out.dimensions))


@lowers(aten.mv.default)
def mv(b: Builder, out: Shape, matrix: Value, vector: Value) -> Value:
    return b.reshape(b.matmul(matrix, b.reshape(vector, [*vector.shape, 1])), out.dimensions)


@lowers(aten.dot.default)
def dot(b: Builder, out: Shape, left: Value, right: Value) -> Value:
    return b.reshape(b.matmul(b.reshape(left, [1, *left.shape]), b.reshape(right, [*right.shape, 1])), ())


@lowers(aten.convolution.default)
def convolution(
    b: Builder,
    out: Shape,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Value:
    """x: [N, C, spatial..], weight: [O, C / groups, spatial..]; transposed: [C, O / groups, spatial..]."""
    spatial = list(range(2, x.rank))
    if transposed:
        weight = _transposed_weight(b, weight, groups)
    window = []
    for axis in spatial:
        size, gap, edge = weight.shape[axis], _each(dilation, axis), _each(padding, axis)
        reach = gap * (size - 1) - edge
        low, high = (reach, reach + _each(output_padding, axis)) if transposed else (edge, edge)
        step = _each(stride, axis)
        window.append(
            {
                "size": size,
                "stride": 1 if transposed else step,
                "padding_low": low,
                "padding_high": high,
                "window_dilation": gap,
                "base_dilation": step if transposed else 1,
            }
        )
    numbers = {
        "input_feature_dimension": 1,
        "kernel_input_feature_dimension": 1,
        "output_feature_dimension": 1,
        "input_spatial_dimensions": spatial,
        "kernel_spatial_dimensions": spatial,
        "output_spatial_dimensions": spatial,
    }
    result = b.op(
        "convolution",
        out.dtype,
        out.dimensions,
        x,
        weight,
        window={"dimensions": window},
        convolution_dimension_numbers=numbers,
        feature_group_count=groups,
    )
    if bias is None:
        return result
    return b.elementwise("add", result, b.broadcast_in_dim(bias, out.dimensions, [1]))


def _transposed_weight(b: Builder, weight: Value, groups: int) -> Value:
    """[C, O / groups, spatial..] as the weight of the convolution that spreads out: [O, C / groups, spatial..]."""
    channels, outputs, *sizes = weight.shape
    grouped = b.reshape(weight, [groups, channels // groups, outputs, *sizes])
    turned = b.transpose(grouped, [0, 2, 1, *range(3, grouped.rank)])
    flat = b.reshape(turned, [groups * outputs, channels // groups, *sizes])
    return b.op("reverse", flat.dtype, flat.shape, flat, dimensions=list(range(2, flat.rank)))


def _each(values: Sequence[int], axis: int) -> int:
    return values[axis - 2] if len(values) > 1 else values[0]
