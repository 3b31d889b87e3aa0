"""Functions of `nki.language` that take several instructions: rounding to integers, sines, negation of logic.

AWS documents what they compute, not by which instructions; these are compositions of documented ones, in float32.
"""

from __future__ import annotations

import math
from typing import Any

from neuron_port.simulator.context import current_run
from neuron_port.simulator.dtypes import float32, uint8
from neuron_port.simulator.instructions.operators import (
    Operator,
    abs_,
    add,
    greater,
    less,
    logical_xor,
    maximum,
    minimum,
    multiply,
    operator_named,
    subtract,
)
from neuron_port.simulator.instructions.scalar_engine import activation
from neuron_port.simulator.instructions.vector_engine import (
    reciprocal,
    scalar_tensor_tensor,
    tensor_copy,
    tensor_scalar,
    tensor_tensor,
)
from neuron_port.simulator.instructions.vector_select import tensor_copy_predicated
from neuron_port.simulator.nki.allocation import ndarray
from neuron_port.simulator.tensor import NkiTensor
from neuron_port.simulator.values import read

# From 2**23 on every float32 is an integer. Adding 2**23 to a smaller positive one, or subtracting it from a
# negative one, rounds it to the nearest integer, and undoing that is exact.
FRACTIONS_BELOW = 2.0**23
# For turns, which are few, one constant serves both signs.
ROUNDING = 1.5 * 2.0**23

# 2 pi in three parts, the first two of few bits, so that k * part is exact for |k| < 2**13 (Cody and Waite 1980).
TURN_PARTS = (6.28125, 0.0019350051879882812, 3.019915981956753e-07)

LARGEST_ANGLE = 3.1415925  # the float32 below pi: ScalarE's table of sine ends at pi


def ceil(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """The smallest integer that is not below x, elementwise, in a new tile."""
    return _rounded(x, dtype, less, 1.0)


def floor(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """The largest integer that is not above x, elementwise, in a new tile."""
    return _rounded(x, dtype, greater, -1.0)


def trunc(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """x without its fraction, elementwise, in a new tile."""
    below, above = floor(x, float32), ceil(x, float32)
    tensor_scalar(below, below, maximum, 0.0)
    tensor_scalar(above, above, minimum, 0.0)
    result = ndarray(x.shape, dtype or x.dtype)
    tensor_tensor(result, below, above, add)
    return result


def _rounded(x: NkiTensor, dtype: Any, off: Operator, step: float) -> NkiTensor:
    """The nearest integer to x, and `step` more where it is `off` x; values without fractions stay as they are."""
    nearest, missed = ndarray(x.shape, float32), ndarray(x.shape, float32)
    small, result = ndarray(x.shape, uint8), ndarray(x.shape, dtype or x.dtype)
    negative = ndarray(x.shape, float32)
    tensor_scalar(negative, x, less, 0.0, op1=multiply, operand1=-2.0 * FRACTIONS_BELOW)
    scalar_tensor_tensor(nearest, negative, add, FRACTIONS_BELOW, add, x)
    scalar_tensor_tensor(nearest, negative, add, FRACTIONS_BELOW, subtract, nearest, reverse1=True)
    tensor_tensor(missed, nearest, x, off)
    scalar_tensor_tensor(nearest, missed, multiply, step, add, nearest)
    tensor_scalar(small, x, abs_, None, op1=less, operand1=FRACTIONS_BELOW)
    tensor_copy(missed, x)
    tensor_copy_predicated(missed, nearest, small)
    tensor_copy(result, missed)
    return result


def sin(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """The sine of x, elementwise, in a new tile; x is first reduced to [-pi, pi], where ScalarE's table is valid."""
    return _sine(x, 0.0, dtype or x.dtype)


def cos(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """The cosine of x, elementwise, in a new tile."""
    return _sine(x, math.pi / 2, dtype or x.dtype)


def tan(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """The tangent of x, elementwise, in a new tile: sine times the reciprocal of the cosine."""
    sine, cosine = _sine(x, 0.0, float32), _sine(x, math.pi / 2, float32)
    result = ndarray(x.shape, dtype or x.dtype)
    reciprocal(cosine, cosine)
    tensor_tensor(result, sine, cosine, multiply)
    return result


def _sine(x: NkiTensor, phase: float, dtype: Any) -> NkiTensor:
    """sin(x + phase): k = round((x + phase) / 2 pi) whole turns are subtracted in three parts."""
    turns, angle = ndarray(x.shape, float32), ndarray(x.shape, float32)
    result = ndarray(x.shape, dtype)
    tensor_scalar(turns, x, add, phase, op1=multiply, operand1=1.0 / (2.0 * math.pi))
    tensor_scalar(turns, turns, add, ROUNDING, op1=subtract, operand1=ROUNDING)
    scalar_tensor_tensor(angle, turns, multiply, -TURN_PARTS[0], add, x)
    for part in TURN_PARTS[1:]:
        scalar_tensor_tensor(angle, turns, multiply, -part, add, angle)
    # The phase comes after the subtraction, which would round it away; the ends of the range may miss pi by a bit.
    tensor_scalar(angle, angle, add, phase, op1=minimum, operand1=LARGEST_ANGLE)
    tensor_scalar(angle, angle, maximum, -LARGEST_ANGLE)
    activation(result, operator_named("sin"), angle)
    return result


def logical_not(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """1 where x is 0 and 0 where x is 1, elementwise, in a new tile: x XOR 1, meant for values 0 and 1 only."""
    values = read(x)
    if not ((values == 0) | (values == 1)).all():
        current_run().warn(
            f"nl.logical_not: {x!r} holds values other than 0 and 1, which XOR with 1 does not negate on the "
            "device; use nl.equal(x, 0)"
        )
    result = ndarray(x.shape, dtype or x.dtype)
    tensor_scalar(result, x, logical_xor, 1.0)
    return result
