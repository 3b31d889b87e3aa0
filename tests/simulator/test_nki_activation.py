"""ScalarE: activation functions, scale and bias, running sums, valid ranges."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from neuron_port.simulator import ConstraintError, UnwrittenReadError
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl

bf16 = ml_dtypes.bfloat16
erf = np.vectorize(math.erf)


def normal(x):
    return np.exp(-x * x / 2) / np.sqrt(2 * np.pi)


def logistic(x):
    return 1 / (1 + np.exp(-x))


FORMULAS = {
    "copy": lambda x: x,
    "square": lambda x: x * x,
    "exp": np.exp,
    "sigmoid": logistic,
    "silu": lambda x: x * logistic(x),
    "silu_dx": lambda x: logistic(x) * (1 + x * (1 - logistic(x))),
    "relu": lambda x: np.where(x > 0, x, 0),
    "gelu": lambda x: x * (1 + erf(x / np.sqrt(2))) / 2,
    "gelu_dx": lambda x: (1 + erf(x / np.sqrt(2))) / 2 + x * normal(x),
    "gelu_apprx_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "gelu_apprx_sigmoid": lambda x: x * logistic(1.702 * x),
    "gelu_apprx_sigmoid_dx": lambda x: logistic(1.702 * x) * (1 + 1.702 * x * (1 - logistic(1.702 * x))),
    "tanh": np.tanh,
    "softplus": lambda x: np.log1p(np.exp(x)),
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    "erf": erf,
    "erf_dx": lambda x: 2 / np.sqrt(np.pi) * np.exp(-x * x),
    "sign": np.sign,
    "abs": np.abs,
    "log": lambda x: np.log(np.abs(x)),
    "sqrt": lambda x: np.sqrt(np.abs(x)),
    "rsqrt": lambda x: np.abs(x) ** -0.5,
    "reciprocal": lambda x: 1 / x,
    "sin": np.sin,
    "arctan": lambda x: np.arctan(np.clip(x, -1.5, 1.5)),
}
POSITIVE = ("log", "sqrt", "rsqrt")


@pytest.mark.parametrize("name", FORMULAS)
def test_functions_match_their_formulas(run_tiles, rng, name):
    """Every activation function equals its float64 formula to float32 accuracy, without a range warning."""
    x = rng.uniform(-3, 3, (8, 64)).astype(np.float32)
    x = np.abs(x) if name in POSITIVE else np.clip(x, -1.5, 1.5) if name == "arctan" else x
    run = run_tiles(lambda d, t: nisa.activation(d, getattr(nl, name), t), x)
    np.testing.assert_allclose(run.outputs[0], FORMULAS[name](x.astype(np.float64)), rtol=3e-6, atol=3e-7)
    assert run.warnings == ()


def test_scale_comes_before_bias(on_tiles, rng):
    """op(data * scale + bias), with columns for both."""
    x, scale, bias = (rng.standard_normal(s).astype(np.float32) for s in ((6, 9), (6, 1), (6, 1)))
    result = on_tiles(lambda d, t, s, b: nisa.activation(d, nl.tanh, t, bias=b, scale=s), x, scale, bias)
    np.testing.assert_allclose(result, np.tanh(x * scale + bias), rtol=1e-6)


def test_bias_may_be_narrow_and_scale_not(on_tiles, rng):
    """A bfloat16 bias is legal, a bfloat16 scale is refused."""
    x, column = rng.standard_normal((6, 9)).astype(np.float32), rng.standard_normal((6, 1)).astype(bf16)
    result = on_tiles(lambda d, t, c: nisa.activation(d, nl.copy, t, bias=c), x, column)
    np.testing.assert_allclose(result, x + column.astype(np.float32), rtol=1e-6)
    with pytest.raises(ConstraintError, match=r"scale .* must be float32"):
        on_tiles(lambda d, t, c: nisa.activation(d, nl.copy, t, scale=c), x, column)


def test_number_as_bias_needs_gen3(on_tiles, rng):
    """A scalar bias runs on Trn2 and is refused on Trn1 and Inf2."""
    x = rng.standard_normal((6, 9)).astype(np.float32)

    def body(d, t):
        nisa.activation(d, nl.exp, t, bias=0.5)

    np.testing.assert_allclose(on_tiles(body, x), np.exp(x + 0.5), rtol=1e-6)
    with pytest.raises(ConstraintError, match="NeuronCore-v3"):
        on_tiles(body, x, target="inf2")


def test_bias_is_one_column(on_tiles, rng):
    """A bias of full size is refused."""
    x = rng.standard_normal((6, 9)).astype(np.float32)
    with pytest.raises(ConstraintError, match=r"must have shape \(6, 1\)"):
        on_tiles(lambda d, t: nisa.activation(d, nl.exp, t, bias=t), x)


def test_activation_reduce_sums_the_unrounded_results(on_tiles, rng):
    """The sum is taken in float32 before dst is rounded."""
    x = rng.standard_normal((6, 9)).astype(np.float32)

    def body(d, t):
        squares = nl.ndarray((6, 9), nl.bfloat16)
        nisa.activation_reduce(squares, nl.square, t, nl.add, d)

    result = on_tiles(body, x, shape=(6, 1))
    np.testing.assert_allclose(result, (x * x).sum(1, keepdims=True), rtol=1e-6)


def test_sum_registers_persist_between_instructions(on_tiles, rng):
    """reset_reduce starts, reduce continues, idle leaves the registers alone."""
    x, y = (rng.standard_normal((6, 9)).astype(np.float32) for _ in range(2))

    def body(d, a, b):
        junk = nl.ndarray((6, 9), nl.float32)
        nisa.activation(junk, nl.copy, a, reduce_op=nl.add, reduce_cmd=nisa.reduce_cmd.reset_reduce)
        nisa.activation(junk, nl.exp, a)
        nisa.activation(junk, nl.copy, b, reduce_op=nl.add, reduce_res=d, reduce_cmd=nisa.reduce_cmd.reduce)

    np.testing.assert_allclose(
        on_tiles(body, x, y, shape=(6, 1))[:, 0], x.sum(1) + y.sum(1), rtol=1e-5, atol=1e-6
    )


def test_sum_registers_must_be_reset_first(on_tiles, rng):
    """Reducing onto registers that nothing has reset is refused."""
    x = rng.standard_normal((6, 9)).astype(np.float32)
    with pytest.raises(UnwrittenReadError, match="never reset"):
        on_tiles(
            lambda d, t: nisa.activation(d, nl.copy, t, reduce_op=nl.add, reduce_cmd=nisa.reduce_cmd.reduce),
            x,
        )


def test_only_addition_reduces(on_tiles, rng):
    """ScalarE sums; a maximum is refused."""
    x = rng.standard_normal((6, 9)).astype(np.float32)

    def body(d, t):
        nisa.activation_reduce(t, nl.exp, t, nl.maximum, d)

    with pytest.raises(ConstraintError, match=r"must be nl.add"):
        on_tiles(body, x, shape=(6, 1))


@pytest.mark.parametrize(
    ("name", "value"), [("sin", 4.0), ("log", 0.0), ("rsqrt", -1.0), ("reciprocal", 1e-20)]
)
def test_inputs_outside_the_table_are_warned_about(run_tiles, name, value):
    """The table's range is checked after scale and bias, once per source line."""
    x = np.full((6, 9), value, np.float32)

    def body(d, t):
        for _ in range(3):
            nisa.activation(d, getattr(nl, name), t)

    warnings = run_tiles(body, x).warnings
    assert len(warnings) == 1
    assert f"nl.{name}" in warnings[0]


def test_alu_operators_are_no_activation_functions(on_tiles, rng):
    """activation(op=nl.add) is refused and the functions are listed."""
    x = rng.standard_normal((6, 9)).astype(np.float32)
    with pytest.raises(ConstraintError, match="no activation function"):
        on_tiles(lambda d, t: nisa.activation(d, nl.add, t), x)
