"""Elementwise arithmetic, comparison and choice."""

from __future__ import annotations

import math

import torch

from neuron_port.lower.builder import FLOATS, Builder, Value
from neuron_port.lower.module import Shape
from neuron_port.lower.registry import (
    CHIP_DTYPES,
    LOWERINGS,
    Lowering,
    Number,
    as_value,
    common_dtype,
    lowers,
)

aten = torch.ops.aten

UNARY = {
    aten.abs.default: "abs",
    aten.bitwise_not.default: "not",
    aten.ceil.default: "ceil",
    aten.cos.default: "cosine",
    aten.erf.default: "erf",
    aten.exp.default: "exponential",
    aten.expm1.default: "exponential-minus-one",
    aten.floor.default: "floor",
    aten.log.default: "log",
    aten.log1p.default: "log-plus-one",
    aten.neg.default: "negate",
    aten.round.default: "round-nearest-even",
    aten.rsqrt.default: "rsqrt",
    aten.sigmoid.default: "logistic",
    aten.sign.default: "sign",
    aten.sin.default: "sine",
    aten.sqrt.default: "sqrt",
    aten.tan.default: "tan",
    aten.tanh.default: "tanh",
}
BINARY = {
    aten.__lshift__.Scalar: "shift-left",
    aten.__lshift__.Tensor: "shift-left",
    aten.__rshift__.Scalar: "shift-right-arithmetic",
    aten.__rshift__.Tensor: "shift-right-arithmetic",
    aten.atan2.default: "atan2",
    aten.bitwise_left_shift.Tensor: "shift-left",
    aten.bitwise_left_shift.Tensor_Scalar: "shift-left",
    aten.bitwise_right_shift.Tensor: "shift-right-arithmetic",
    aten.bitwise_right_shift.Tensor_Scalar: "shift-right-arithmetic",
    aten.bitwise_and.Scalar: "and",
    aten.bitwise_and.Tensor: "and",
    aten.bitwise_or.Scalar: "or",
    aten.bitwise_or.Tensor: "or",
    aten.bitwise_xor.Scalar: "xor",
    aten.bitwise_xor.Tensor: "xor",
    aten.div.Scalar: "divide",
    aten.div.Tensor: "divide",
    aten.fmod.Scalar: "remainder",
    aten.fmod.Tensor: "remainder",
    aten.maximum.default: "maximum",
    aten.minimum.default: "minimum",
    aten.mul.Scalar: "multiply",
    aten.mul.Tensor: "multiply",
    aten.pow.Scalar: "power",
    aten.pow.Tensor_Tensor: "power",
}
COMPARISONS = {"eq": "EQ", "ne": "NE", "lt": "LT", "le": "LE", "gt": "GT", "ge": "GE"}


def _unary(opcode: str) -> Lowering:
    def lower(b: Builder, out: Shape, x: Value) -> Value:
        return b.op(opcode, out.dtype, x.shape, b.convert(x, out.dtype))

    return lower


def _binary(opcode: str) -> Lowering:
    def lower(b: Builder, out: Shape, x: Value | Number, y: Value | Number) -> Value:
        return arithmetic(b, opcode, out.dtype, x, y)

    return lower


def _comparison(direction: str) -> Lowering:
    def lower(b: Builder, out: Shape, x: Value, y: Value | Number) -> Value:
        dtype = common_dtype(x, y)
        return b.compare(direction, as_value(b, x, dtype), as_value(b, y, dtype))

    return lower


def _register_tables() -> None:
    for operator, opcode in UNARY.items():
        LOWERINGS[operator] = _unary(opcode)
    for operator, opcode in BINARY.items():
        LOWERINGS[operator] = _binary(opcode)
    for name, direction in COMPARISONS.items():
        for overload in ("Tensor", "Scalar"):
            LOWERINGS[getattr(getattr(aten, name), overload)] = _comparison(direction)


_register_tables()


def arithmetic(b: Builder, opcode: str, dtype: str, x: Value | Number, y: Value | Number) -> Value:
    """Combine two operands in `dtype`; a number that it cannot hold is applied in float32, as in torch."""
    inexact = dtype in FLOATS and any(
        not isinstance(item, Value) and not _exact(item, dtype) for item in (x, y)
    )
    inner = "float32" if inexact else dtype
    return b.convert(b.elementwise(opcode, as_value(b, x, inner), as_value(b, y, inner)), dtype)


def _exact(number: Number, dtype: str) -> bool:
    held = float(torch.tensor(float(number), dtype=torch.float64).to(getattr(torch, dtype)))
    return held == number or not math.isfinite(held)


@lowers(aten.add.Tensor, aten.add.Scalar)
def add(b: Builder, out: Shape, x: Value | Number, y: Value | Number, alpha: Number = 1) -> Value:
    if out.dtype == "bool":
        return b.elementwise("or", as_value(b, x, "bool"), as_value(b, y, "bool"))
    return arithmetic(b, "add", out.dtype, x, _scaled(b, out, y, alpha))


@lowers(aten.sub.Tensor, aten.sub.Scalar)
def sub(b: Builder, out: Shape, x: Value | Number, y: Value | Number, alpha: Number = 1) -> Value:
    return arithmetic(b, "subtract", out.dtype, x, _scaled(b, out, y, alpha))


@lowers(aten.rsub.Scalar, aten.rsub.Tensor)
def rsub(b: Builder, out: Shape, x: Value | Number, y: Value | Number, alpha: Number = 1) -> Value:
    return arithmetic(b, "subtract", out.dtype, y, _scaled(b, out, x, alpha))


def _scaled(b: Builder, out: Shape, operand: Value | Number, alpha: Number) -> Value | Number:
    if alpha == 1:
        return operand
    return (
        arithmetic(b, "multiply", out.dtype, operand, alpha)
        if isinstance(operand, Value)
        else operand * alpha
    )


@lowers(aten.div.Tensor_mode, aten.div.Scalar_mode)
def div_rounded(
    b: Builder, out: Shape, x: Value | Number, y: Value | Number, rounding_mode: str | None = None
) -> Value:
    """HLO divides integers toward zero; "floor" subtracts one where a remainder of the other sign is left."""
    if out.dtype in FLOATS:
        quotient = arithmetic(b, "divide", out.dtype, x, y)
        return quotient if rounding_mode is None else _round_quotient(b, quotient, rounding_mode)
    left, right = as_value(b, x, out.dtype), as_value(b, y, out.dtype)
    quotient = b.elementwise("divide", left, right)
    if rounding_mode == "trunc":
        return quotient
    return b.select(
        _floors(b, left, right), b.elementwise("subtract", quotient, b.constant(1, out.dtype)), quotient
    )


def _round_quotient(b: Builder, quotient: Value, rounding_mode: str) -> Value:
    down = b.elementwise("floor", quotient)
    if rounding_mode == "floor":
        return down
    negative = b.compare("LT", quotient, b.constant(0, quotient.dtype))
    return b.select(negative, b.elementwise("ceil", quotient), down)


def _floors(b: Builder, left: Value, right: Value) -> Value:
    """Where the remainder is not zero and its sign differs from the divisor's."""
    zero = b.constant(0, left.dtype)
    rest = b.elementwise("remainder", left, right)
    opposite = b.compare("NE", b.compare("LT", rest, zero), b.compare("LT", right, zero))
    return b.elementwise("and", b.compare("NE", rest, zero), opposite)


@lowers(aten.remainder.Tensor, aten.remainder.Scalar)
def remainder(b: Builder, out: Shape, x: Value | Number, y: Value | Number) -> Value:
    """Python's modulo: the sign of the divisor. HLO's remainder has the sign of the dividend."""
    left, right = as_value(b, x, out.dtype), as_value(b, y, out.dtype)
    rest = b.elementwise("remainder", left, right)
    return b.select(_floors(b, left, right), b.elementwise("add", rest, right), rest)


@lowers(aten.trunc.default)
def trunc(b: Builder, out: Shape, x: Value) -> Value:
    return _round_quotient(b, x, "trunc")


@lowers(aten.reciprocal.default)
def reciprocal(b: Builder, out: Shape, x: Value) -> Value:
    return arithmetic(b, "divide", out.dtype, 1.0, x)


@lowers(aten.pow.Tensor_Scalar)
def pow_scalar(b: Builder, out: Shape, x: Value, exponent: Number) -> Value:
    """Small powers and roots become products and square roots: `power` would go through logarithms."""
    x = b.convert(x, out.dtype)
    if exponent == 0.5:
        return b.elementwise("sqrt", x)
    if exponent == -0.5:
        return b.elementwise("rsqrt", x)
    if exponent not in (1, 2, 3, 4):
        return arithmetic(b, "power", out.dtype, x, exponent)
    wide = b.convert(x, "float32") if out.dtype in FLOATS else x
    square = wide if exponent == 1 else b.elementwise("multiply", wide, wide)
    result = square if exponent < 3 else b.elementwise("multiply", square, wide if exponent == 3 else square)
    return b.convert(result, out.dtype)


@lowers(aten.exp2.default)
def exp2(b: Builder, out: Shape, x: Value) -> Value:
    scaled = b.elementwise("multiply", b.convert(x, "float32"), b.constant(math.log(2), "float32"))
    return b.convert(b.elementwise("exponential", scaled), out.dtype)


@lowers(aten.log2.default)
def log2(b: Builder, out: Shape, x: Value) -> Value:
    natural = b.elementwise("log", b.convert(x, "float32"))
    return b.convert(b.elementwise("multiply", natural, b.constant(1 / math.log(2), "float32")), out.dtype)


@lowers(aten.relu.default)
def relu(b: Builder, out: Shape, x: Value) -> Value:
    return b.elementwise("maximum", x, b.constant(0, x.dtype))


@lowers(aten.silu.default)
def silu(b: Builder, out: Shape, x: Value) -> Value:
    wide = b.convert(x, "float32")
    return b.convert(b.elementwise("multiply", wide, b.elementwise("logistic", wide)), out.dtype)


@lowers(aten.gelu.default)
def gelu(b: Builder, out: Shape, x: Value, approximate: str = "none") -> Value:
    """x/2 (1 + erf(x/sqrt 2)), or its tanh form; in float32."""
    wide = b.convert(x, "float32")
    if approximate == "tanh":
        cube = b.elementwise("multiply", wide, b.elementwise("multiply", wide, wide))
        inner = b.elementwise("add", wide, b.elementwise("multiply", cube, b.constant(0.044715, "float32")))
        gate = b.elementwise(
            "tanh", b.elementwise("multiply", inner, b.constant(math.sqrt(2 / math.pi), "float32"))
        )
    else:
        gate = b.elementwise("erf", b.elementwise("multiply", wide, b.constant(math.sqrt(0.5), "float32")))
    half = b.elementwise("multiply", wide, b.constant(0.5, "float32"))
    return b.convert(
        b.elementwise("multiply", half, b.elementwise("add", gate, b.constant(1.0, "float32"))), out.dtype
    )


@lowers(aten.logical_not.default)
def logical_not(b: Builder, out: Shape, x: Value) -> Value:
    return b.elementwise("not", b.convert(x, "bool"))


@lowers(aten.logical_and.default)
def logical_and(b: Builder, out: Shape, x: Value, y: Value) -> Value:
    return b.elementwise("and", b.convert(x, "bool"), b.convert(y, "bool"))


@lowers(aten.logical_or.default)
def logical_or(b: Builder, out: Shape, x: Value, y: Value) -> Value:
    return b.elementwise("or", b.convert(x, "bool"), b.convert(y, "bool"))


@lowers(aten.isnan.default)
def isnan(b: Builder, out: Shape, x: Value) -> Value:
    return b.compare("NE", x, x)


@lowers(aten.isinf.default)
def isinf(b: Builder, out: Shape, x: Value) -> Value:
    """Beyond the largest finite value; written so because infinities are not constants of our graphs."""
    return b.compare(
        "GT", b.elementwise("abs", x), b.constant(torch.finfo(getattr(torch, x.dtype)).max, x.dtype)
    )


@lowers(aten.where.self)
def where(b: Builder, out: Shape, condition: Value, x: Value | Number, y: Value | Number) -> Value:
    return b.select(b.convert(condition, "bool"), as_value(b, x, out.dtype), as_value(b, y, out.dtype))


@lowers(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def masked_fill(b: Builder, out: Shape, x: Value, mask: Value, fill: Value | Number) -> Value:
    return b.select(mask, as_value(b, fill, out.dtype), x)


@lowers(aten.clamp.default, aten.clamp.Tensor)
def clamp(
    b: Builder, out: Shape, x: Value, min: Value | Number | None = None, max: Value | Number | None = None
) -> Value:
    result = b.convert(x, out.dtype)
    if min is not None:
        result = b.elementwise("maximum", result, as_value(b, min, out.dtype))
    return result if max is None else b.elementwise("minimum", result, as_value(b, max, out.dtype))


@lowers(aten.view.dtype)
def view_as_dtype(b: Builder, out: Shape, x: Value, *_: object) -> Value:
    """The same bits in another dtype of the same size.

    float8_e4m3fn becomes the e4m3 with infinities, the one that NeuronCores before v4 have (neuronx-cc refuses the
    other: NCC_EVRF051). Up to 240 the bits mean the same; beyond, XLA-CPU answers with infinity as the chip would.
    """
    assert Shape(x.dtype, ()).size_bytes == Shape(out.dtype, ()).size_bytes, (
        f"{x.dtype} viewed as {out.dtype}"
    )
    return b.op("bitcast-convert", CHIP_DTYPES.get(out.dtype, out.dtype), x.shape, x)


@lowers(aten._to_copy.default, torch.ops.prims.convert_element_type.default)
def to_copy(b: Builder, out: Shape, x: Value, *_: object) -> Value:
    return b.convert(x, out.dtype)
