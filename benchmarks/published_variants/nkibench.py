"""Baselines of NKIBench (Trn1), one of each operator, with published activity of engines and bytes moved.

Operators differ, so their order says little; the activity of single engines says which cost is wrong. Problems are
scaled along a dimension that repeats the same work.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl
from published_variants import Family, Variant
from published_variants.tiles import BANK, P, hbm, load, psum, sbuf, scalar_copy, transpose

WIDE = 1024  # columns of a load


def silu(x: Any) -> Any:
    """x / (1 + exp(-x)): loads of 1024 columns, instructions of 512."""
    rows, columns = x.shape
    out = hbm(rows, columns)
    for r in range(0, rows, P):
        for c in range(0, columns, WIDE):
            tile, result = load(x[r : r + P, c : c + WIDE]), sbuf(P, WIDE)
            for s in range(0, WIDE, BANK):
                part = tile[0:P, s : s + BANK]
                power, shifted, inverse = (sbuf(P, BANK) for _ in range(3))
                nisa.activation(power, nl.exp, part, scale=-1.0)
                nisa.tensor_scalar(shifted, power, nl.add, 1.0)
                nisa.reciprocal(inverse, shifted)
                nisa.tensor_tensor(result[0:P, s : s + BANK], part, inverse, nl.multiply)
            nisa.dma_copy(out[r : r + P, c : c + WIDE], result)
    return out


def _times(x: Any, factor: float) -> Any:
    result = sbuf(*x.shape)
    nisa.tensor_scalar(result, x, nl.multiply, factor)
    return result


def _both(one: Any, other: Any, op: Any) -> Any:
    result = sbuf(*one.shape)
    nisa.tensor_tensor(result, one, other, op)
    return result


def adamw(weight: Any, gradient: Any, mean: Any, square: Any) -> Any:
    """One step: seven products with constants, six operations of two tiles, a root, a sum and a reciprocal."""
    rows, columns = weight.shape
    out = hbm(rows, columns)
    for r in range(0, rows, P):
        for c in range(0, columns, WIDE):
            w, m, v, g = (load(x[r : r + P, c : c + WIDE]) for x in (weight, mean, square, gradient))
            result = sbuf(P, WIDE)
            for s in range(0, WIDE, BANK):
                w_part, m_part, v_part, g_part = (x[0:P, s : s + BANK] for x in (w, m, v, g))
                decayed = _both(w_part, _times(w_part, 1e-5), nl.subtract)
                step = _times(_both(_times(m_part, 0.9), _times(g_part, 0.1), nl.add), 0.01)
                squared = _both(_times(g_part, 0.001), g_part, nl.multiply)
                second = _both(_times(v_part, 0.999), squared, nl.add)
                root, shifted, inverse = (sbuf(P, BANK) for _ in range(3))
                nisa.activation(root, nl.sqrt, second, scale=1000.0)
                nisa.tensor_scalar(shifted, root, nl.add, 1e-8)
                nisa.reciprocal(inverse, shifted)
                change = _both(step, inverse, nl.multiply)
                nisa.tensor_tensor(result[0:P, s : s + BANK], decayed, change, nl.subtract)
            nisa.dma_copy(out[r : r + P, c : c + WIDE], result)
    return out


def rope(x: Any, cos: Any, sin: Any) -> Any:
    """Rotation of halves on partitions: x [128, S], cos, sin [64, S], in tiles of 512."""
    size, half = x.shape[1], 64
    out = hbm(P, size)
    for s in range(0, size, BANK):
        tile = load(x[0:P, s : s + BANK])
        c, n = load(cos[0:half, s : s + BANK]), load(sin[0:half, s : s + BANK])
        even, odd, result = tile[0:half], scalar_copy(tile[half:P]), sbuf(P, BANK)
        even_cos, odd_cos = _both(even, c, nl.multiply), _both(odd, c, nl.multiply)
        even_sin, odd_sin = _both(even, n, nl.multiply), _both(odd, n, nl.multiply)
        nisa.tensor_tensor(result[0:half], even_cos, odd_sin, nl.subtract)
        nisa.tensor_tensor(result[half:P], odd_cos, even_sin, nl.add)
        nisa.dma_copy(out[0:P, s : s + BANK], result)
    return out


def bmm(lhs: Any, rhs: Any) -> Any:
    """lhs [B, M, 64] @ rhs [B, 64, N]; lhs is loaded and transposed once for each batch, as the traffic shows."""
    (batches, M, K), N = lhs.shape, rhs.shape[2]
    out = hbm(batches, M, N)
    for b in range(batches):
        lefts = [scalar_copy(transpose(load(lhs[b, m : m + P, 0:K]))) for m in range(0, M, P)]
        for n in range(0, N, WIDE):
            right = load(rhs[b, 0:K, n : n + WIDE])
            for m, left in zip(range(0, M, P), lefts, strict=True):
                result = sbuf(P, WIDE)
                for s in range(0, WIDE, BANK):
                    acc = psum(P, BANK)
                    nisa.nc_matmul(acc, left, right[0:K, s : s + BANK])
                    nisa.activation(result[0:P, s : s + BANK], nl.copy, acc)
                nisa.dma_copy(out[b, m : m + P, n : n + WIDE], result)
    return out


def matmul(lhs: Any, rhs: Any) -> Any:
    """lhs [M, K] @ rhs [K, N]; rhs is loaded again for every row tile, as the published traffic shows."""
    (M, K), N = lhs.shape, rhs.shape[1]
    out = hbm(M, N)
    for n in range(0, N, WIDE):
        for m in range(0, M, P):
            lefts = []
            for k in range(0, K, WIDE):
                tile = load(lhs[m : m + P, k : k + WIDE])
                lefts += [scalar_copy(transpose(tile[0:P, i : i + P])) for i in range(0, WIDE, P)]
            accs, result = [psum(P, BANK), psum(P, BANK)], sbuf(P, WIDE)
            for k, left in zip(range(0, K, P), lefts, strict=True):
                right = load(rhs[k : k + P, n : n + WIDE])
                for i, acc in enumerate(accs):
                    nisa.nc_matmul(acc, left, right[0:P, i * BANK : (i + 1) * BANK])
            for i, acc in enumerate(accs):
                nisa.activation(result[0:P, i * BANK : (i + 1) * BANK], nl.copy, acc)
            nisa.dma_copy(out[m : m + P, n : n + WIDE], result)
    return out


def rmsnorm_matmul(x: Any, weight: Any) -> Any:
    """Rows of x [M, 1024] normalised, transposed by blocks of 128 and multiplied with weight [1024, N]."""
    (M, K), N = x.shape, weight.shape[1]
    out = hbm(M, N)
    for first in range(0, M, 8 * P):
        rows = range(first, first + 8 * P, P)
        turned = [_normalised(load(x[r : r + P, 0:K])) for r in rows]
        for n in range(0, N, WIDE):
            rights = [load(weight[k : k + P, n : n + WIDE]) for k in range(0, K, P)]
            for r, lefts in zip(rows, turned, strict=True):
                result = sbuf(P, WIDE)
                for s in range(0, WIDE, BANK):
                    acc = psum(P, BANK)
                    for left, right in zip(lefts, rights, strict=True):
                        nisa.nc_matmul(acc, left, right[0:P, s : s + BANK])
                    nisa.activation(result[0:P, s : s + BANK], nl.copy, acc)
                nisa.dma_copy(out[r : r + P, n : n + WIDE], result)
    return out


def _normalised(tile: Any) -> list[Any]:
    """The blocks of the normalised row tile, transposed."""
    sums, total, inverse = sbuf(P, 2), sbuf(P, 1), sbuf(P, 1)
    for i in range(2):
        squares, means = sbuf(P, BANK), sbuf(P, BANK)
        nisa.activation(squares, nl.square, tile[0:P, i * BANK : (i + 1) * BANK])
        nisa.tensor_scalar(means, squares, nl.multiply, 1 / 1024)
        nisa.tensor_reduce(sums[0:P, i : i + 1], nl.add, means, axis=1)
    nisa.tensor_reduce(total, nl.add, sums, axis=1)
    nisa.activation(inverse, nl.rsqrt, total)
    blocks = []
    for i in range(2):
        scaled = sbuf(P, BANK)
        nisa.tensor_scalar(scaled, tile[0:P, i * BANK : (i + 1) * BANK], nl.multiply, inverse)
        blocks += [scalar_copy(transpose(scaled[0:P, j : j + P])) for j in range(0, BANK, P)]
    return blocks


def _row_product(rows: Any, weights: list[Any], n: int, into: Any) -> None:
    """into [P, 512] = rows [P, K] @ weights[K, n : n + 512]; each block of rows is transposed for it."""
    acc = psum(P, BANK)
    for number, weight in enumerate(weights):
        left = scalar_copy(transpose(rows[0:P, number * P : (number + 1) * P]))
        nisa.nc_matmul(acc, left, weight[0:P, n : n + BANK])
    nisa.activation(into, nl.copy, acc)


def _rms_scaled(x: Any, gamma: Any) -> Any:
    """x / rms(x) * gamma, for rows [P, N]."""
    squares, total, inverse, scaled, result = (
        sbuf(*x.shape),
        sbuf(P, 1),
        sbuf(P, 1),
        sbuf(*x.shape),
        sbuf(*x.shape),
    )
    nisa.activation(squares, nl.square, x)
    nisa.tensor_reduce(total, nl.add, squares, axis=1)
    nisa.tensor_scalar(total, total, nl.multiply, 1 / x.shape[1], op1=nl.add, operand1=1e-5)
    nisa.activation(inverse, nl.rsqrt, total)
    nisa.tensor_scalar(scaled, x, nl.multiply, inverse)
    nisa.tensor_tensor(result, scaled, gamma, nl.multiply)
    return result


def _on_all_partitions(gamma: Any) -> Any:
    """gamma [1, N] on 128 partitions, by a matmul with ones."""
    row, ones, wide = load(gamma), sbuf(1, P), sbuf(P, gamma.shape[1])
    nisa.memset(ones, 1.0)
    for s in range(0, gamma.shape[1], BANK):
        acc = psum(P, BANK)
        nisa.nc_matmul(acc, ones, row[0:1, s : s + BANK])
        nisa.activation(wide[0:P, s : s + BANK], nl.copy, acc)
    return wide


def add_rmsnorm_matmul(x: Any, weight: Any, z: Any, gamma: Any) -> Any:
    """(rms_norm(x + z) * gamma) @ weight; weight is loaded once, as the published traffic shows."""
    (M, K), N = x.shape, weight.shape[1]
    out, scale = hbm(M, N), _on_all_partitions(gamma)
    weights = [load(weight[k : k + P, 0:N]) for k in range(0, K, P)]
    for m in range(0, M, P):
        rows = _rms_scaled(_both(load(x[m : m + P, 0:K]), load(z[m : m + P, 0:K]), nl.add), scale)
        for n in range(0, N, BANK):
            result = sbuf(P, BANK)
            _row_product(rows, weights, n, result)
            nisa.dma_copy(out[m : m + P, n : n + BANK], result)
    return out


def matmul_add_rmsnorm(x: Any, weight: Any, z: Any, gamma: Any) -> Any:
    """rms_norm(x @ weight + z) * gamma; weight is loaded once."""
    (M, K), N = x.shape, weight.shape[1]
    out, scale = hbm(M, N), _on_all_partitions(gamma)
    weights = [load(weight[k : k + P, 0:N]) for k in range(0, K, P)]
    for m in range(0, M, P):
        rows, product = load(x[m : m + P, 0:K]), sbuf(P, N)
        for n in range(0, N, BANK):
            _row_product(rows, weights, n, product[0:P, n : n + BANK])
        total = _both(product, load(z[m : m + P, 0:N]), nl.add)
        nisa.dma_copy(out[m : m + P, 0:N], _rms_scaled(total, scale))
    return out


def transpose_matmul(lhsT: Any, rhs: Any) -> Any:
    """lhsT [K, M].T @ rhs [K, N], in tiles of 1024 x 1024."""
    (K, M), N = lhsT.shape, rhs.shape[1]
    out = hbm(M, N)
    for m in range(0, M, WIDE):
        lefts = [load(lhsT[k : k + P, m : m + WIDE]) for k in range(0, K, P)]
        for n in range(0, N, WIDE):
            rights = [load(rhs[k : k + P, n : n + WIDE]) for k in range(0, K, P)]
            for row in range(0, WIDE, P):
                result = sbuf(P, WIDE)
                for s in range(0, WIDE, BANK):
                    acc = psum(P, BANK)
                    for left, right in zip(lefts, rights, strict=True):
                        nisa.nc_matmul(acc, left[0:P, row : row + P], right[0:P, s : s + BANK])
                    nisa.activation(result[0:P, s : s + BANK], nl.copy, acc)
                nisa.dma_copy(out[m + row : m + row + P, n : n + WIDE], result)
    return out


F32 = np.float32
FAMILY = Family(
    name="NKIBench",
    target="trn1",
    source="zhang677/AccelOpt experiments/full_complete_local/profile_results.csv",
    same_problem=False,
    variants=[
        Variant(
            name="silu", published_ms=1.3332, kernel=silu, shapes=[((2048, 7168), F32)], repeats=2,
            busy_ms={"scalar": 0.4197, "vector": 0.985}, hbm_bytes=234.8e6,
        ),
        Variant(
            name="adamw", published_ms=1.9998, kernel=adamw, shapes=[((1368 // 128 * 128, 2048), F32)] * 4,
            repeats=10944 / 1280, busy_ms={"scalar": 1.2323, "vector": 1.8002}, hbm_bytes=448.3e6,
        ),
        Variant(
            name="rope", published_ms=4.333, kernel=rope,
            shapes=[((128, 32768), F32), ((64, 32768), F32), ((64, 32768), F32)], repeats=8,
            busy_ms={"scalar": 0.6115, "vector": 3.1043}, hbm_bytes=402.6e6,
        ),
        Variant(
            name="bmm", published_ms=4.6109, kernel=bmm, shapes=[((1, 4096, 64), F32), ((1, 64, 4096), F32)],
            repeats=16, busy_ms={"scalar": 1.7179}, hbm_bytes=1153.7e6,
        ),
        Variant(
            name="matmul", published_ms=35.1997, kernel=matmul, shapes=[((1024, 5120), F32), ((5120, 1024), F32)],
            repeats=48, busy_ms={"scalar": 2.3946}, hbm_bytes=9261.1e6,
        ),
        Variant(
            name="rmsnorm_matmul", published_ms=1.0558, kernel=rmsnorm_matmul,
            shapes=[((4096, 1024), F32), ((1024, 2048), F32)],
            busy_ms={"scalar": 0.1874, "vector": 0.0409}, hbm_bytes=73.0e6,
        ),
        Variant(
            name="add_rmsnorm_matmul", published_ms=1.2219, kernel=add_rmsnorm_matmul,
            shapes=[((4096, 1024), F32), ((1024, 2048), F32), ((4096, 1024), F32), ((1, 1024), F32)],
            busy_ms={"scalar": 0.2755, "vector": 0.1814}, hbm_bytes=75.6e6,
        ),
        Variant(
            name="matmul_add_rmsnorm", published_ms=2.6666, kernel=matmul_add_rmsnorm, repeats=2,
            shapes=[((2048, 2048), F32), ((2048, 2048), F32), ((2048, 2048), F32), ((1, 2048), F32)],
            busy_ms={"scalar": 0.4476, "vector": 0.3312}, hbm_bytes=131.7e6,
        ),
        Variant(
            name="transpose_matmul", published_ms=9.6103, kernel=transpose_matmul, repeats=4 * 10944 / 2048,
            shapes=[((2048, 1024), F32), ((2048, 2048), F32)], busy_ms={"scalar": 0.3647}, hbm_bytes=571.5e6,
        ),
    ],
)  # fmt: skip
