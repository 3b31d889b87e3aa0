"""What is special to the norm_linear recipe: the norm costs no traffic, no transpose and no product of TensorE."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from neuron_port.registry import Registry
from neuron_port.simulator import KernelRun, load_kernel_source, run_kernel

RECIPE = Registry()["norm_linear"]
KERNEL = load_kernel_source(RECIPE.kernel.source, "norm_linear", "norm_linear/kernel.py")


def draw(tokens: int, features: int, columns: int, dtype: Any = np.float32) -> list[np.ndarray]:
    """x [T, K], gamma [K], weight [K, N], bias [N]."""
    generator = np.random.default_rng(0)
    drawn = [
        generator.standard_normal(shape, dtype=np.float32)
        for shape in ((tokens, features), (features,), (features, columns), (columns,))
    ]
    drawn[2] *= features**-0.5
    return [array.astype(dtype) for array in drawn]


def run(arrays: list[np.ndarray], target: str = "inf2") -> KernelRun:
    return run_kernel(KERNEL, *arrays, target=target, eps=1e-5)


def exact(x: np.ndarray, gamma: np.ndarray, weight: np.ndarray, bias: np.ndarray | float = 0.0) -> np.ndarray:
    """The formula in float64."""
    x, gamma, weight = (array.astype(np.float64) for array in (x, gamma, weight))
    return (x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * gamma) @ weight + bias


@pytest.mark.parametrize("target", ["inf2", "trn2"])
@pytest.mark.parametrize("sizes", [(1, 512, 600), (8, 96, 40), (3, 65, 7), (130, 577, 515), (600, 320, 70)])
def test_equals_float64_formula(sizes: tuple[int, int, int], target: str) -> None:
    """Few tokens and many, every tail, with and without bias."""
    arrays = draw(*sizes)
    for given in (arrays, arrays[:3]):
        np.testing.assert_allclose(run(given, target).outputs[0], exact(*given), rtol=0, atol=2e-5)


def test_bfloat16_is_closer_than_torch() -> None:
    """In bfloat16 the kernel is no further from the exact result than norm and projection one by one."""
    arrays = draw(20, 512, 128, ml_dtypes.bfloat16)[:3]
    tensors = [torch.from_numpy(array.astype(np.float32)).bfloat16() for array in arrays]
    error = np.abs(run(arrays).outputs[0].astype(np.float64) - exact(*arrays)).mean()
    torch_error = np.abs(RECIPE.reference(*tensors, eps=1e-5).double().numpy() - exact(*arrays)).mean()
    assert 0 < error <= torch_error


@pytest.mark.parametrize("tokens", [1, 130])
def test_inputs_are_read_once(tokens: int) -> None:
    """The normalised rows never leave the core: what is read is the inputs, what is written the result."""
    arrays = draw(tokens, 576, 640)[:3]
    finished = run(arrays)
    assert finished.hbm_read_bytes == sum(array.nbytes for array in arrays)
    assert finished.hbm_write_bytes == tokens * 640 * 4


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_memory_stays_bounded(dtype: Any) -> None:
    """SBUF and PSUM suffice for the longest rows and for a vocabulary."""
    for sizes in ((300, 16384, 64), (1, 256, 32064)):
        finished = run(draw(*sizes, dtype))
        assert finished.peak_sbuf_bytes + 2 * 16 * 1024 <= (192 - 16) * 1024
        assert finished.peak_psum_banks <= 8


def test_zeros_stay_zero() -> None:
    """A row of zeros has no root mean square to divide by; epsilon keeps it at zero."""
    x, gamma, weight, _ = draw(20, 256, 40)
    x[3] = 0
    assert np.all(run([x, gamma, weight]).outputs[0][3] == 0)
