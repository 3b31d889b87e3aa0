"""Softmax over the last axis, where a model calls it outside of an attention that runs in a kernel of its own.

Matches `torch.softmax`, `F.softmax` and `Tensor.softmax` of one floating-point tensor over its last axis; a `dtype`
argument converts before. The maximum of each row is taken off first.
Any number of rows; up to 16384 columns; float32 and bfloat16. Sizes: T = rows, C = columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size, Tolerance

COLUMNS = 16384


def bind(call: Any) -> Binding | None:
    """Accept a softmax over the last axis of one tensor."""
    if call.operation != "softmax" or len(call.inputs) != 1:
        return None
    shape = call.inputs[0].shape
    axis = call.attributes.get("dim", next((item for item in call.args[1:] if isinstance(item, int)), None))
    if axis is None or not shape or axis not in (-1, len(shape) - 1) or shape[-1] > COLUMNS:
        return None
    return Binding()


def forward(
    operator: Any,
    weights: Mapping[str, Any],
    attributes: Mapping[str, Any],
    x: Any,
    *args: Any,
    dtype: Any = None,
    **kwargs: Any,
) -> Any:
    """Softmax of [..., C] through the operator on [T, C]; `dtype` may also be the third argument."""
    dtype = dtype or next((item for item in args if item is not None and not isinstance(item, int)), None)
    converted = x if dtype is None else x.to(dtype)
    return operator(converted.reshape(-1, x.shape[-1]).contiguous()).reshape(x.shape)


def inputs(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    """x [T, C]."""
    return (draw.normal((sizes["T"], sizes["C"])),)


def flops(*shapes: tuple[int, ...]) -> int:
    """TensorE is not used."""
    return 0


def _case(name: str, kind: Any, rows: int, columns: int, **options: Any) -> Case:
    return Case(name=name, kind=kind, sizes={"T": rows, "C": columns}, **options)


RECIPE = Recipe(
    name="softmax",
    summary="Softmax over the last axis.",
    schema="(Tensor x) -> Tensor",
    operation="softmax",
    bind=bind,
    forward=forward,
    sequence_axes=(-2,),
    inputs=inputs,
    flops=flops,
    tolerance=Tolerance(reduction_length="C"),
    sizes={"T": Size(least=1, most=65536), "C": Size(least=1, most=COLUMNS)},
    scales=(1.0, 4.0, 3e-3),  # at a thousand every row is one-hot, and near ties fall as rounding has it
    cases=(
        _case("scores", "ordinary", 128, 128),
        _case("experts", "ordinary", 40, 8),
        _case("one row", "tail", 1, 1000),
        _case("two columns", "tail", 9, 2),
        _case("several rows on a partition", "tail", 1100, 48),
        _case("uneven", "tail", 131, 77),
        _case("tiny values", "stress", 16, 64, scale=1e-3),
        _case("large values", "stress", 16, 64, scale=30.0),
        _case("one stands out", "stress", 16, 64, style="one hot"),
        _case("wide", "large", 5, 16384),
    ),
)
