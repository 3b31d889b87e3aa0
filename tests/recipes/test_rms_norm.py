"""What is special to the rms_norm recipe: two layouts, one rounding, rows of zeros, wide rows."""

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
RECIPE = Registry()["rms_norm"]
KERNEL = load_kernel_source(RECIPE.kernel.source, "rms_norm", "rms_norm/kernel.py")


def draw(tokens: int, hidden: int, dtype: Any = np.float32) -> list[np.ndarray]:
    """x [T, H], gamma [H]."""
    generator = np.random.default_rng(0)
    return [
        generator.standard_normal(shape, dtype=np.float32).astype(dtype)
        for shape in ((tokens, hidden), (hidden,))
    ]


def run(arrays: list[np.ndarray], eps: float = 1e-5, target: str = "inf2") -> KernelRun:
    return run_kernel(KERNEL, *arrays, target=target, eps=eps)


def exact(x: np.ndarray, gamma: np.ndarray, eps: float) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.sqrt((x * x).sum(axis=1, keepdims=True) / x.shape[1] + eps) * gamma.astype(np.float64)


@pytest.mark.parametrize("target", ["inf2", "trn2"])
@pytest.mark.parametrize("eps", [1e-6, 0.5])
@pytest.mark.parametrize("sizes", [(1, 1), (1, 4096), (8, 256), (8, 200), (9, 256), (130, 577), (129, 5000)])
def test_equals_float64_formula(sizes: tuple[int, int], eps: float, target: str) -> None:
    """Both layouts and every tail: the result is the formula in float64."""
    x, gamma = draw(*sizes)
    output = run([x, gamma], eps, target).outputs[0]
    np.testing.assert_allclose(output, exact(x, gamma, eps), rtol=0, atol=1e-5)


@pytest.mark.parametrize("tokens", [2, 20])
def test_bfloat16_rounds_once(tokens: int) -> None:
    """In bfloat16 the result is the exact one rounded; rounding the normalised row too would move a third of it."""
    x, gamma = draw(tokens, 1024, ml_dtypes.bfloat16)
    normalised = exact(x, np.ones(1024), 1e-5).astype(ml_dtypes.bfloat16).astype(np.float64)
    twice = (normalised * gamma.astype(np.float64)).astype(ml_dtypes.bfloat16)
    once = exact(x, gamma, 1e-5).astype(ml_dtypes.bfloat16)
    output = run([x, gamma]).outputs[0]
    assert np.mean(output != once) < 0.001
    assert np.mean(output != twice) > 0.1


@pytest.mark.parametrize("tokens", [2, 20])
def test_rows_of_zeros_stay_zero(tokens: int) -> None:
    """Epsilon keeps a row without any value finite: it is zero, and its neighbours are untouched."""
    x, gamma = draw(tokens, 256)
    x[0] = 0
    output = run([x, gamma]).outputs[0]
    assert not output[0].any()
    np.testing.assert_allclose(output[1:], exact(x[1:], gamma, 1e-5), rtol=0, atol=1e-5)


def test_few_tokens_use_all_partitions() -> None:
    """A single row of 4096 is worked on by 128 partitions; an uneven row by one."""
    even = [item for item in run(draw(1, 4096)).trace if item.opcode == "activation"]
    uneven = [item for item in run(draw(1, 4097)).trace if item.opcode == "activation_reduce"]
    assert even[0].operands[0][1][0] == 128
    assert uneven[0].operands[0][1][0] == 1


@pytest.mark.parametrize("tokens", [1, 128])
def test_inputs_are_read_once(tokens: int) -> None:
    """x is read once and written once; gamma is read once per partition that uses it."""
    x, gamma = draw(tokens, 512)
    finished = run([x, gamma])
    assert finished.hbm_read_bytes == x.nbytes + gamma.nbytes * tokens
    assert finished.hbm_write_bytes == x.nbytes


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_memory_stays_bounded(dtype: Any) -> None:
    """Rows of 16384 fit SBUF beside gamma, for any number of tokens."""
    assert run(draw(130, 16384, dtype)).peak_sbuf_bytes <= SBUF_LIMIT_BYTES


def test_gamma_of_another_dtype_is_refused() -> None:
    """gamma in float32 for x in bfloat16 would change where the result is rounded: refused."""
    x, gamma = draw(2, 256, ml_dtypes.bfloat16)
    run([x, gamma])
    with pytest.raises(Exception, match="gamma must have the dtype of x"):
        run([x, gamma.astype(np.float32)])


def call(module: torch.nn.Module, features: int = 8) -> SimpleNamespace:
    inputs = (TensorSpec(shape=(2, 3, features), dtype="float32"),)
    return SimpleNamespace(operation="module", module=module, attributes={}, inputs=inputs)


class Norm(torch.nn.Module):
    """A norm by its attributes alone."""

    def __init__(self, *shape: int, **attributes: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(shape))
        for name, value in attributes.items():
            setattr(self, name, value)


@pytest.mark.parametrize("name", ["variance_epsilon", "eps", "epsilon"])
def test_bind_reads_epsilon(name: str) -> None:
    """Epsilon is found under the names that models give it; the gains w and 1 + w are offered."""
    bindings = RECIPE.recipe.bind(call(Norm(8, **{name: 1e-6})))
    assert [binding.attributes for binding in bindings] == [{"eps": 1e-6}, {"eps": 1e-6, "offset": 1.0}]


@pytest.mark.parametrize(
    "refused",
    [
        pytest.param(call(Norm(8)), id="no epsilon"),
        pytest.param(call(Norm(8, 8, eps=1e-6)), id="matrix"),
        pytest.param(call(Norm(8, eps=1e-6), features=16), id="other features"),
        pytest.param(call(torch.nn.LayerNorm(8)), id="bias"),
    ],
)
def test_bind_refuses(refused: SimpleNamespace) -> None:
    """What has no gain over the last axis, or no epsilon, is not bound."""
    assert RECIPE.recipe.bind(refused) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_equals_transformers(dtype: torch.dtype) -> None:
    """Around the reference, `forward` equals LlamaRMSNorm bit for bit, casts included."""
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    norm = llama.LlamaRMSNorm(64, eps=1e-3).to(dtype)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 3, 64, dtype=dtype)
    ours = RECIPE.recipe.forward(RECIPE.reference, {"gamma": norm.weight}, {"eps": 1e-3}, x)
    assert torch.equal(ours, norm(x))
