"""Which function lowers which ATen operator.

A lowering is `function(builder, out, *args, **kwargs) -> Value | tuple[Value, ...]`: `args` are the
operator's own, with tensors replaced by Values; `out` is the Shape of the result (a tuple Shape when there
are several). Keywords that only place or lay out memory never arrive.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from neuron_port.lower.builder import FLOATS, Builder, Value

Lowering = Callable[..., Any]
LOWERINGS: dict[Any, Lowering] = {}
CHIP_DTYPES = {"float8_e4m3fn": "float8_e4m3"}  # torch's dtype -> what stands for it on gen2 and gen3
IGNORED_KEYWORDS = frozenset(
    {"device", "layout", "pin_memory", "dtype", "memory_format", "non_blocking", "generator"}
)

Number = int | float | bool


def lowers(*operators: Any) -> Callable[[Lowering], Lowering]:
    """Register the decorated function for the given operator overloads."""

    def register(function: Lowering) -> Lowering:
        for operator in operators:
            assert operator not in LOWERINGS, operator
            LOWERINGS[operator] = function
        return function

    return register


def as_value(builder: Builder, operand: Value | Number, dtype: str) -> Value:
    """The operand in `dtype`; a Python number becomes a constant."""
    return builder.convert(operand, dtype) if isinstance(operand, Value) else builder.constant(operand, dtype)


def common_dtype(left: Value | Number, right: Value | Number) -> str:
    """The dtype in which torch would combine two operands."""
    if not isinstance(left, Value) or not isinstance(right, Value):
        tensor, number = (left, right) if isinstance(left, Value) else (right, left)
        assert isinstance(tensor, Value)
        assert not isinstance(number, Value)
        if isinstance(number, float) and tensor.dtype not in FLOATS:
            return "float32"
        return "int32" if tensor.dtype == "bool" and not isinstance(number, bool) else tensor.dtype
    ranks = [_category(value.dtype) for value in (left, right)]
    if ranks[0] != ranks[1]:
        return left.dtype if ranks[0] > ranks[1] else right.dtype
    if (left.rank == 0) != (
        right.rank == 0
    ):  # within a category, torch follows the operand that has dimensions
        return right.dtype if left.rank == 0 else left.dtype
    return _promote(left.dtype, right.dtype)


def _category(dtype: str) -> int:
    return 2 if dtype in FLOATS else 0 if dtype == "bool" else 1


def _promote(left: str, right: str) -> str:
    if left == right:
        return left
    order = ("bool", "uint8", "int8", "int16", "int32")
    if left in order and right in order:
        if {left, right} == {"uint8", "int8"}:
            return "int16"
        return max(left, right, key=order.index)
    return "float32"
