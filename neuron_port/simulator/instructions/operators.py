"""The operators that instructions take as `op`: those of the ALUs, and the activation functions of ScalarE.

A token is one object: kernels pass it (`op=nl.add`) or call it (`nl.add(x, y)` allocates a new tile).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from neuron_port.simulator.errors import ConstraintError


class Operator:
    """One operator: its NumPy meaning, its class, and which instructions may use it."""

    __slots__ = ("activation", "alu", "bitwise", "identity", "name", "reduce", "since", "unary", "wrapper")

    def __init__(self, name: str) -> None:
        self.name = name
        self.alu: Any = None  # two float32 arrays (or one, if unary) -> array
        self.unary = False
        self.bitwise = False
        self.reduce: Any = None  # the ufunc's reduce, if the operator is reducible
        self.identity: float | None = None
        self.since = 2  # first generation whose ALUs have it
        self.activation: Callable[[np.ndarray], np.ndarray] | None = None
        self.wrapper: Callable[..., Any] | None = None  # what calling the token does

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if self.wrapper is None:
            raise ConstraintError(
                f"nl.{self.name} is an operator to be passed as `op`, not a function to be called"
            )
        return self.wrapper(*arguments, **options)

    def __repr__(self) -> str:
        return f"nl.{self.name}"


OPERATORS: dict[str, Operator] = {}


def operator_named(name: str) -> Operator:
    """The operator of this name, made on first use."""
    if name not in OPERATORS:
        OPERATORS[name] = Operator(name)
    return OPERATORS[name]


def _alu(
    name: str,
    function: Any,
    *,
    reduces: bool = False,
    unary: bool = False,
    bitwise: bool = False,
    since: int = 2,
) -> Operator:
    op = operator_named(name)
    op.alu, op.unary, op.bitwise, op.since = function, unary, bitwise, since
    if reduces:
        op.reduce = function.reduce
        op.identity = {"add": 0.0, "multiply": 1.0, "maximum": -np.inf, "minimum": np.inf}.get(name)
    return op


def _rsqrt(values: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    return np.divide(np.float32(1.0), np.sqrt(values), out=out)


def _relu(values: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    return np.maximum(values, np.float32(0), out=out)


def _winner(beats: Any) -> Callable[..., np.ndarray]:
    """The operand whose magnitude `beats` the other's, with its sign; the second one of equals."""

    def winner(first: Any, second: Any, out: np.ndarray | None = None) -> np.ndarray:
        chosen = np.where(beats(np.abs(first), np.abs(second)), first, second)
        if out is None:
            return chosen
        out[...] = chosen
        return out

    return winner


def _shift(function: Any) -> Callable[[np.ndarray, Any], np.ndarray]:
    """A logical shift: on the unsigned bits, whatever the sign of the dtype."""

    def shift(bits: np.ndarray, amount: Any) -> np.ndarray:
        unsigned = bits.view(bits.dtype.str.replace("i", "u"))
        return function(unsigned, np.asarray(amount).astype(unsigned.dtype)).view(bits.dtype)

    return shift


add = _alu("add", np.add, reduces=True)
subtract = _alu("subtract", np.subtract, reduces=True)
multiply = _alu("multiply", np.multiply, reduces=True)
maximum = _alu("maximum", np.maximum, reduces=True)
minimum = _alu("minimum", np.minimum, reduces=True)
logical_and = _alu("logical_and", np.logical_and, reduces=True)
logical_or = _alu("logical_or", np.logical_or, reduces=True)
logical_xor = _alu("logical_xor", np.logical_xor, reduces=True)
equal = _alu("equal", np.equal)
not_equal = _alu("not_equal", np.not_equal)
greater = _alu("greater", np.greater)
greater_equal = _alu("greater_equal", np.greater_equal)
less = _alu("less", np.less)
less_equal = _alu("less_equal", np.less_equal)
power = _alu("power", np.power)
abs_ = _alu("abs", np.abs, unary=True)
rsqrt = _alu("rsqrt", _rsqrt, unary=True)
reciprocal = _alu("reciprocal", np.reciprocal, unary=True)
# NeuronCore-v4 (nl.abs_max, nl.abs_min; release notes of NKI 0.4 for square and relu).
abs_max = _alu("abs_max", _winner(np.greater), since=4)
abs_min = _alu("abs_min", _winner(np.less), since=4)
square = _alu("square", np.square, unary=True, since=4)
relu = _alu("relu", _relu, unary=True, since=4)
bitwise_and = _alu("bitwise_and", np.bitwise_and, reduces=True, bitwise=True)
bitwise_or = _alu("bitwise_or", np.bitwise_or, reduces=True, bitwise=True)
bitwise_xor = _alu("bitwise_xor", np.bitwise_xor, reduces=True, bitwise=True)
invert = _alu("invert", np.invert, unary=True, bitwise=True)
left_shift = _alu("left_shift", _shift(np.left_shift), bitwise=True)
right_shift = _alu("right_shift", _shift(np.right_shift), bitwise=True)

COMPARISONS = (equal, not_equal, greater, greater_equal, less, less_equal)
GPSIMD_ONLY = (power, rsqrt)  # no other engine's ALU has them, and GpSimdE cannot reach PSUM
COMPILE_NOT = ("divide", "mod", "fmod")  # named by AWS, refused by its compiler (release notes 0.3, 0.4)
TOKENS_ONLY = ("average", "prelu", "bypass")  # named by AWS for special uses, not callable
for _name in TOKENS_ONLY + COMPILE_NOT:
    operator_named(_name)
bypass = operator_named("bypass")
prelu = operator_named("prelu")
