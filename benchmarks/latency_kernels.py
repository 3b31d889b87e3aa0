"""Kernels of our own with published latencies: the optimisation steps of matmul, Mamba and layer norm tutorials.

They follow the published loop structure, tile sizes and buffers (Neuron documentation, kernel-optimization.rst and,
for Trn1, the tutorials of release 2.26), written in NKI 0.6. Where the old language left a step to the compiler, the
step is explicit here and said so.
"""

# K, M, N = contraction, rows, columns; C = channels, S = sequence length; T = rows, H = columns.

from __future__ import annotations

from typing import Any

from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl

P = 128
BANK = 512


def _load(source: Any, shape: tuple[int, ...]) -> Any:
    tile = nl.ndarray(shape, source.dtype, nl.sbuf)
    nisa.dma_copy(tile, source)
    return tile


def _evict(psum: Any, dtype: Any) -> Any:
    tile = nl.ndarray(psum.shape, dtype, nl.sbuf)
    nisa.tensor_copy(tile, psum)
    return tile


# ---- matmul: out[M, N] = lhsT[K, M].T @ rhs[K, N] ------------------------------------------------------------------


def matmul_tiled(lhsT: Any, rhs: Any) -> Any:
    """Both tiles are loaded right before each matmul."""
    (K, M), N = lhsT.shape, rhs.shape[1]
    out = nl.ndarray((M, N), lhsT.dtype, nl.shared_hbm)
    for m in range(0, M, P):
        for n in range(0, N, BANK):
            acc = nl.ndarray((P, BANK), nl.float32, nl.psum)
            for k in range(0, K, P):
                left = _load(lhsT[k : k + P, m : m + P], (P, P))
                right = _load(rhs[k : k + P, n : n + BANK], (P, BANK))
                nisa.nc_matmul(acc, left, right)
            nisa.dma_copy(out[m : m + P, n : n + BANK], _evict(acc, lhsT.dtype))
    return out


def matmul_hoisted(lhsT: Any, rhs: Any, stationary_columns: int = P) -> Any:
    """Columns of tiles are loaded once per row and column; the Trn1 version holds lhsT in 512-wide buffers."""
    (K, M), N = lhsT.shape, rhs.shape[1]
    out = nl.ndarray((M, N), lhsT.dtype, nl.shared_hbm)
    for m in range(0, M, P):
        lefts = []
        for k in range(0, K, P):
            tile = nl.ndarray((P, stationary_columns), lhsT.dtype, nl.sbuf)
            nisa.dma_copy(tile[0:P, 0:P], lhsT[k : k + P, m : m + P])
            lefts.append(tile)
        for n in range(0, N, BANK):
            rights = [_load(rhs[k : k + P, n : n + BANK], (P, BANK)) for k in range(0, K, P)]
            acc = nl.ndarray((P, BANK), nl.float32, nl.psum)
            for left, right in zip(lefts, rights, strict=True):
                nisa.nc_matmul(acc, left[0:P, 0:P], right)
            nisa.dma_copy(out[m : m + P, n : n + BANK], _evict(acc, lhsT.dtype))
    return out


def matmul_hoisted_wide(lhsT: Any, rhs: Any) -> Any:
    """The Trn1 version of matmul_hoisted."""
    return matmul_hoisted(lhsT, rhs, BANK)


def matmul_blocked_free(lhsT: Any, rhs: Any) -> Any:
    """Blocks of 2 x 2 tiles over the free dimensions.

    The tutorial loads both columns of rhs before any matmul, which in float32 is more than SBUF holds (the compiler
    must have interleaved them); here each column is loaded before its own matmuls.
    """
    (K, M), N = lhsT.shape, rhs.shape[1]
    out = nl.ndarray((M, N), lhsT.dtype, nl.shared_hbm)
    for m in range(0, M, 2 * P):
        lefts = [[_load(lhsT[k : k + P, m + b : m + b + P], (P, P)) for k in range(0, K, P)] for b in (0, P)]
        for n in range(0, N, BANK):
            rights = [_load(rhs[k : k + P, n : n + BANK], (P, BANK)) for k in range(0, K, P)]
            for row, left_tiles in enumerate(lefts):
                acc = nl.ndarray((P, BANK), nl.float32, nl.psum)
                for left, right in zip(left_tiles, rights, strict=True):
                    nisa.nc_matmul(acc, left, right)
                at_m = m + row * P
                nisa.dma_copy(out[at_m : at_m + P, n : n + BANK], _evict(acc, lhsT.dtype))
    return out


def matmul_blocked(lhsT: Any, rhs: Any, tiles_m: int = 16, tiles_n: int = 2, tiles_k: int = 8) -> Any:
    """Blocks over all dimensions; partial sums of a block of columns stay in SBUF."""
    (K, M), N = lhsT.shape, rhs.shape[1]
    block_m, block_n, block_k = P * tiles_m, BANK * tiles_n, P * tiles_k
    out = nl.ndarray((M, N), lhsT.dtype, nl.shared_hbm)
    for n in range(0, N, block_n):
        sums = {}
        for m in range(0, M, P):
            for b in range(tiles_n):
                sums[m, b] = nl.ndarray((P, BANK), lhsT.dtype, nl.sbuf)
                nisa.memset(sums[m, b], 0.0)
        for k in range(0, K, block_k):
            rights = [
                _load(rhs[k + j : k + j + P, n : n + block_n], (P, block_n)) for j in range(0, block_k, P)
            ]
            for m in range(0, M, block_m):
                lefts = [
                    _load(lhsT[k + j : k + j + P, m : m + block_m], (P, block_m))
                    for j in range(0, block_k, P)
                ]
                for b in range(tiles_n):
                    for row in range(0, block_m, P):
                        acc = nl.ndarray((P, BANK), nl.float32, nl.psum)
                        for left, right in zip(lefts, rights, strict=True):
                            nisa.nc_matmul(
                                acc, left[0:P, row : row + P], right[0:P, b * BANK : (b + 1) * BANK]
                            )
                        total = sums[m + row, b]
                        nisa.tensor_tensor(total, total, acc, nl.add)
        for m in range(0, M, P):
            packed = nl.ndarray((P, block_n), lhsT.dtype, nl.sbuf)
            for b in range(tiles_n):
                nisa.tensor_copy(packed[0:P, b * BANK : (b + 1) * BANK], sums[m, b])
            nisa.dma_copy(out[m : m + P, n : n + block_n], packed)
    return out


# ---- Mamba: a scan over S for every state; delta, u, out [C, S], A [C, states], B and C [states, S] ------------------


def _spread(row: Any, ones: Any) -> Any:
    """A [1, S] row on all partitions: a matmul with ones into PSUM; beyond a bank ScalarE collects it in SBUF.

    The old kernels call broadcast_to, which the compiler carries out by such a matmul.
    """
    size = row.shape[1]
    if size <= BANK:
        psum = nl.ndarray((P, size), nl.float32, nl.psum)
        nisa.nc_matmul(psum, ones, row, is_stationary_onezero=True)
        return psum
    wide = nl.ndarray((P, size), nl.float32, nl.sbuf)
    for start in range(0, size, BANK):
        psum = nl.ndarray((P, BANK), nl.float32, nl.psum)
        nisa.nc_matmul(psum, ones, row[0:1, start : start + BANK], is_stationary_onezero=True)
        nisa.activation(wide[0:P, start : start + BANK], nl.copy, psum)
    return wide


def _product(delta: Any, u: Any) -> Any:
    scaled = nl.ndarray((P, delta.shape[1]), nl.float32, nl.sbuf)
    nisa.tensor_tensor(scaled, delta, u, nl.multiply)
    return scaled


def _state(
    delta: Any, scaled: Any, A_column: Any, B_row: Any, C_row: Any, ones: Any, total: Any, initial: Any
) -> Any:
    """One state of one channel tile; adds to `total` and returns the scan."""
    size = delta.shape[1]
    decay, driven, scan, seen = (nl.ndarray((P, size), nl.float32, nl.sbuf) for _ in range(4))
    nisa.activation(decay, nl.exp, delta, scale=A_column)
    nisa.tensor_tensor(driven, scaled, _spread(B_row, ones), nl.multiply)
    nisa.tensor_tensor_scan(scan, decay, driven, initial, nl.multiply, nl.add)
    nisa.tensor_tensor(seen, scan, _spread(C_row, ones), nl.multiply)
    nisa.tensor_tensor(total, total, seen, nl.add)
    return scan


def _zeros(shape: tuple[int, int]) -> Any:
    tile = nl.ndarray(shape, nl.float32, nl.sbuf)
    nisa.memset(tile, 0.0)
    return tile


def _ones() -> Any:
    tile = nl.ndarray((1, P), nl.float32, nl.sbuf)
    nisa.memset(tile, 1.0)
    return tile


def mamba_v1(delta: Any, u: Any, A: Any, B: Any, C: Any) -> Any:
    """States outside, channel tiles inside: delta and u are loaded again for every state."""
    channels, size = delta.shape
    out = nl.ndarray((channels, size), nl.float32, nl.shared_hbm)
    ones = _ones()
    totals = [_zeros((P, size)) for _ in range(0, channels, P)]
    for state in range(A.shape[1]):
        for number, c in enumerate(range(0, channels, P)):
            delta_tile, u_tile = (_load(x[c : c + P, 0:size], (P, size)) for x in (delta, u))
            A_column = _load(A[c : c + P, state : state + 1], (P, 1))
            B_row, C_row = (_load(x[state : state + 1, 0:size], (1, size)) for x in (B, C))
            _state(
                delta_tile, _product(delta_tile, u_tile), A_column, B_row, C_row, ones, totals[number], 0.0
            )
    for number, c in enumerate(range(0, channels, P)):
        nisa.dma_copy(out[c : c + P, 0:size], totals[number])
    return out


def mamba_v2(delta: Any, u: Any, A: Any, B: Any, C: Any, invariant_outside: bool = False) -> Any:
    """Channel tiles outside: delta and u are loaded once.

    The published code multiplies them again for every state. The published 1.61 ms for 4096 channels leave room for
    four VectorE instructions per state, not five, so the compiler must have moved the product out of the loop:
    invariant_outside does so.
    """
    channels, size = delta.shape
    out = nl.ndarray((channels, size), nl.float32, nl.shared_hbm)
    ones = _ones()
    for c in range(0, channels, P):
        total = _zeros((P, size))
        delta_tile, u_tile = (_load(x[c : c + P, 0:size], (P, size)) for x in (delta, u))
        scaled = _product(delta_tile, u_tile) if invariant_outside else None
        for state in range(A.shape[1]):
            A_column = _load(A[c : c + P, state : state + 1], (P, 1))
            B_row, C_row = (_load(x[state : state + 1, 0:size], (1, size)) for x in (B, C))
            product = scaled if scaled is not None else _product(delta_tile, u_tile)
            _state(delta_tile, product, A_column, B_row, C_row, ones, total, 0.0)
        nisa.dma_copy(out[c : c + P, 0:size], total)
    return out


def mamba_v3(delta: Any, u: Any, A: Any, B: Any, C: Any, invariant_outside: bool = False) -> Any:
    """As v2, with the sequence in tiles of 512 that hand the scan's last column on."""
    channels, size = delta.shape
    out = nl.ndarray((channels, size), nl.float32, nl.shared_hbm)
    ones = _ones()
    for c in range(0, channels, P):
        total = _zeros((P, size))
        delta_tile, u_tile = (_load(x[c : c + P, 0:size], (P, size)) for x in (delta, u))
        scaled = _product(delta_tile, u_tile) if invariant_outside else None
        for state in range(A.shape[1]):
            column = _load(A[c : c + P, state : state + 1], (P, 1))
            last = _zeros((P, 1))
            for s in range(0, size, BANK):
                delta_part, u_part = (tile[0:P, s : s + BANK] for tile in (delta_tile, u_tile))
                product = scaled[0:P, s : s + BANK] if scaled is not None else _product(delta_part, u_part)
                B_row, C_row = (_load(x[state : state + 1, s : s + BANK], (1, BANK)) for x in (B, C))
                scan = _state(delta_part, product, column, B_row, C_row, ones, total[0:P, s : s + BANK], last)
                nisa.tensor_copy(last, scan[0:P, BANK - 1 : BANK])
        nisa.dma_copy(out[c : c + P, 0:size], total)
    return out


# ---- layer norm over H of x [T, H], float32 ---------------------------------------------------------------------------


def _parameters(gamma: Any, beta: Any) -> tuple[Any, Any]:
    """gamma and beta on all partitions, through PSUM in pieces."""
    ones = _ones()
    columns = gamma.shape[1]
    return tuple(_spread(_load(vector[0:1, 0:columns], (1, columns)), ones) for vector in (gamma, beta))  # type: ignore[return-value]


def layernorm_v1(x: Any, gamma: Any, beta: Any) -> Any:
    """Mean and mean of squares by reductions, then shift and scale in two instructions."""
    rows, columns = x.shape
    out = nl.ndarray((rows, columns), nl.float32, nl.shared_hbm)
    gamma_all, beta_all = _parameters(gamma, beta)
    for t in range(0, rows, P):
        tile = _load(x[t : t + P, 0:columns], (P, columns))
        work = nl.ndarray((P, columns), nl.float32, nl.sbuf)
        mean, power, deviation = (nl.ndarray((P, 1), nl.float32, nl.sbuf) for _ in range(3))
        nisa.tensor_reduce(mean, nl.add, tile, axis=1)
        nisa.tensor_scalar(mean, mean, nl.multiply, 1.0 / columns)
        nisa.activation(work, nl.square, tile)
        nisa.tensor_reduce(power, nl.add, work, axis=1)
        nisa.tensor_scalar(power, power, nl.multiply, 1.0 / columns)
        nisa.tensor_tensor(deviation, mean, mean, nl.multiply)
        nisa.tensor_tensor(power, power, deviation, nl.subtract)
        nisa.tensor_scalar(power, power, nl.add, 1e-5)
        nisa.activation(deviation, nl.rsqrt, power)
        centred, normal, weighted, result = (nl.ndarray((P, columns), nl.float32, nl.sbuf) for _ in range(4))
        nisa.tensor_scalar(centred, tile, nl.subtract, mean)
        nisa.tensor_scalar(normal, centred, nl.multiply, deviation)
        nisa.tensor_tensor(weighted, normal, gamma_all, nl.multiply)
        nisa.tensor_tensor(result, weighted, beta_all, nl.add)
        nisa.dma_copy(out[t : t + P, 0:columns], result)
    return out


def layernorm_v2(x: Any, gamma: Any, beta: Any) -> Any:
    """bn_stats and bn_aggr, then shift and scale in one instruction."""
    rows, columns = x.shape
    out = nl.ndarray((rows, columns), nl.float32, nl.shared_hbm)
    gamma_all, beta_all = _parameters(gamma, beta)
    pieces = columns // BANK
    for t in range(0, rows, P):
        tile = _load(x[t : t + P, 0:columns], (P, columns))
        stats = nl.ndarray((P, 6 * pieces), nl.float32, nl.sbuf)
        moments = nl.ndarray((P, 2), nl.float32, nl.sbuf)
        deviation = nl.ndarray((P, 1), nl.float32, nl.sbuf)
        for j in range(pieces):
            nisa.bn_stats(stats[0:P, 6 * j : 6 * j + 6], tile[0:P, j * BANK : (j + 1) * BANK])
        nisa.bn_aggr(moments, stats)
        nisa.tensor_scalar(deviation, moments[0:P, 1:2], nl.add, 1e-5)
        nisa.activation(deviation, nl.rsqrt, deviation)
        normal, weighted, result = (nl.ndarray((P, columns), nl.float32, nl.sbuf) for _ in range(3))
        mean = moments[0:P, 0:1]
        nisa.tensor_scalar(normal, tile, nl.subtract, mean, op1=nl.multiply, operand1=deviation)
        nisa.tensor_tensor(weighted, normal, gamma_all, nl.multiply)
        nisa.tensor_tensor(result, weighted, beta_all, nl.add)
        nisa.dma_copy(out[t : t + P, 0:columns], result)
    return out


# ---- matmul with groups of tiles that share their loads, all of K in PSUM (published by autocomp, Trn1) ---------------


def matmul_grouped(lhsT: Any, rhs: Any, rows: int, columns: int, merged: bool) -> Any:
    """rows x columns tiles accumulate side by side; merged: one load for all rows and one for all columns."""
    (K, M), N = lhsT.shape, rhs.shape[1]
    out = nl.ndarray((M, N), lhsT.dtype, nl.shared_hbm)
    for m in range(0, M, rows * P):
        for n in range(0, N, columns * BANK):
            accs = [[nl.ndarray((P, BANK), nl.float32, nl.psum) for _ in range(columns)] for _ in range(rows)]
            for k in range(0, K, P):
                rights = _pieces(rhs[k : k + P, n : n + columns * BANK], columns, merged)
                lefts = _pieces(lhsT[k : k + P, m : m + rows * P], rows, merged)
                for row in range(rows):
                    for column in range(columns):
                        nisa.nc_matmul(accs[row][column], lefts[row], rights[column])
            for row in range(rows):
                for column in range(columns):
                    at_m, at_n = m + row * P, n + column * BANK
                    nisa.dma_copy(
                        out[at_m : at_m + P, at_n : at_n + BANK], _evict(accs[row][column], lhsT.dtype)
                    )
    return out


def _pieces(source: Any, count: int, merged: bool) -> list[Any]:
    """The columns of `source` as `count` tiles, from one load or from one each."""
    width = source.shape[1] // count
    if merged:
        tile = _load(source, (P, width * count))
        return [tile[0:P, i * width : (i + 1) * width] for i in range(count)]
    return [_load(source[0:P, i * width : (i + 1) * width], (P, width)) for i in range(count)]
