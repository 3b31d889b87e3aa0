"""What is special to the gated_mlp recipe: two layouts, one pass over the weights, roles by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from neuron_port.registry import Registry
from neuron_port.simulator import KernelRun, load_kernel_source, run_kernel
from neuron_port.types import TensorSpec

SBUF_LIMIT_BYTES = (192 - 16) * 1024  # gen2, per partition, less what the compiler keeps
RECIPE = Registry()["gated_mlp"]
KERNEL = load_kernel_source(RECIPE.kernel.source, "gated_mlp", "gated_mlp/kernel.py")


def draw(
    tokens: int, hidden: int, intermediate: int, columns: int, dtype: Any = np.float32
) -> list[np.ndarray]:
    """x [T, H], gate [H, I], up [H, I], down [I, N]."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((tokens, hidden), dtype=np.float32)
    weights = [(hidden, intermediate), (hidden, intermediate), (intermediate, columns)]
    drawn = [generator.standard_normal(shape, dtype=np.float32) * shape[0] ** -0.5 for shape in weights]
    return [array.astype(dtype) for array in (x, *drawn)]


def run(arrays: list[np.ndarray], target: str = "inf2") -> KernelRun:
    return run_kernel(KERNEL, *arrays, target=target)


def exact(arrays: list[np.ndarray]) -> np.ndarray:
    """The layer in float64, silu written out."""
    x, gate, up, down = (array.astype(np.float64) for array in arrays)
    gated = x @ gate
    return (gated / (1 + np.exp(-gated)) * (x @ up)) @ down


@pytest.mark.parametrize("target", ["inf2", "trn2"])
@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((1, 1, 1, 1), id="one of each"),
        pytest.param((1, 576, 1536, 576), id="decode"),
        pytest.param((8, 65, 1152, 600), id="decode, x through TensorE"),
        pytest.param((3, 256, 577, 65), id="few tokens, intermediate with a tail"),
        pytest.param((9, 128, 256, 128), id="prompt"),
        pytest.param((130, 193, 577, 515), id="prompt, tails everywhere"),
        pytest.param((600, 64, 320, 96), id="two blocks"),
    ],
)
def test_equals_float64_formula(sizes: tuple[int, int, int, int], target: str) -> None:
    """Both layouts and every tail: the result is the formula in float64."""
    arrays = draw(*sizes)
    np.testing.assert_allclose(run(arrays, target).outputs[0], exact(arrays), rtol=0, atol=5e-6)


ACTIVATIONS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: np.maximum(x, 0),
}


@pytest.mark.parametrize("tokens", [3, 40])
@pytest.mark.parametrize("halves", ["apart", "gate_up", "up_gate"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_form_equals_its_float64_formula(activation: str, halves: str, tokens: int) -> None:
    """Each activation, with biases, weights apart and fused in both orders, in both layouts."""
    x, gate, up, down = draw(tokens, 65, 384, 70)
    gate_bias, up_bias, down_bias = (
        draw(3, 384, 1, 1)[0][0],
        draw(4, 384, 1, 1)[0][3],
        draw(1, 70, 1, 1)[0][0],
    )
    gated, other = (
        x.astype(np.float64) @ weight + bias for weight, bias in ((gate, gate_bias), (up, up_bias))
    )
    expected = (ACTIVATIONS[activation](gated) * other) @ down + down_bias
    if halves != "apart":
        order = (0, 1) if halves == "gate_up" else (1, 0)
        gate = up = np.concatenate([(gate, up)[place] for place in order], axis=1)
        gate_bias = up_bias = np.concatenate([(gate_bias, up_bias)[place] for place in order])
    arrays = (x, gate, up, down, gate_bias, up_bias, down_bias)
    for target in ("inf2", "trn2"):
        finished = run_kernel(KERNEL, *arrays, target=target, activation=activation, halves=halves)
        np.testing.assert_allclose(finished.outputs[0], expected, rtol=0, atol=2e-5)


def test_halves_of_a_fused_weight_are_read_once() -> None:
    """gate and up are the same tensor in HBM, of which each projection reads its half."""
    x, gate, up, down = draw(128, 256, 640, 256)
    both = np.concatenate([gate, up], axis=1)
    finished = run_kernel(KERNEL, x, both, both, down, target="inf2", halves="gate_up")
    assert finished.hbm_read_bytes == sum(array.nbytes for array in (x, both, down))


@pytest.mark.parametrize("tokens", [2, 20])
def test_bfloat16_is_closer_than_torch(tokens: int) -> None:
    """In bfloat16 the kernel is no further from the exact result than torch, which rounds more often."""
    arrays = draw(tokens, 512, 1024, 128, ml_dtypes.bfloat16)
    tensors = [torch.from_numpy(array.astype(np.float32)).bfloat16() for array in arrays]
    expected = exact(arrays)
    error = np.abs(run(arrays).outputs[0].astype(np.float64) - expected).mean()
    torch_error = np.abs(RECIPE.reference(*tensors).double().numpy() - expected).mean()
    assert 0 < error <= torch_error


@pytest.mark.parametrize("sizes", [(1, 512, 1408, 512), (130, 193, 577, 515), (600, 128, 300, 200)])
def test_no_product_is_wasted_or_skipped(sizes: tuple[int, int, int, int]) -> None:
    """TensorE multiplies exactly as often as the formula asks."""
    tokens, hidden, intermediate, columns = sizes
    assert run(draw(*sizes)).matmul_macs == tokens * intermediate * (2 * hidden + columns)


@pytest.mark.parametrize("tokens", [1, 8, 128, 512])
def test_inputs_are_read_once(tokens: int) -> None:
    """Up to 512 tokens share one pass over the weights: every byte of the inputs is read once."""
    arrays = draw(tokens, 256, 640, 256)
    assert run(arrays).hbm_read_bytes == sum(array.nbytes for array in arrays)


def test_decode_moves_512_columns_per_product() -> None:
    """One token takes a quarter of the matmuls of the transposed layout, and no transpose."""
    counts = run(draw(1, 512, 2048, 512)).trace.counts_by_opcode()
    assert counts["nc_matmul"] == (2 * 512 * 2048 + 2048 * 512) // (128 * 512)
    assert counts["nc_transpose"] == 0


def test_prompt_transposes_only_x() -> None:
    """The hidden activation is born transposed: TensorE transposes the chunks of x and nothing else."""
    counts = run(draw(128, 512, 2048, 512)).trace.counts_by_opcode()
    assert counts["nc_transpose"] == 512 // 128


@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [
        pytest.param((1, 256, 14336, 256), np.float32, id="decode"),
        pytest.param((600, 64, 14336, 64), np.float32, id="prompt"),
        pytest.param((600, 64, 28672, 64), ml_dtypes.bfloat16, id="prompt, bfloat16"),
        pytest.param((200, 64, 28672, 64), np.float32, id="wide"),
        pytest.param((256, 4096, 14336, 64), np.float32, id="llama 8B", marks=pytest.mark.slow),
        pytest.param(
            (512, 4096, 14336, 64), ml_dtypes.bfloat16, id="llama 8B bfloat16", marks=pytest.mark.slow
        ),
    ],
)
def test_memory_stays_bounded(sizes: tuple[int, int, int, int], dtype: Any) -> None:
    """SBUF holds both activations and three loads of weights, PSUM holds the sums, at the largest sizes."""
    finished = run(draw(*sizes, dtype))
    assert finished.peak_sbuf_bytes + 2 * 8 * 1024 <= SBUF_LIMIT_BYTES
    assert finished.peak_psum_banks <= 8


def test_untransposed_down_is_refused() -> None:
    """A down projection in the checkpoint's layout [N, I] is refused; the same weight as [I, N] is not."""
    x, gate, up, down = draw(2, 64, 96, 40)
    run([x, gate, up, down])
    with pytest.raises(Exception, match=r"down must be \[I, N\]"):
        run([x, gate, up, np.ascontiguousarray(down.T)])


class Mlp(torch.nn.Module):
    """Three linear layers under the given names; forward uses them as gate, up, down in that order."""

    def __init__(
        self,
        names: tuple[str, str, str],
        intermediate: int = 12,
        bias: bool = False,
        activation: Callable[..., Any] = torch.nn.functional.silu,
    ) -> None:
        super().__init__()
        sizes = [(8, intermediate), (8, intermediate), (intermediate, 8)]
        for name, (features, columns) in zip(names, sizes):
            self.add_module(name, torch.nn.Linear(features, columns, bias=bias))
        self.names = names
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up, down = (self.get_submodule(name) for name in self.names)
        return down(self.activation(gate(x)) * up(x))


class Fused(torch.nn.Module):
    """Gate and up in one linear layer, as in Phi-3; `swapped` takes the second half for the gate."""

    def __init__(self, swapped: bool, bias: bool) -> None:
        super().__init__()
        self.down = torch.nn.Linear(12, 8, bias=bias)
        self.both = torch.nn.Linear(8, 24, bias=bias)
        self.act_fn = torch.nn.GELU(approximate="tanh")
        self.swapped = swapped

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.both(x).chunk(2, dim=-1)[:: -1 if self.swapped else 1]
        return self.down(self.act_fn(gate) * up)


def call(module: torch.nn.Module, features: int = 8) -> SimpleNamespace:
    inputs = (TensorSpec(shape=(2, 3, features), dtype="float32"),)
    return SimpleNamespace(operation="module", module=module, attributes={}, inputs=inputs)


def agreeing(module: torch.nn.Module) -> list[int]:
    """Which of the bindings, by place, compute what the module computes."""
    x = torch.randn(2, 3, 8)
    found = []
    for place, binding in enumerate(RECIPE.recipe.bindings(call(module))):
        weights = {
            role: module.get_parameter(source.name).t() if source.transform == "transpose" else
            module.get_parameter(source.name)
            for role, source in binding.weights.items()
        }  # fmt: skip
        ours = RECIPE.recipe.forward(RECIPE.reference, weights, binding.attributes, x)
        if torch.allclose(ours, module(x), rtol=1e-5, atol=1e-6):
            found.append(place)
    return found


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("names", "intermediate", "place"),
    [
        pytest.param(("gate_proj", "up_proj", "down_proj"), 12, 0, id="llama"),
        pytest.param(("w1", "w3", "w2"), 12, 0, id="original llama"),
        pytest.param(("w1", "w3", "w2"), 8, 0, id="square, told by names"),
        pytest.param(("first", "second", "third"), 12, 0, id="no telling names"),
        pytest.param(("second", "first", "third"), 12, 0, id="no telling names, in the order of use"),
    ],
)
def test_bind_finds_the_roles(names: tuple[str, str, str], intermediate: int, place: int, bias: bool) -> None:
    """Roles come from names, else from shapes and order; one binding, the first, computes the module."""
    assert agreeing(Mlp(names, intermediate=intermediate, bias=bias)) == [place]


def test_untold_roles_are_tried_both_ways() -> None:
    """Where names do not tell gate from up, the second binding has them the other way round."""
    first, second = RECIPE.recipe.bindings(call(Mlp(("one", "two", "three"))))[:2]
    assert first.weights["gate"] == second.weights["up"]
    assert first.weights["up"] == second.weights["gate"]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("swapped", [True, False])
def test_bind_finds_fused_projections(swapped: bool, bias: bool) -> None:
    """Halves of one weight are bound in both orders, the activation that is mentioned first; one binding is right."""
    module = Fused(swapped, bias)
    (place,) = agreeing(module)
    binding = RECIPE.recipe.bindings(call(module))[place]
    assert binding.attributes["halves"] == ("up_gate" if swapped else "gate_up")
    assert ("down_bias" in binding.weights) == bias


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        pytest.param(torch.nn.functional.relu, "relu", id="relu"),
        pytest.param(torch.nn.functional.gelu, "gelu", id="gelu"),
        pytest.param(torch.nn.GELU(approximate="tanh"), "gelu_tanh", id="gelu_tanh"),
        pytest.param(torch.nn.SiLU(), "silu", id="silu"),
    ],
)
def test_bind_finds_the_activation(activation: Callable[..., Any], expected: str) -> None:
    """Among the bindings exactly one has the module's activation."""
    module = Mlp(("gate", "up", "down"), activation=activation)
    (place,) = agreeing(module)
    assert RECIPE.recipe.bindings(call(module))[place].attributes["activation"] == expected


def test_another_activation_agrees_with_no_binding() -> None:
    """An activation that the kernel does not have is left to the probe, which refuses every binding."""
    assert agreeing(Mlp(("gate", "up", "down"), activation=torch.tanh)) == []


@pytest.mark.parametrize(
    "refused",
    [
        pytest.param(call(Mlp(("gate", "up", "down")), features=9), id="other features"),
        pytest.param(call(torch.nn.Sequential(torch.nn.Linear(8, 8, bias=False))), id="one layer"),
        pytest.param(
            call(torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.Linear(12, 8))), id="not gated"
        ),
        pytest.param(
            call(torch.nn.Sequential(Mlp(("gate", "up", "down")), torch.nn.LayerNorm(8))), id="norm"
        ),
        pytest.param(
            call(torch.nn.ModuleList([torch.nn.Linear(8, n, bias=False) for n in (4, 5, 6)])), id="shapes"
        ),
    ],
)
def test_bind_refuses(refused: SimpleNamespace) -> None:
    """What cannot be projections around one intermediate, and nothing else, is not bound."""
    assert RECIPE.recipe.bind(refused) is None
