"""Published latencies beside predicted ones: single instructions, tutorial kernels, and what else is published.

    python benchmarks/latency_calibration.py [--without-large-matmuls]

Kernels run at their published sizes with zeros as data, since only shapes matter. Nothing in the model was fitted to
the kernels below, except TensorE's effective clock on Trn1, which the last Trn1 matmul pins (marked *, left out of
the median). The points that a constant was read from are listed first and are no test at all.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import latency_kernels as kernels
import ml_dtypes
import numpy as np

from neuron_port.simulator import HbmArray, run_kernel, to_hbm
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl
from neuron_port.simulator.timing import Timeline, predict

MATMUL = ((8192, 4096), (8192, 8192))


@dataclass(frozen=True, kw_only=True)
class Point:
    """One published latency of a whole kernel and how to predict it."""

    family: str  # variants of one operator with the same inputs
    name: str
    target: str
    published_us: float
    source: str
    kernel: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    dtype: Any = np.float32
    independent: bool = True  # no constant was read from it
    large: bool = False  # takes many seconds
    options: dict[str, Any] = field(default_factory=dict)

    def predict(self) -> Timeline:
        """Run the kernel on zeros and schedule its trace."""
        arrays = [zeros(shape, self.dtype) for shape in self.shapes]
        return predict(run_kernel(self.kernel, *arrays, target=self.target, **self.options))


@functools.cache
def zeros(shape: tuple[int, ...], dtype: Any) -> HbmArray:
    return to_hbm(np.zeros(shape, dtype))


def matmul(target: str, name: str, us: float, kernel: Callable[..., Any], source: str, **rest: Any) -> Point:
    """A point of the 4096 x 8192 @ 8192 x 8192 matmul: float32 on Trn2, bfloat16 on Trn1 with two compilers."""
    release = {"2.26 matmul tutorial": " (2024)", "autocomp 1_gemm": " (2025)"}.get(source, "")
    dtype = np.float32 if target == "trn2" else ml_dtypes.bfloat16
    return Point(
        family=f"matmul {target}{release}", name=name, target=target, published_us=us, source=source, kernel=kernel,
        shapes=MATMUL, dtype=dtype, large=True, **rest,
    )  # fmt: skip


def mamba(
    family: str, name: str, us: float, kernel: Any, channels: int, size: int, source: str, **options: Any
) -> Point:
    shapes = ((channels, size), (channels, size), (channels, 16), (16, size), (16, size))
    return Point(
        family=family, name=name, target="trn1", published_us=us, source=source, kernel=kernel, shapes=shapes,
        large=channels * size > 2**21, options=options,
    )  # fmt: skip


def small_blocks(lhsT: Any, rhs: Any) -> Any:
    return kernels.matmul_blocked(lhsT, rhs, tiles_m=8)


def grouped(rows: int, columns: int, *, merged: bool) -> Callable[..., Any]:
    def kernel(lhsT: Any, rhs: Any) -> Any:
        return kernels.matmul_grouped(lhsT, rhs, rows, columns, merged)

    return kernel


def points() -> list[Point]:
    """All published kernel latencies that this benchmark knows."""
    opt, old, auto = "kernel-optimization.rst", "2.26 matmul tutorial", "autocomp 1_gemm"
    fused, layer = "2.26 fused_mamba.rst", "2.26 layernorm.rst"
    hoisted = {"invariant_outside": True}
    found = [
        matmul("trn2", "tiled", 39_890, kernels.matmul_tiled, opt),
        matmul("trn2", "loads hoisted", 28_200, kernels.matmul_hoisted, opt),
        matmul("trn2", "free dimensions blocked", 28_410, kernels.matmul_blocked_free, opt),
        # Blocks of 8 row tiles: with the published 16, float32 tiles take 224 KiB, all of SBUF.
        matmul("trn2", "all dimensions blocked", 28_300, small_blocks, opt),
        matmul("trn1", "tiled", 51_800, kernels.matmul_tiled, old),
        matmul("trn1", "loads hoisted", 42_960, kernels.matmul_hoisted_wide, old),
        matmul("trn1", "free dimensions blocked", 22_070, kernels.matmul_blocked_free, old),
        matmul("trn1", "all dimensions blocked", 6_970, kernels.matmul_blocked, old, independent=False),
        matmul("trn1", "tiled", 20_990, kernels.matmul_tiled, auto),
        matmul("trn1", "1 x 2 tiles", 28_680, grouped(1, 2, merged=False), auto),
        matmul("trn1", "2 x 2 tiles", 11_800, grouped(2, 2, merged=False), auto),
        matmul("trn1", "4 x 2 tiles", 8_070, grouped(4, 2, merged=False), auto),
        matmul("trn1", "4 x 2 tiles, merged loads", 6_960, grouped(4, 2, merged=True), auto),
        mamba("mamba 256 x 512", "v1", 172.93, kernels.mamba_v1, 256, 512, fused),
        mamba("mamba 4096 x 512", "v1", 2_340, kernels.mamba_v1, 4096, 512, fused),
        mamba("mamba 4096 x 512", "v2", 1_610, kernels.mamba_v2, 4096, 512, fused, **hoisted),
        mamba("mamba 256 x 2048", "v1", 636, kernels.mamba_v1, 256, 2048, "autocomp 3_mamba"),
        mamba("mamba 256 x 2048", "v2, product outside", 539, kernels.mamba_v2, 256, 2048, "autocomp 3_mamba", **hoisted),
    ]  # fmt: skip
    for size, v2_ms, v3_ms in ((1024, 4.4, 3.3), (2048, 8.9, 6.6), (4096, 17.6, 13.3)):
        family = f"mamba 4096 x {size}"
        found.append(mamba(family, "v2", v2_ms * 1e3, kernels.mamba_v2, 4096, size, fused, **hoisted))
        found.append(mamba(family, "v3", v3_ms * 1e3, kernels.mamba_v3, 4096, size, fused, **hoisted))
    for name, us, kernel in (("v1", 2_311, kernels.layernorm_v1), ("v2", 1_969, kernels.layernorm_v2)):
        found.append(
            Point(
                family="layernorm",
                name=name,
                target="trn1",
                published_us=us,
                source=layer,
                kernel=kernel,
                shapes=((4096, 8192), (1, 8192), (1, 8192)),
            )
        )
    return found


def single_instructions() -> list[tuple[str, float, float]]:
    """(what, published ns, predicted ns) of the profiles that constants were read from; all on Trn2."""

    def kernel(source: Any) -> Any:
        out = nl.ndarray((128, 512), nl.float32, nl.shared_hbm)
        rows = nl.ndarray((4, 4096), nl.bfloat16, nl.sbuf)
        nisa.dma_copy(rows, source)
        tiles = [nl.ndarray((128, n), nl.bfloat16, nl.sbuf) for n in (128, 4096)]
        for tile in tiles:
            nisa.memset(tile, 0.0)
            nisa.activation(tile, nl.exp, tile)
        left, right, sums = (nl.ndarray((128, n), nl.float32, nl.sbuf) for n in (128, 512, 512))
        for tile in (left, right):
            nisa.memset(tile, 0.0)
        psum = nl.ndarray((128, 512), nl.float32, nl.psum)
        for _ in range(20):
            nisa.nc_matmul(psum, left, right)
        nisa.tensor_copy(sums, right, engine=nisa.engine.vector)
        nisa.tensor_tensor(sums, sums, psum, nl.add)
        nisa.dma_copy(out, sums)
        return out

    entries = predict(run_kernel(kernel, np.zeros((4, 4096), ml_dtypes.bfloat16), target="trn2")).scheduled

    def of(opcode: str) -> list[Any]:
        return sorted((e for e in entries if e.instruction.opcode == opcode), key=lambda e: e.index)

    def latency(entry: Any) -> float:
        return float(entry.end_ns - entry.start_ns - entry.table_load_ns)

    small, large = of("activation")
    return [
        ("exp, 128 elements", 402, latency(small)),
        ("exp, 4096 elements", 3716, latency(large)),
        ("tensor_copy, 512 float32 in SBUF", 428, latency(of("tensor_copy")[0])),
        ("tensor_tensor, 512 float32, one in PSUM", 695, latency(of("tensor_tensor")[0])),
        ("nc_matmul, 512 columns of float32, 2 x 429.6", 859.2, of("nc_matmul")[-1].busy_ns),
        ("load of [4, 4096] bf16 on one engine", 1416, of("dma_copy")[0].busy_ns),
    ]


def main() -> None:
    """Print all points, and the median of the absolute errors of the independent ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--without-large-matmuls", action="store_true", help="skip what takes many seconds")
    skip = parser.parse_args().without_large_matmuls
    print(f"{'single instruction on Trn2':48} {'published':>10} {'predicted':>10} {'error':>7}")
    for what, published, predicted in single_instructions():
        print(f"{what:48} {published:8.0f} ns {predicted:8.0f} ns {predicted / published - 1:+7.1%}")
    print(
        f"\n{'kernel':48} {'published':>10} {'predicted':>10} {'error':>7} {'in order':>10} {'roofline':>10}  source"
    )
    errors = []
    for point in points():
        if skip and point.large:
            print(f"{point.family + ', ' + point.name:48} skipped", file=sys.stderr)
            continue
        result = point.predict()
        error = result.latency_ns / 1e3 / point.published_us - 1
        if point.independent:
            errors.append(abs(error))
        name = f"{point.family}, {point.name}{'' if point.independent else ' *'}"
        print(
            f"{name:48} {point.published_us:7.0f} us {result.latency_ns / 1e3:7.0f} us {error:+7.1%} "
            f"{result.in_order_ns / 1e3:7.0f} us {result.roofline.bound_ns / 1e3:7.0f} us  {point.source}",
            flush=True,
        )
    print(f"\nmedian absolute error of {len(errors)} independent points: {statistics.median(errors):.1%}")


if __name__ == "__main__":
    main()
