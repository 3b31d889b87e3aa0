"""The activation functions of ScalarE in float32, and the input ranges that its tables are valid for.

The hardware evaluates piecewise polynomials; here each function is the exact one, to float32 accuracy.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from numpy.polynomial import Polynomial

from neuron_port.simulator.instructions.operators import Operator, operator_named

ONE = np.float32(1.0)
HALF = np.float32(0.5)
SQRT_HALF = np.float32(math.sqrt(0.5))
GELU_TANH_SCALE = np.float32(math.sqrt(2.0 / math.pi))
GELU_TANH_CUBIC = np.float32(0.044715)
GELU_SIGMOID_SCALE = np.float32(1.702)
PI = np.float32(math.pi)
ERF_SATURATES = 4.0  # erf(4) differs from 1 by 1.5e-8, below half an ulp of float32


@functools.cache
def _erf_over_x() -> Polynomial:
    """erf(x)/x as a polynomial in x squared on [0, 4], fitted once to math.erf; its error is below 1e-9."""
    nodes = 0.5 * (1.0 - np.cos(np.pi * (np.arange(64) + 0.5) / 64)) * ERF_SATURATES**2
    roots = np.sqrt(nodes)
    return Polynomial.fit(nodes, [math.erf(x) / x for x in roots], deg=26, domain=[0.0, ERF_SATURATES**2])


def erf(x: np.ndarray) -> np.ndarray:
    """The error function."""
    clipped = np.clip(x.astype(np.float64), -ERF_SATURATES, ERF_SATURATES)
    return (clipped * _erf_over_x()(clipped * clipped)).astype(np.float32)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x))."""
    return ONE / (ONE + np.exp(-x))


def silu(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(x)."""
    return x / (ONE + np.exp(-x))


def silu_dx(x: np.ndarray) -> np.ndarray:
    """Derivative of silu."""
    gate = sigmoid(x)
    return gate * (ONE + x * (ONE - gate))


def erf_dx(x: np.ndarray) -> np.ndarray:
    """Derivative of erf."""
    return np.float32(2.0 / math.sqrt(math.pi)) * np.exp(-x * x)


def gelu(x: np.ndarray) -> np.ndarray:
    """x times the normal distribution function of x."""
    return HALF * x * (ONE + erf(x * SQRT_HALF))


def gelu_dx(x: np.ndarray) -> np.ndarray:
    """Derivative of gelu."""
    density = np.exp(-HALF * x * x) * np.float32(1.0 / math.sqrt(2.0 * math.pi))
    return HALF * (ONE + erf(x * SQRT_HALF)) + x * density


def gelu_apprx_tanh(x: np.ndarray) -> np.ndarray:
    """The tanh approximation of gelu."""
    return HALF * x * (ONE + np.tanh(GELU_TANH_SCALE * (x + GELU_TANH_CUBIC * x * x * x)))


def gelu_apprx_sigmoid(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(1.702 x)."""
    return x * sigmoid(GELU_SIGMOID_SCALE * x)


def gelu_apprx_sigmoid_dx(x: np.ndarray) -> np.ndarray:
    """Derivative of gelu_apprx_sigmoid."""
    gate = sigmoid(GELU_SIGMOID_SCALE * x)
    return gate * (ONE + GELU_SIGMOID_SCALE * x * (ONE - gate))


def softplus(x: np.ndarray) -> np.ndarray:
    """log(1 + exp(x))."""
    return np.logaddexp(np.float32(0.0), x)


def mish(x: np.ndarray) -> np.ndarray:
    """x * tanh(softplus(x))."""
    return x * np.tanh(softplus(x))


def relu(x: np.ndarray) -> np.ndarray:
    """max(x, 0)."""
    return np.maximum(x, np.float32(0.0))


def rsqrt(x: np.ndarray) -> np.ndarray:
    """1 / sqrt(x)."""
    return ONE / np.sqrt(x)


def sin(x: np.ndarray) -> np.ndarray:
    """sin(x) in [-pi, pi]; beyond, what the hardware makes of it without range reduction.

    The outermost piece of its table is a cubic around pi that goes on beyond it: with d = |x| - pi it is
    d ** 3 / 6 - d, times the sign of x. That gives the documented 27.65 for 9 (nki.api.shared.rst).
    """
    beyond = np.abs(x) - PI
    if not (beyond > 0).any():
        return np.sin(x)
    extrapolated = np.sign(x) * (beyond * beyond * beyond / np.float32(6.0) - beyond)
    return np.where(beyond > 0, extrapolated, np.sin(x))


def copy(x: np.ndarray) -> np.ndarray:
    """x."""
    return x


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "copy": copy, "square": np.square, "sigmoid": sigmoid, "relu": relu, "gelu": gelu, "gelu_dx": gelu_dx,
    "gelu_apprx_tanh": gelu_apprx_tanh, "gelu_apprx_sigmoid": gelu_apprx_sigmoid,
    "gelu_apprx_sigmoid_dx": gelu_apprx_sigmoid_dx, "silu": silu, "silu_dx": silu_dx, "tanh": np.tanh,
    "softplus": softplus, "mish": mish, "erf": erf, "erf_dx": erf_dx, "exp": np.exp, "sign": np.sign,
    "abs": np.abs, "log": np.log, "sqrt": np.sqrt, "rsqrt": rsqrt, "reciprocal": np.reciprocal, "sin": sin,
    "arctan": np.arctan,
}  # fmt: skip

# Input ranges for which ScalarE's tables are valid (table of activation functions in nki.api.shared.rst).
VALID_RANGES: dict[str, tuple[float, float]] = {
    "log": (2.0**-64, 2.0**64),
    "sqrt": (2.0**-116, 2.0**118),
    "rsqrt": (2.0**-87, 2.0**97),
    "sin": (-float(PI), float(PI)),
    "arctan": (-math.pi / 2, math.pi / 2),
}
RECIPROCAL_RANGE = (2.0**-42, 2.0**42)  # of the magnitude

for _name, _function in ACTIVATIONS.items():
    operator_named(_name).activation = _function


def range_complaint(opcode: str, op: Operator, x: np.ndarray) -> str | None:
    """What is wrong with inputs outside the range of the function's table, or None."""
    magnitude = op.name == "reciprocal"
    limits = RECIPROCAL_RANGE if magnitude else VALID_RANGES.get(op.name)
    if limits is None or x.size == 0:
        return None
    if magnitude:
        x = np.abs(x)
    lowest, highest = float(x.min()), float(x.max())
    if lowest >= limits[0] and highest <= limits[1]:
        return None
    return (
        f"{opcode}: nl.{op.name} sees inputs from {lowest:.6g} to {highest:.6g}; ScalarE's table is valid "
        f"only in [{limits[0]:.6g}, {limits[1]:.6g}] (nki.api.shared, activation functions)"
    )
