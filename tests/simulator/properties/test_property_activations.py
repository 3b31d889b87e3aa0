"""Properties of ScalarE's activation functions, their scale and bias, and the sums that they keep."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from property_reference import apply, float32
from property_tiles import (
    Tile,
    check,
    covers,
    make_values,
    op,
    over,
    properties,
    results,
    scalars_or_columns,
    seeds,
    shapes,
    tiles,
    ulps,
)

from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl

erf = np.vectorize(math.erf, otypes=[np.float64])


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))))


def softplus(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "copy": lambda x: x,
    "square": lambda x: x * x,
    "sigmoid": sigmoid,
    "relu": lambda x: np.where(x > 0, x, 0.0),
    "gelu": lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))),
    "gelu_dx": lambda x: 0.5 * (1 + erf(x / math.sqrt(2))) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi),
    "gelu_apprx_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu_apprx_sigmoid": lambda x: x * sigmoid(1.702 * x),
    "gelu_apprx_sigmoid_dx": lambda x: (
        sigmoid(1.702 * x) + 1.702 * x * sigmoid(1.702 * x) * sigmoid(-1.702 * x)
    ),
    "silu": lambda x: x * sigmoid(x),
    "silu_dx": lambda x: sigmoid(x) * (1 + x * sigmoid(-x)),
    "tanh": np.tanh,
    "softplus": softplus,
    "mish": lambda x: x * np.tanh(softplus(x)),
    "erf": erf,
    "erf_dx": lambda x: 2 / math.sqrt(math.pi) * np.exp(-x * x),
    "exp": np.exp,
    "sign": np.sign,
    "abs": np.abs,
    "log": np.log,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "reciprocal": lambda x: 1 / x,
    "sin": np.sin,
    "arctan": np.arctan,
}
POSITIVE = ("log", "sqrt", "rsqrt", "reciprocal")
NARROW_RANGE = {"sin": 3.0, "arctan": 1.5}
FLOAT_NAMES = st.sampled_from(["float32", "bfloat16", "float16"])


def evaluate(name: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(function in float64, error of an evaluation to float32 accuracy): inputs and results off by some steps."""
    function, shift = FUNCTIONS[name], 2.0**-22
    exact = function(x)
    nearby = [np.abs(function(x * (1 + sign * shift)) - exact) for sign in (1, -1)]
    floor = shift * (1 + np.abs(x)) if name not in ("copy", "relu", "abs", "sign") else 0.0
    if name in POSITIVE:
        floor = 0.0
    exactly = name in ("copy", "relu", "abs", "sign")
    return exact, np.zeros_like(exact) if exactly else np.maximum(*nearby) + ulps(float32(exact), 8) + floor


@st.composite
def activations(draw: Any) -> Any:
    """A function, dst, data in the function's range, scale and bias, with what the function sees."""
    name = draw(st.sampled_from(list(FUNCTIONS)))
    shape = draw(shapes())
    data = draw(tiles(shape, FLOAT_NAMES, flavour="normal"))
    scale, scales = draw(scalars_or_columns(shape[0], "normal"))
    bias, biases = draw(scalars_or_columns(shape[0], "normal"))
    if name in POSITIVE or name in NARROW_RANGE:  # keep the table's range: scale and bias off, data moved in
        limit = NARROW_RANGE.get(name, 4.0)
        values = np.clip(np.abs(data.logical), 0.25, limit) if name in POSITIVE else data.logical
        data = Tile(data.dtype, data.layout, np.clip(values, -limit, limit))
        scale, scales, bias, biases = 1.0, np.ones((shape[0], 1)), None, np.zeros((shape[0], 1))
    x = apply("multiply", data.logical, over(scales, data.logical))
    return name, draw(results(shape, FLOAT_NAMES)), data, scale, bias, apply("add", x, over(biases, x))


@covers("activation")
@given(activations())
@properties
def test_activation_applies_scale_bias_and_function(case: Any) -> None:
    """dst = function(data * scale + bias) to float32 accuracy, rounded once to dst."""
    name, dst, data, scale, bias, x = case
    exact, error = evaluate(name, x)
    check(
        lambda d, v, s, b: nisa.activation(d, op(name), v, bias=b, scale=s),
        dst,
        [data, scale, bias],
        exact,
        error=error,
    )


@covers("activation", "activation_reduce")
@given(st.data(), activations(), st.sampled_from(["once", "twice", "activation_reduce"]))
@properties
def test_activation_sums_what_it_computes(data: Any, case: Any, how: str) -> None:
    """The registers hold the sum over the free dimensions, over two instructions too, before rounding to dst."""
    name, dst, source, scale, bias, x = case
    total = data.draw(results((len(x), 1), "float32"))
    exact, error = evaluate(name, x)
    rows, errors = exact.reshape(len(x), -1), error.reshape(len(x), -1)
    times = 2 if how == "twice" else 1
    bound = times * (errors.sum(axis=1) + 2 * rows.shape[1] * 2.0**-23 * np.abs(rows).sum(axis=1))

    def body(d: Any, r: Any, v: Any, s: Any, b: Any) -> None:
        if how == "activation_reduce":
            nisa.activation_reduce(d, op(name), v, nl.add, r, bias=b, scale=s)
            return
        commands = [nisa.reduce_cmd.reset_reduce, nisa.reduce_cmd.reduce][:times]
        for command in commands:
            last = r if command is commands[-1] else None
            nisa.activation(
                d, op(name), v, bias=b, scale=s, reduce_op=nl.add, reduce_res=last, reduce_cmd=command
            )

    check(body, [dst, total], [source, scale, bias], [exact, times * rows.sum(axis=1)], error=[error, bound])


@covers("activation")
@given(st.data(), shapes(), seeds)
@properties
def test_activation_reads_integers_as_numbers(data: Any, shape: tuple[int, ...], seed: int) -> None:
    """Integer tiles are cast to float32 on the way in, and results to integers on the way out."""
    source = data.draw(tiles(shape, st.sampled_from(["int8", "uint8", "int16", "int32"]), flavour="halves"))
    dst = data.draw(results(shape, st.sampled_from(["float32", "int8", "int32"])))
    factor = float(make_values((1,), "float32", seed, "halves")[0])
    expected = np.abs(apply("multiply", source.logical, np.array(factor)))
    check(lambda d, v: nisa.activation(d, nl.abs, v, scale=factor), dst, [source], expected)
