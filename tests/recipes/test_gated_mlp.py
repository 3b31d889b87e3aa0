"""What is special to the gated_mlp recipe: two layouts, one pass over the weights, roles by name."""

from __future__ import annotations

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

    def __init__(self, names: tuple[str, str, str], intermediate: int = 12, bias: bool = False) -> None:
        super().__init__()
        sizes = [(8, intermediate), (8, intermediate), (intermediate, 8)]
        for name, (features, columns) in zip(names, sizes):
            self.add_module(name, torch.nn.Linear(features, columns, bias=bias))
        self.names = names

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up, down = (self.get_submodule(name) for name in self.names)
        return down(torch.nn.functional.silu(gate(x)) * up(x))


def call(module: torch.nn.Module, features: int = 8) -> SimpleNamespace:
    inputs = (TensorSpec(shape=(2, 3, features), dtype="float32"),)
    return SimpleNamespace(operation="module", module=module, attributes={}, inputs=inputs)


@pytest.mark.parametrize(
    ("names", "intermediate"),
    [
        pytest.param(("gate_proj", "up_proj", "down_proj"), 12, id="llama"),
        pytest.param(("w1", "w3", "w2"), 12, id="original llama"),
        pytest.param(("w1", "w3", "w2"), 8, id="square, told by names"),
        pytest.param(("first", "second", "third"), 12, id="no telling names"),
    ],
)
def test_bind_finds_the_roles(names: tuple[str, str, str], intermediate: int) -> None:
    """Roles come from names, else from shapes and order; `forward` with them equals the module."""
    module = Mlp(names, intermediate=intermediate)
    binding = RECIPE.recipe.bind(call(module))
    assert binding is not None
    weights = {role: module.get_parameter(source.name).t() for role, source in binding.weights.items()}
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(RECIPE.recipe.forward(RECIPE.reference, weights, {}, x), module(x))


@pytest.mark.parametrize(
    "refused",
    [
        pytest.param(call(Mlp(("gate", "up", "down"), bias=True)), id="biases"),
        pytest.param(call(Mlp(("gate", "up", "down")), features=9), id="other features"),
        pytest.param(call(torch.nn.Sequential(torch.nn.Linear(8, 8, bias=False))), id="one layer"),
        pytest.param(
            call(torch.nn.ModuleList([torch.nn.Linear(8, n, bias=False) for n in (4, 5, 6)])), id="shapes"
        ),
    ],
)
def test_bind_refuses(refused: SimpleNamespace) -> None:
    """What cannot be three bias-free projections around one intermediate is not bound."""
    assert RECIPE.recipe.bind(refused) is None
