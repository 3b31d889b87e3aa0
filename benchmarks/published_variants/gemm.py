"""Matrix product lhsT[K, M].T @ rhs[K, N], bfloat16, K = N = 8192, M = 4096: groups of tiles that share loads.

All of K accumulates in PSUM. The problem that is run has a quarter of M and of N: groups repeat the same work.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import ml_dtypes

from neuron_port.simulator.nki import isa as nisa
from published_variants import Family, Variant
from published_variants.tiles import BANK, P, copy, hbm, load, psum, scalar_copy, vector_copy


def product(
    lhsT: Any,
    rhs: Any,
    *,
    rows: int,
    columns: int,
    rows_per_load: int = 1,
    columns_per_load: int = 1,
    evict: Callable[..., Any] = copy,
) -> Any:
    """rows x columns tiles accumulate side by side; loads bring several tiles of rows or of columns at once."""
    (K, M), N = lhsT.shape, rhs.shape[1]
    out = hbm(M, N, dtype=lhsT.dtype)
    for m in range(0, M, rows * P):
        for n in range(0, N, columns * BANK):
            accs = [[psum(P, BANK) for _ in range(columns)] for _ in range(rows)]
            for k in range(0, K, P):
                rights = _split(rhs[k : k + P, n : n + columns * BANK], columns_per_load, BANK)
                lefts = _split(lhsT[k : k + P, m : m + rows * P], rows_per_load, P)
                for left, row in zip(lefts, accs, strict=True):
                    for right, acc in zip(rights, row, strict=True):
                        nisa.nc_matmul(acc, left, right)
            for i, row in enumerate(accs):
                for j, acc in enumerate(row):
                    at_m, at_n = m + i * P, n + j * BANK
                    nisa.dma_copy(out[at_m : at_m + P, at_n : at_n + BANK], evict(acc, lhsT.dtype))
    return out


def _split(source: Any, tiles_per_load: int, width: int) -> list[Any]:
    pieces = []
    step = tiles_per_load * width
    for start in range(0, source.shape[1], step):
        tile = load(source[0:P, start : start + step])
        pieces += [tile[0:P, i : i + width] for i in range(0, step, width)]
    return pieces


SHAPES = [((8192, 1024), ml_dtypes.bfloat16), ((8192, 2048), ml_dtypes.bfloat16)]


def _variant(name: str, published_ms: float, **parameters: Any) -> Variant:
    kernel = partial(product, **parameters)
    return Variant(name=name, published_ms=published_ms, kernel=kernel, shapes=SHAPES, repeats=16)


FAMILY = Family(
    name="gemm bf16",
    target="trn1",
    source="ucb-bar/autocomp examples/trn-tutorial/1_gemm_trace.py",
    variants=[
        _variant("1x1", 20.99, rows=1, columns=1, evict=scalar_copy),
        _variant("1x2", 28.68, rows=1, columns=2),
        _variant("2x2", 11.8, rows=2, columns=2),
        _variant("4x2", 8.07, rows=4, columns=2),
        _variant("4x2, lhs loads by 2", 7.62, rows=4, columns=2, rows_per_load=2),
        _variant(
            "4x2, one load each",
            6.96,
            rows=4,
            columns=2,
            rows_per_load=4,
            columns_per_load=2,
            evict=vector_copy,
        ),
    ],
)
