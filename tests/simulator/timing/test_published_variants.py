"""The rewritten published kernels compute what their operators compute: their times are of the right work."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from neuron_port.simulator import run_kernel

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture
def variants(monkeypatch):
    """The variants of a family, by the name of its file."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return lambda name: importlib.import_module(f"published_variants.{name}").FAMILY.variants


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def softmax(scores: np.ndarray) -> np.ndarray:
    exponents = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def check(kernel: Any, inputs: list[np.ndarray], expected: np.ndarray, tolerance: float) -> None:
    result = run_kernel(kernel, *inputs, target="trn1").outputs[0].astype(np.float32)
    assert np.abs(result - expected).max() <= tolerance * np.abs(expected).max()


def test_gemm(variants):
    """Every gemm variant is the product."""
    lhsT, rhs = (draw(256, n).astype(ml_dtypes.bfloat16) for n in (512, 1024))
    expected = lhsT.astype(np.float32).T @ rhs.astype(np.float32)
    for variant in variants("gemm"):
        check(variant.kernel, [lhsT, rhs], expected, 1e-2)


def test_attention(variants):
    """Every attention variant is softmax(q.T @ k) @ v.T."""
    q, k, v = ((draw(128, 512) * (i + 1) / 10).astype(ml_dtypes.bfloat16) for i in range(3))
    q32, k32, v32 = (x.astype(np.float32) for x in (q, k, v))
    for variant in variants("attention"):
        check(variant.kernel, [q, k, v], softmax(q32.T @ k32) @ v32.T, 3e-2)


def test_attention_of_stable_diffusion(variants):
    """Every variant is softmax(q @ k.T / 8) @ v."""
    q, k, v = (draw(256, 64) * (i + 1) / 2 for i in range(3))
    for variant in variants("sd_attention"):
        check(variant.kernel, [q, k, v], softmax(q @ k.T / 8) @ v, 3e-2)


def test_mamba(variants):
    """Every variant is the sum over states of C times the scan of exp(delta A) and delta u B."""
    delta, u, A, B, C = (
        np.abs(draw(128, 512)),
        draw(128, 512),
        -np.abs(draw(128, 2)),
        draw(2, 512),
        draw(2, 512),
    )
    expected = np.zeros_like(delta)
    for n in range(2):
        state = np.zeros(128, np.float32)
        for t in range(512):
            state = np.exp(delta[:, t] * A[:, n]) * state + delta[:, t] * u[:, t] * B[n, t]
            expected[:, t] += state * C[n, t]
    for variant in variants("mamba"):
        check(variant.kernel, [delta, u, A, B, C], expected, 1e-4)


def test_conv1d(variants):
    """Every variant is the depthwise convolution with a window of 3."""
    image, window = draw(128, 256), draw(128, 3)
    padded = np.pad(image, ((0, 0), (1, 1)))
    expected = sum(padded[:, i : i + 256] * window[:, i : i + 1] for i in range(3))
    for variant in variants("conv1d"):
        check(variant.kernel, [image, window], expected, 1e-5)


def rms_scaled(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(axis=1, keepdims=True))


def nkibench_case(name: str) -> tuple[list[np.ndarray], np.ndarray]:
    """Small inputs of one NKIBench operator, and its result."""
    x, z, weight, gamma = draw(128, 1024), draw(128, 1024) / 2, draw(1024, 1024), draw(1, 1024)
    if name == "silu":
        return [x], x / (1 + np.exp(-x))
    if name == "adamw":
        square = np.abs(weight[:128])
        mean, second = 0.9 * z + 0.1 * gamma, 0.999 * square + 0.001 * gamma * gamma
        gradient = np.broadcast_to(gamma, x.shape).copy()
        return [x, gradient, z, square], x - 1e-5 * x - 0.01 * mean / (np.sqrt(1000 * second) + 1e-8)
    if name == "rope":
        c, s = draw(64, 1024), draw(64, 1024) / 2
        return [x, c, s], np.concatenate([x[:64] * c - x[64:] * s, x[64:] * c + x[:64] * s])
    if name == "bmm":
        lhs, rhs = draw(2, 128, 64), draw(2, 64, 1024)
        return [lhs, rhs], lhs @ rhs
    if name == "rmsnorm_matmul":
        x = draw(1024, 1024)
        return [x, weight], rms_scaled(x) @ weight
    if name == "add_rmsnorm_matmul":
        return [x, weight, z, gamma], (rms_scaled(x + z) * gamma) @ weight
    if name == "matmul_add_rmsnorm":
        return [x, weight, z, gamma], rms_scaled(x @ weight + z) * gamma
    if name == "transpose_matmul":
        return [x, z], x.T @ z
    assert name == "matmul"
    return [x, weight], x @ weight


def test_nkibench(variants):
    """Every NKIBench operator computes its formula."""
    for variant in variants("nkibench"):
        inputs, expected = nkibench_case(variant.name)
        check(variant.kernel, inputs, expected, 1e-4)
