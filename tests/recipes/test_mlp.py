"""What is special to the mlp recipe: six activations, two layouts of weights, one pass over them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from transformers.pytorch_utils import Conv1D

from neuron_port.match.probe import RELATIVE_LIMIT, probe
from neuron_port.registry import Registry
from neuron_port.simulator import KernelRun, load_kernel_source, run_kernel
from neuron_port.walk.calls import Call

SBUF_LIMIT_BYTES = (192 - 16) * 1024  # gen2, per partition, less what the compiler keeps
RECIPE = Registry()["mlp"]
KERNEL = load_kernel_source(RECIPE.kernel.source, "mlp", "mlp/kernel.py")
ACTIVATIONS = {
    "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
    "silu": lambda x: x / (1 + np.exp(-x)),
}


def draw(
    tokens: int, hidden: int, intermediate: int, columns: int, dtype: Any = np.float32
) -> list[np.ndarray]:
    """x [T, H], up [H, I], down [I, N], up_bias [I], down_bias [N]."""
    generator = np.random.default_rng(0)
    shapes = [(tokens, hidden), (hidden, intermediate), (intermediate, columns), (intermediate,), (columns,)]
    drawn = [generator.standard_normal(shape, dtype=np.float32) for shape in shapes]
    drawn[1] *= hidden**-0.5
    drawn[2] *= intermediate**-0.5
    return [array.astype(dtype) for array in drawn]


def run(arrays: list[np.ndarray], target: str = "inf2", **attributes: Any) -> KernelRun:
    return run_kernel(KERNEL, *arrays, target=target, **attributes)


@pytest.mark.parametrize("target", ["inf2", "trn2"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [(3, 65, 384, 70), (40, 130, 300, 70)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_equals_its_float64_formula(
    activation: str, sizes: tuple[int, int, int, int], bias: bool, target: str
) -> None:
    """Each activation, with and without biases, for few tokens and for many."""
    arrays = draw(*sizes)
    x, up, down, up_bias, down_bias = (array.astype(np.float64) for array in arrays)
    hidden = ACTIVATIONS[activation](x @ up + (up_bias if bias else 0))
    expected = hidden @ down + (down_bias if bias else 0)
    finished = run(arrays if bias else arrays[:3], target, activation=activation)
    np.testing.assert_allclose(finished.outputs[0], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("sizes", [(1, 512, 1408, 512), (130, 193, 577, 515), (600, 128, 300, 200)])
def test_no_product_is_wasted_or_skipped(sizes: tuple[int, int, int, int]) -> None:
    """TensorE multiplies exactly as often as the formula asks."""
    tokens, hidden, intermediate, columns = sizes
    assert run(draw(*sizes)[:3]).matmul_macs == tokens * intermediate * (hidden + columns)


@pytest.mark.parametrize("tokens", [1, 128, 512])
def test_inputs_are_read_once(tokens: int) -> None:
    """Up to 512 tokens share one pass over the weights: every byte of the inputs is read once."""
    arrays = draw(tokens, 256, 640, 256)
    assert run(arrays).hbm_read_bytes == sum(array.nbytes for array in arrays)


@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [
        pytest.param((1, 256, 14336, 256), np.float32, id="decode"),
        pytest.param((600, 64, 14336, 64), np.float32, id="prompt"),
        pytest.param((600, 64, 28672, 64), ml_dtypes.bfloat16, id="prompt, bfloat16"),
    ],
)
def test_memory_stays_bounded(sizes: tuple[int, int, int, int], dtype: Any) -> None:
    """SBUF holds both activations and three loads of weights, PSUM holds the sums, at the largest sizes."""
    finished = run(draw(*sizes, dtype))
    assert finished.peak_sbuf_bytes + 2 * 8 * 1024 <= SBUF_LIMIT_BYTES
    assert finished.peak_psum_banks <= 8


def test_unknown_activation_is_refused() -> None:
    """An activation that the kernel does not have is named; one that it has is not."""
    arrays = draw(2, 64, 96, 40)
    run(arrays, activation="silu")
    with pytest.raises(Exception, match="activation must be"):
        run(arrays, activation="tanh")


class Mlp(torch.nn.Module):
    """Two linear layers with an activation between; `residual` adds the input, as Bloom's does."""

    def __init__(
        self,
        activation: Callable[..., Any],
        *,
        bias: bool = True,
        conv1d: bool = False,
        intermediate: int = 12,
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.c_fc = Conv1D(intermediate, 8) if conv1d else torch.nn.Linear(8, intermediate, bias=bias)
        self.c_proj = Conv1D(8, intermediate) if conv1d else torch.nn.Linear(intermediate, 8, bias=bias)
        self.activation = activation
        self.residual = residual

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        result = self.c_proj(self.activation(self.c_fc(hidden_states)))
        return result + hidden_states if self.residual else result


def call(module: torch.nn.Module, features: int = 8, by_name: bool = False) -> Call:
    x = torch.randn(2, 3, features)
    return Call(
        name="mlp",
        operation="module",
        module=module,
        owner="Mlp",
        function=module,
        args=() if by_name else (x,),
        kwargs={"hidden_states": x} if by_name else {},
    )


def agreeing(subject: Call) -> list[tuple[str, str]]:
    """Transform and activation of the bindings that the numeric probe accepts."""
    found = []
    for binding in RECIPE.recipe.bindings(subject):
        differences = probe(subject, RECIPE.recipe, RECIPE.reference, binding)
        if max(differences.values()) <= RELATIVE_LIMIT:
            found.append((binding.weights["up"].transform, binding.attributes["activation"]))
    return found


FUNCTIONS = {
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": torch.nn.GELU(approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": torch.relu,
    "relu2": lambda x: torch.relu(x) ** 2,
    "silu": torch.nn.SiLU(),
}


@pytest.mark.parametrize("activation", FUNCTIONS)
def test_the_probe_finds_the_activation(activation: str) -> None:
    """Of the bindings exactly one computes the module, the one with its activation."""
    assert agreeing(call(Mlp(FUNCTIONS[activation]))) == [("transpose", activation)]


def test_what_is_mentioned_is_tried_first() -> None:
    """An activation whose class says what it is comes first among the bindings."""
    bindings = RECIPE.recipe.bindings(call(Mlp(torch.nn.SiLU())))
    assert bindings[0].attributes["activation"] == "silu"


@pytest.mark.parametrize("intermediate", [12, 8])
def test_weights_of_gpt2_are_taken_as_they_are(intermediate: int) -> None:
    """Weights stored as [K, N] are not transposed, even where they are square."""
    assert agreeing(call(Mlp(torch.relu, conv1d=True, intermediate=intermediate))) == [("none", "relu")]


@pytest.mark.parametrize("bias", [True, False])
def test_biases_are_optional_and_arguments_have_names(bias: bool) -> None:
    """Biases are bound where there are any; the input may be passed by name."""
    subject = call(Mlp(torch.relu, bias=bias), by_name=True)
    assert agreeing(subject) == [("transpose", "relu")]
    assert ("up_bias" in RECIPE.recipe.bindings(subject)[0].weights) == bias


def test_a_residual_is_refused() -> None:
    """A module that also adds its input agrees with no binding; without the addition it does."""
    assert agreeing(call(Mlp(torch.relu, residual=True))) == []
    assert agreeing(call(Mlp(torch.relu))) != []


@pytest.mark.parametrize(
    "refused",
    [
        pytest.param(call(Mlp(torch.relu), features=9), id="other features"),
        pytest.param(call(torch.nn.Linear(8, 8)), id="one layer"),
        pytest.param(call(torch.nn.Sequential(Mlp(torch.relu), torch.nn.LayerNorm(8))), id="a norm besides"),
        pytest.param(
            call(torch.nn.Sequential(torch.nn.Linear(8, 5), torch.nn.Linear(6, 8))), id="they do not follow"
        ),
    ],
)
def test_bind_refuses(refused: Call) -> None:
    """What cannot be two projections and nothing else is not bound."""
    assert RECIPE.recipe.bind(refused) is None
