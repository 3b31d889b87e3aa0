"""Simulator speed next to NumPy on the same arithmetic, in one run: `python benchmarks/simulator_speed.py`.

Prints ratios (simulated / NumPy) for a tiled matmul and an rmsnorm, and microseconds per instruction and
per call on tiny tiles, where only overhead is left. Nothing is asserted; a busy machine inflates everything.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from neuron_port.simulator import load_kernel_source, run_kernel, to_hbm

REPEATS = 5
MATMUL_SIZE = 2048
TOKENS, HIDDEN = 2048, 4096
TINY_LOOPS = 1000

KERNELS = '''
import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def matmul(left, right):
    """left [K, M] transposed @ right [K, N], in blocks of [128, 128] x [128, 512]."""
    K, M = left.shape
    N = right.shape[1]
    out = nl.ndarray((M, N), dtype=left.dtype, buffer=nl.shared_hbm)
    for m in range(M // 128):
        stationary = nl.ndarray((128, K // 128, 128), dtype=left.dtype, buffer=nl.sbuf)
        columns = left[:, nl.ds(m * 128, 128)].reshape_dim(0, (K // 128, 128)).permute((1, 0, 2))
        nisa.dma_copy(dst=stationary, src=columns)
        for n in range(N // 512):
            psum = nl.ndarray((128, 512), dtype=nl.float32, buffer=nl.psum)
            for k in range(K // 128):
                moving = nl.ndarray((128, 512), dtype=right.dtype, buffer=nl.sbuf)
                nisa.dma_copy(dst=moving, src=right[k * 128 : k * 128 + 128, n * 512 : n * 512 + 512])
                nisa.nc_matmul(psum, stationary[:, k, :], moving)
            result = nl.ndarray((128, 512), dtype=out.dtype, buffer=nl.sbuf)
            nisa.tensor_copy(result, psum)
            nisa.dma_copy(dst=out[m * 128 : m * 128 + 128, n * 512 : n * 512 + 512], src=result)
    return out


@nki.jit
def rms_norm(x, gamma):
    """x [T, H] / sqrt(mean(x * x) + 1e-6) * gamma [H]."""
    T, H = x.shape
    out = nl.ndarray((T, H), dtype=x.dtype, buffer=nl.shared_hbm)
    weight = nl.ndarray((128, H), dtype=gamma.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=weight, src=gamma.reshape((1, H)).broadcast(0, 128))
    epsilon = nl.ndarray((128, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(epsilon, 1e-6)
    for t in range(0, T, 128):
        tile = nl.ndarray((128, H), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=tile, src=x[t : t + 128, :])
        work = nl.ndarray((128, H), dtype=nl.float32, buffer=nl.sbuf)
        scale = nl.ndarray((128, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation_reduce(work, nl.square, tile, nl.add, scale)
        nisa.activation(scale, nl.rsqrt, scale, bias=epsilon, scale=1.0 / H)
        nisa.tensor_scalar(work, tile, nl.multiply, scale)
        nisa.tensor_tensor(tile, work, weight, nl.multiply)
        nisa.dma_copy(dst=out[t : t + 128, :], src=tile)
    return out


@nki.jit
def tiny(x, loops):
    """Eight instructions on [4, 8] tiles, `loops` times."""
    tile = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
    other = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
    column = nl.ndarray((4, 1), dtype=nl.float32, buffer=nl.sbuf)
    psum = nl.ndarray((8, 8), dtype=nl.float32, buffer=nl.psum)
    nisa.dma_copy(dst=tile, src=x)
    nisa.dma_copy(dst=other, src=x)
    nisa.memset(column, 1.0)
    for _ in range(loops):
        nisa.tensor_tensor(other, tile, tile, op=nl.add)
        nisa.tensor_scalar(other, tile, op0=nl.multiply, operand0=column)
        nisa.activation(other, op=nl.exp, data=tile, scale=0.5)
        nisa.tensor_copy(other[:, 0:4], tile[:, 4:8])
        nisa.nc_matmul(psum, stationary=tile, moving=tile, accumulate=False)
        nisa.tensor_reduce(column, nl.maximum, tile, axis=1)
        nisa.memset(column, 1.0)
        nisa.dma_copy(dst=other, src=x)
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=out, src=other)
    return out
'''


def kernel(name: str) -> Callable[..., Any]:
    """One of the kernels above."""
    return load_kernel_source(KERNELS, name, "benchmarks/simulator_speed.py:KERNELS")


def best_seconds(call: Callable[[], Any]) -> float:
    """Shortest of several calls, after one to warm up."""
    call()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def compare(label: str, plain: Callable[[], Any], simulated: Callable[[], Any]) -> None:
    """Print both times and their ratio."""
    numpy_seconds, simulator_seconds = best_seconds(plain), best_seconds(simulated)
    ratio = simulator_seconds / numpy_seconds
    times = f"numpy {numpy_seconds * 1e3:8.1f} ms  simulator {simulator_seconds * 1e3:8.1f} ms"
    print(f"{label:38s} {times}  x {ratio:.2f}")


def main() -> None:
    """Measure and print."""
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((MATMUL_SIZE, MATMUL_SIZE)).astype(np.float32) for _ in range(2))
    narrow = [array.astype(ml_dtypes.bfloat16) for array in (left, right)]
    held = [to_hbm(array) for array in narrow]
    matmul, rms_norm = kernel("matmul"), kernel("rms_norm")
    size = f"{MATMUL_SIZE}^3"
    compare(f"matmul {size} float32", lambda: left.T @ right, lambda: run_kernel(matmul, left, right))
    compare(f"matmul {size} bfloat16", lambda: left.T @ right, lambda: run_kernel(matmul, *narrow))
    compare(f"matmul {size} bfloat16 by to_hbm", lambda: left.T @ right, lambda: run_kernel(matmul, *held))
    x = rng.standard_normal((TOKENS, HIDDEN)).astype(np.float32)
    gamma = rng.standard_normal(HIDDEN).astype(np.float32)
    compare(
        f"rmsnorm {TOKENS} x {HIDDEN} float32",
        lambda: x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + 1e-6) * gamma,
        lambda: run_kernel(rms_norm, x, gamma),
    )
    for dtype in (np.float32, ml_dtypes.bfloat16):
        small = np.ones((4, 8), dtype)
        seconds = best_seconds(lambda small=small: run_kernel(kernel("tiny"), small, loops=TINY_LOOPS))
        print(
            f"tiny tiles {np.dtype(dtype).name:27s} {seconds / (8 * TINY_LOOPS) * 1e6:.1f} us per instruction"
        )
    tiny, small = kernel("tiny"), np.ones((4, 8), np.float32)
    calls = best_seconds(lambda: [run_kernel(tiny, small, loops=0) for _ in range(TINY_LOOPS)])
    print(f"{'call of 4 instructions':38s} {calls / TINY_LOOPS * 1e6:.1f} us per call")


if __name__ == "__main__":
    main()
