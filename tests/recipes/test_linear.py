"""What is special to the linear recipe: no product is wasted, weights pass once, memory stays bounded."""

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
RECIPE = Registry()["linear"]
KERNEL = load_kernel_source(RECIPE.kernel.source, "linear", "linear/kernel.py")


def draw(tokens: int, features: int, columns: int, dtype: Any = np.float32) -> list[np.ndarray]:
    """x [T, K], weight [K, N], bias [N]."""
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((features, columns), dtype=np.float32) * features**-0.5
    x = generator.standard_normal((tokens, features), dtype=np.float32)
    return [
        array.astype(dtype) for array in (x, weight, generator.standard_normal(columns, dtype=np.float32))
    ]


def run(arrays: list[np.ndarray], target: str = "inf2") -> KernelRun:
    return run_kernel(KERNEL, *arrays, target=target)


@pytest.mark.parametrize("target", ["inf2", "trn2"])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 512, 600), (4, 576, 40), (9, 300, 2100), (257, 129, 513)])
def test_equals_float64_product(sizes: tuple[int, int, int], target: str) -> None:
    """Every layout of x, every tail: the result is the product in float64, plus the bias."""
    x, weight, bias = draw(*sizes)
    expected = np.einsum("tk,kn->tn", x.astype(np.float64), weight.astype(np.float64)) + bias
    np.testing.assert_allclose(run([x, weight, bias], target).outputs[0], expected, rtol=0, atol=2e-5)


def test_bfloat16_rounds_once() -> None:
    """In bfloat16 the result is within one rounding (2^-9) of the exact product, however long the sum."""
    x, weight, _ = draw(3, 4096, 64, ml_dtypes.bfloat16)
    expected = x.astype(np.float64) @ weight.astype(np.float64)
    output = run([x, weight]).outputs[0].astype(np.float64)
    np.testing.assert_allclose(output, expected, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("sizes", [(1, 640, 1100), (130, 577, 515), (1100, 200, 300)])
def test_no_product_is_wasted_or_skipped(sizes: tuple[int, int, int]) -> None:
    """TensorE multiplies exactly T * K * N times for the weights and T * N times for the bias."""
    tokens, features, columns = sizes
    arrays = draw(*sizes)
    assert run(arrays[:2]).matmul_macs == tokens * features * columns
    assert run(arrays).matmul_macs == tokens * features * columns + tokens * columns


@pytest.mark.parametrize("tokens", [1, 130, 1024])
def test_inputs_are_read_once(tokens: int) -> None:
    """Up to 1024 tokens share one pass over float32 weights: every byte of the inputs is read once."""
    arrays = draw(tokens, 576, 640)
    assert run(arrays).hbm_read_bytes == sum(array.nbytes for array in arrays)


def test_decode_moves_512_columns_per_product() -> None:
    """One token takes K / 128 * N / 512 matmuls, and no transpose: the weights move, x stands still."""
    counts = run(draw(1, 1024, 2048)[:2]).trace.counts_by_opcode()
    assert counts["nc_matmul"] == 1024 // 128 * 2048 // 512
    assert counts["nc_transpose"] == 0


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("tokens", [1, 300, 600])
def test_weight_rows_are_long(tokens: int, dtype: Any) -> None:
    """Each DMA of weights moves rows of 2 KiB or more, below which DMA bandwidth is lost."""
    finished = run(draw(tokens, 256, 4096, dtype)[:2])
    copies = [item.operands for item in finished.trace if item.opcode == "dma_copy"]
    columns = [source[1][2] for _, source in copies if source[0].name == "weight"]
    assert columns
    assert min(columns) * np.dtype(dtype).itemsize >= 2048


@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [
        pytest.param((600, 14336, 64), np.float32, id="longest rows"),
        pytest.param((1100, 14336, 64), ml_dtypes.bfloat16, id="longest rows, bfloat16"),
        pytest.param((1, 256, 128256), np.float32, id="vocabulary"),
        pytest.param((1100, 4096, 64), np.float32, id="two blocks"),
    ],
)
def test_memory_stays_bounded(sizes: tuple[int, int, int], dtype: Any) -> None:
    """SBUF holds x^T and three loads of weights, PSUM holds the sums, at the largest sizes."""
    x, weight, _ = draw(*sizes, dtype)
    finished = run([x, weight])
    assert finished.peak_sbuf_bytes + 2 * 16 * 1024 <= SBUF_LIMIT_BYTES
    assert finished.peak_psum_banks <= 8


def test_untransposed_weight_is_refused() -> None:
    """A weight in the checkpoint's own layout [N, K] is refused; the same weight as [K, N] is not."""
    x, weight, _ = draw(2, 130, 40)
    run([x, weight])
    with pytest.raises(Exception, match=r"weight must be \[K, N\]"):
        run([x, np.ascontiguousarray(weight.T)])


def call(module: torch.nn.Module, *shapes: tuple[int, ...], dtype: str = "float32") -> SimpleNamespace:
    inputs = tuple(TensorSpec(shape=shape, dtype=dtype) for shape in shapes)
    return SimpleNamespace(operation="module", module=module, attributes={}, inputs=inputs)


class Conv1D(torch.nn.Module):
    """A linear layer that stores its weight as [K, N], as GPT-2's; `unused` is an attribute of no consequence."""

    def __init__(self, features: int, columns: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(features, columns))
        self.bias = torch.nn.Parameter(torch.randn(columns))
        self.unused = 3

    def forward(self, x: torch.Tensor, unused: torch.Tensor | None = None) -> torch.Tensor:
        return x @ self.weight + self.bias


@pytest.mark.parametrize("bias", [True, False])
def test_bind_reads_a_linear_layer(bias: bool) -> None:
    """The weight is bound transposed; the bias is bound where there is one."""
    (binding,) = RECIPE.recipe.bindings(call(torch.nn.Linear(8, 4, bias=bias), (2, 3, 8)))
    assert binding.weights["weight"].transform == "transpose"
    assert ("bias" in binding.weights) == bias


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        pytest.param(Conv1D(8, 4), ["none"], id="stored as [K, N]"),
        pytest.param(torch.nn.Linear(8, 4), ["transpose"], id="stored as [N, K]"),
        pytest.param(Conv1D(8, 8), ["transpose", "none"], id="square"),
        pytest.param(torch.nn.Linear(8, 1), ["transpose"], id="one output"),
    ],
)
def test_both_layouts_of_a_weight_are_offered(layer: torch.nn.Module, expected: list[str]) -> None:
    """Shapes say how a weight is stored; a square one is offered both ways, and the right one equals the layer."""
    x = torch.randn(3, 8)
    bindings = RECIPE.recipe.bindings(call(layer, (3, 8)))
    assert [binding.weights["weight"].transform for binding in bindings] == expected
    agreed = []
    for binding in bindings:
        weight = layer.weight.t() if binding.weights["weight"].transform == "transpose" else layer.weight
        ours = RECIPE.recipe.forward(RECIPE.reference, {"weight": weight, "bias": layer.bias}, {}, x)
        agreed.append(torch.allclose(ours, layer(x), atol=1e-5))
    assert agreed.count(True) == 1


@pytest.mark.parametrize(
    "refused",
    [
        pytest.param(call(torch.nn.Linear(8, 4), (2, 3, 7)), id="other features"),
        pytest.param(call(torch.nn.Conv1d(8, 4, 1), (2, 8, 8)), id="convolution"),
        pytest.param(call(torch.nn.Embedding(8, 8), (2, 8), dtype="int64"), id="lookup"),
        pytest.param(call(torch.nn.Bilinear(8, 8, 4), (2, 8), (2, 8)), id="two inputs"),
    ],
)
def test_bind_refuses(refused: SimpleNamespace) -> None:
    """What is no product with one matrix is not bound."""
    assert RECIPE.recipe.bind(refused) is None


def test_forward_speaks_the_layers_convention() -> None:
    """Around the reference, `forward` equals torch's own layer on batches of sequences."""
    layer = torch.nn.Linear(8, 5)
    weights = {"weight": layer.weight.t(), "bias": layer.bias}
    for shape in ((8,), (3, 8), (2, 3, 8), (2, 1, 3, 8)):
        x = torch.randn(shape)
        torch.testing.assert_close(RECIPE.recipe.forward(RECIPE.reference, weights, {}, x), layer(x))


def test_arguments_that_do_not_matter_are_passed_over() -> None:
    """A layer that is called with more than its input, by position or by keyword, is served from the first."""
    layer = Conv1D(8, 5)
    x = torch.randn(2, 3, 8)
    weights = {"weight": layer.weight, "bias": layer.bias}
    forward = RECIPE.recipe.forward
    torch.testing.assert_close(forward(RECIPE.reference, weights, {}, x, torch.randn(2)), layer(x))
    torch.testing.assert_close(forward(RECIPE.reference, weights, {}, x=x, unused=None), layer(x))
