"""Formulas that the simulator is judged by: rounding and operators in float64, from the documentation alone.

Nothing here comes from the simulator. A value is a float64 array that holds only numbers representable in the
dtype that it stands for, so every formula can be written in plain NumPy and rounded where the hardware rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np


@dataclass(frozen=True)
class FloatFormat:
    """A binary floating-point format."""

    mantissa_bits: int
    least_exponent: int  # of a normal number
    largest: float
    overflow: float = np.inf


FLOATS = {
    "float32": FloatFormat(23, -126, float(np.finfo(np.float32).max)),
    "tfloat32": FloatFormat(10, -126, (2 - 2.0**-10) * 2.0**127),
    "bfloat16": FloatFormat(7, -126, (2 - 2.0**-7) * 2.0**127),
    "float16": FloatFormat(10, -14, 65504.0),
    "float8_e5m2": FloatFormat(2, -14, 57344.0),
    "float8_e4m3": FloatFormat(3, -6, 240.0),
    "float8_e4m3fn": FloatFormat(3, -6, 448.0, np.nan),  # has no infinity
}
INTEGERS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-(2**15), 2**15 - 1), "uint16": (0, 2**16 - 1)}
WORDS = {"int32": (-(2**31), 2**31 - 1), "uint32": (0, 2**32 - 1)}
ALL_INTEGERS = INTEGERS | WORDS

NUMPY = {name: np.dtype(name) for name in (*ALL_INTEGERS, "float16", "float32")} | {
    "tfloat32": np.dtype(np.float32),  # travels in float32
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "float8_e4m3": np.dtype(ml_dtypes.float8_e4m3),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
}


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """Each value as `dtype` holds it: nearest, ties to even; integers saturate, NaN becomes 0 there."""
    values = np.asarray(values, dtype=np.float64)
    if dtype in ALL_INTEGERS:
        return np.clip(np.rint(np.nan_to_num(values, nan=0.0)), *ALL_INTEGERS[dtype])
    form = FLOATS[dtype]
    _, exponents = np.frexp(values)  # magnitude in [2**(e - 1), 2**e)
    spacing = np.ldexp(1.0, np.maximum(exponents - 1, form.least_exponent) - form.mantissa_bits)
    finite = np.isfinite(values)
    result = np.where(finite, np.rint(np.where(finite, values, 0.0) / spacing) * spacing, values)
    beyond = np.where(np.isnan(values), False, np.abs(result) > form.largest)
    return np.where(beyond, np.copysign(form.overflow, values), result)


def float32(values: np.ndarray) -> np.ndarray:
    """What an engine works with: the values rounded to float32."""
    return rounded(values, "float32")


def spacing_of(values: np.ndarray, dtype: str) -> np.ndarray:
    """Distance between neighbours of `dtype` at each value: 1 for integers."""
    if dtype in ALL_INTEGERS:
        return np.ones(np.shape(values))
    form = FLOATS[dtype]
    _, exponents = np.frexp(np.where(np.isfinite(values), values, 1.0))
    return np.ldexp(1.0, np.maximum(exponents - 1, form.least_exponent) - form.mantissa_bits)


# ---- operators of the arithmetic units: float64 in, float32 values out ------------------------------------

ARITHMETIC: dict[str, Callable[..., np.ndarray]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "maximum": lambda a, b: np.where(a > b, a, b),
    "minimum": lambda a, b: np.where(a < b, a, b),
    "equal": lambda a, b: (a == b) * 1.0,
    "not_equal": lambda a, b: (a != b) * 1.0,
    "greater": lambda a, b: (a > b) * 1.0,
    "greater_equal": lambda a, b: (a >= b) * 1.0,
    "less": lambda a, b: (a < b) * 1.0,
    "less_equal": lambda a, b: (a <= b) * 1.0,
    "logical_and": lambda a, b: ((a != 0) & (b != 0)) * 1.0,
    "logical_or": lambda a, b: ((a != 0) | (b != 0)) * 1.0,
    "logical_xor": lambda a, b: ((a != 0) ^ (b != 0)) * 1.0,
}
COMPARISONS = {
    name: ARITHMETIC[name]
    for name in ("equal", "not_equal", "greater", "greater_equal", "less", "less_equal")
}


def apply(name: str, first: np.ndarray, second: np.ndarray, *, reverse: bool = False) -> np.ndarray:
    """One step of an arithmetic unit: float32 in, float32 out.

    Adding, subtracting and multiplying two float32 numbers in float64 and rounding once more is exactly the
    float32 operation, as 53 bits are more than twice 24 plus two.
    """
    left, right = (second, first) if reverse else (first, second)
    return float32(ARITHMETIC[name](float32(left), float32(right)))


def as_bits(values: np.ndarray, dtype: str) -> np.ndarray:
    """Integers as unsigned Python-sized bit patterns of the dtype's width."""
    return values.astype(np.int64) & ((1 << 8 * NUMPY[dtype].itemsize) - 1)


def from_bits(bits: np.ndarray, dtype: str) -> np.ndarray:
    """The float64 values of bit patterns of the dtype's width."""
    width = 8 * NUMPY[dtype].itemsize
    bits = np.asarray(bits, dtype=np.int64) & ((1 << width) - 1)
    signed = NUMPY[dtype].kind == "i"
    return np.where(signed & (bits >> (width - 1) == 1), bits - (1 << width), bits).astype(np.float64)


BITWISE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "bitwise_and": lambda a, b: a & b,
    "bitwise_or": lambda a, b: a | b,
    "bitwise_xor": lambda a, b: a ^ b,
}
SHIFTS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "left_shift": lambda a, b: a << b,
    "right_shift": lambda a, b: a >> b,  # logical: `a` is an unsigned bit pattern
}
