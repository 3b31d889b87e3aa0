"""Simulator speed next to NumPy on the same arithmetic, in one run: `python benchmarks/simulator_speed.py`.

Prints ratios (simulated / NumPy) for tiled matmuls, an elementwise kernel and an rmsnorm, microseconds per
instruction and per call on tiny tiles, where only overhead is left, and the target of each. Both sides use one
BLAS thread and CPU time, so that a busy machine does not decide; a last line has wall times with NumPy's threads.
Nothing is asserted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from neuron_port.simulator import load_kernel_source, run_kernel, to_hbm
from neuron_port.simulator.blas import OneBlasThread

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
def matmul_by_tile(left, right):
    """The same with both operands loaded again for every matmul, as tutorials begin."""
    K, M = left.shape
    N = right.shape[1]
    out = nl.ndarray((M, N), dtype=left.dtype, buffer=nl.shared_hbm)
    for m in range(M // 128):
        for n in range(N // 512):
            psum = nl.ndarray((128, 512), dtype=nl.float32, buffer=nl.psum)
            for k in range(K // 128):
                stationary = nl.ndarray((128, 128), dtype=left.dtype, buffer=nl.sbuf)
                moving = nl.ndarray((128, 512), dtype=right.dtype, buffer=nl.sbuf)
                nisa.dma_copy(stationary, left[k * 128 : k * 128 + 128, m * 128 : m * 128 + 128])
                nisa.dma_copy(moving, right[k * 128 : k * 128 + 128, n * 512 : n * 512 + 512])
                nisa.nc_matmul(psum, stationary, moving)
            result = nl.ndarray((128, 512), dtype=out.dtype, buffer=nl.sbuf)
            nisa.tensor_copy(result, psum)
            nisa.dma_copy(dst=out[m * 128 : m * 128 + 128, n * 512 : n * 512 + 512], src=result)
    return out


@nki.jit
def gate(x, y):
    """sigmoid(x) * y, elementwise."""
    T, H = x.shape
    out = nl.ndarray((T, H), dtype=x.dtype, buffer=nl.shared_hbm)
    for t in range(0, T, 128):
        left = nl.ndarray((128, H), dtype=x.dtype, buffer=nl.sbuf)
        right = nl.ndarray((128, H), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(left, x[t : t + 128, :])
        nisa.dma_copy(right, y[t : t + 128, :])
        nisa.activation(left, nl.sigmoid, left)
        nisa.tensor_tensor(left, left, right, nl.multiply)
        nisa.dma_copy(out[t : t + 128, :], left)
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


def best_seconds(*calls: Callable[[], Any], clock: Callable[[], float] = time.process_time) -> list[float]:
    """Least time of each call after one to warm up; the calls take turns."""
    for call in calls:
        call()
    best = [float("inf")] * len(calls)
    for _ in range(REPEATS):
        for position, call in enumerate(calls):
            start = clock()
            call()
            best[position] = min(best[position], clock() - start)
    return best


def compare(label: str, target: float, plain: Callable[[], Any], simulated: Callable[[], Any]) -> None:
    """Print both times, their ratio and its target."""

    def numpy_with_one_thread() -> None:
        with OneBlasThread():
            plain()

    numpy_seconds, simulator_seconds = best_seconds(numpy_with_one_thread, simulated)
    times = f"numpy {numpy_seconds * 1e3:7.1f} ms  simulator {simulator_seconds * 1e3:7.1f} ms"
    print(f"{label:42s} {times}  x {simulator_seconds / numpy_seconds:.2f}  (target {target})")


def main() -> None:
    """Measure and print."""
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((MATMUL_SIZE, MATMUL_SIZE)).astype(np.float32) for _ in range(2))
    narrow = [array.astype(ml_dtypes.bfloat16) for array in (left, right)]
    held = [to_hbm(array) for array in narrow]
    matmul, by_tile = kernel("matmul"), kernel("matmul_by_tile")
    size = f"matmul {MATMUL_SIZE}^3"
    product = lambda: left.T @ right  # noqa: E731
    compare(f"{size} float32", 1.5, product, lambda: run_kernel(matmul, left, right))
    compare(f"{size} float32, loads by tile", 1.5, product, lambda: run_kernel(by_tile, left, right))
    compare(f"{size} bfloat16", 2.5, product, lambda: run_kernel(matmul, *narrow))
    compare(f"{size} bfloat16 by to_hbm", 2.5, product, lambda: run_kernel(matmul, *held))
    x, y = (rng.standard_normal((TOKENS, HIDDEN)).astype(np.float32) for _ in range(2))
    gamma = rng.standard_normal(HIDDEN).astype(np.float32)
    compare(
        f"gate {TOKENS} x {HIDDEN} float32",
        4,
        lambda: 1 / (1 + np.exp(-x)) * y,
        lambda: run_kernel(kernel("gate"), x, y),
    )
    compare(
        f"rmsnorm {TOKENS} x {HIDDEN} float32",
        4,
        lambda: x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + 1e-6) * gamma,
        lambda: run_kernel(kernel("rms_norm"), x, gamma),
    )
    tiny = kernel("tiny")
    for dtype in (np.float32, ml_dtypes.bfloat16):
        small = np.ones((4, 8), dtype)
        (seconds,) = best_seconds(lambda small=small: run_kernel(tiny, small, loops=TINY_LOOPS))
        each = seconds / (8 * TINY_LOOPS) * 1e6
        print(f"tiny tiles {np.dtype(dtype).name:31s} {each:.1f} us per instruction  (target 15)")
    small = np.ones((4, 8), np.float32)
    (seconds,) = best_seconds(lambda: [run_kernel(tiny, small, loops=0) for _ in range(TINY_LOOPS)])
    print(f"{'call of 4 instructions on 6 tensors':42s} {seconds / TINY_LOOPS * 1e6:.1f} us per call")
    walls = best_seconds(product, lambda: run_kernel(matmul, left, right), clock=time.perf_counter)
    print(
        f"{size + ' float32, wall time':42s} numpy {walls[0] * 1e3:7.1f} ms with its own number of threads, "
        f"simulator {walls[1] * 1e3:.1f} ms with one"
    )


if __name__ == "__main__":
    main()
