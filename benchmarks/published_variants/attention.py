"""softmax(q.T @ k) @ v.T of one head: q, k, v [128, 4096] bfloat16, out [4096, 128].

Rows of the score matrix are 32 tiles of 128 queries, each of 8 PSUM banks of 512 keys. The published chain holds two
more kernels, left out here: one whose scores exceed PSUM 64 times over, so that the compiler's spilling decides (1.569
ms), and one whose source is another's without a dead branch (0.579 ms, the other 0.681 ms).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import ml_dtypes

from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl
from published_variants import Family, Variant
from published_variants.tiles import BANK, P, copy, hbm, load, psum, sbuf, scalar_copy, transpose, vector_copy


def _scores(q: Any, k: Any, at_q: int, at_k: int) -> Any:
    tile = psum(P, BANK)
    nisa.nc_matmul(tile, q[0:P, at_q : at_q + P], k[0:P, at_k : at_k + BANK])
    return tile


def _largest(scores: Any, into: Any) -> None:
    nisa.tensor_reduce(into, nl.maximum, scores, axis=1)


def _negative(x: Any) -> Any:
    result = sbuf(*x.shape)
    nisa.tensor_scalar(result, x, nl.multiply, -1.0)
    return result


def _scaled(x: Any, by: Any, dtype: Any) -> Any:
    result = sbuf(*x.shape, dtype=dtype)
    nisa.tensor_scalar(result, x, nl.multiply, by)
    return result


def through_hbm(q: Any, k: Any, v: Any, *, sum_by_scalar: bool) -> Any:
    """Every intermediate matrix (float32) goes through HBM."""
    size = q.shape[1]
    tiles = range(0, size, P)
    out = hbm(size, P, dtype=q.dtype)
    q, k, v = load(q), load(k), load(v)
    shifted, exponents, weights = (hbm(size, size) for _ in range(3))
    values, turned = hbm(size, P), hbm(size // P, size, P)
    for at_q in tiles:
        banks = [_scores(q, k, at_q, at_k) for at_k in range(0, size, BANK)]
        maxima, row_max, row = sbuf(P, len(banks)), sbuf(P, 1), sbuf(P, size)
        for i, bank in enumerate(banks):
            _largest(bank, maxima[0:P, i : i + 1])
        _largest(maxima, row_max)
        for i, bank in enumerate(banks):
            nisa.tensor_scalar(row[0:P, i * BANK : (i + 1) * BANK], bank, nl.subtract, row_max)
        nisa.dma_copy(shifted[at_q : at_q + P, 0:size], row)
    sums, inverse = sbuf(P, size // P), sbuf(P, size // P)
    for i, at_q in enumerate(tiles):
        row, result, total = load(shifted[at_q : at_q + P, 0:size]), sbuf(P, size), sums[0:P, i : i + 1]
        if sum_by_scalar:
            nisa.activation_reduce(result, nl.exp, row, reduce_op=nl.add, reduce_res=total)
        else:
            nisa.activation(result, nl.exp, row)
        nisa.dma_copy(exponents[at_q : at_q + P, 0:size], result)
    if not sum_by_scalar:
        for i, at_q in enumerate(tiles):
            nisa.tensor_reduce(sums[0:P, i : i + 1], nl.add, load(exponents[at_q : at_q + P, 0:size]), axis=1)
    nisa.reciprocal(inverse, sums)
    for i, at_q in enumerate(tiles):
        row = load(exponents[at_q : at_q + P, 0:size])
        nisa.dma_copy(weights[at_q : at_q + P, 0:size], _scaled(row, inverse[0:P, i : i + 1], nl.float32))
    for at_k in tiles:
        value = copy(transpose(v[0:P, at_k : at_k + P]), nl.float32)
        nisa.dma_copy(values[at_k : at_k + P, 0:P], value)
    for at_q in tiles:
        for i, at_k in enumerate(tiles):
            block = copy(transpose(load(weights[at_q : at_q + P, at_k : at_k + P])))
            nisa.dma_copy(turned[i, at_q : at_q + P, 0:P], block)
    for at_q in tiles:
        acc = psum(P, P)
        for i, at_k in enumerate(tiles):
            nisa.nc_matmul(acc, load(turned[i, at_q : at_q + P, 0:P]), load(values[at_k : at_k + P, 0:P]))
        nisa.dma_copy(out[at_q : at_q + P, 0:P], copy(acc, q.dtype))
    return out


def three_passes(q: Any, k: Any, v: Any, *, dtype: Any, sum_by_scalar: bool) -> Any:
    """The scores are computed three times, for maxima, sums and weights; values are transposed for every query tile."""
    size = q.shape[1]
    out = hbm(size, P, dtype=q.dtype)
    q, k, v = load(q), load(k), load(v)
    queries, keys = range(0, size, P), range(0, size, BANK)
    maxima, sums, inverse = (sbuf(P, len(queries)) for _ in range(3))
    nisa.memset(sums, 0.0)
    for i, at_q in enumerate(queries):
        best = maxima[0:P, i : i + 1]
        for at_k in keys:
            here = best if at_k == 0 else sbuf(P, 1)
            _largest(_scores(q, k, at_q, at_k), here)
            if at_k:
                nisa.tensor_tensor(best, best, here, nl.maximum)
    for i, at_q in enumerate(queries):
        bias, total = _negative(maxima[0:P, i : i + 1]), sums[0:P, i : i + 1]
        for at_k in keys:
            scores, result = _scores(q, k, at_q, at_k), sbuf(P, BANK, dtype=dtype)
            if sum_by_scalar:
                first, last = at_k == 0, at_k == keys[-1]
                nisa.activation(
                    result,
                    nl.exp,
                    scores,
                    bias=bias,
                    reduce_op=nl.add,
                    reduce_cmd=nisa.reduce_cmd.reset_reduce if first else nisa.reduce_cmd.reduce,
                    reduce_res=total if first or last else None,
                )
            else:
                nisa.activation(result, nl.exp, scores, bias=bias)
                part = sbuf(P, 1)
                nisa.tensor_reduce(part, nl.add, result, axis=1)
                nisa.tensor_tensor(total, total, part, nl.add)
    nisa.reciprocal(inverse, sums)
    for i, at_q in enumerate(queries):
        acc = psum(P, P)
        for at_k in keys:
            scores, result = _scores(q, k, at_q, at_k), sbuf(P, BANK, dtype=dtype)
            nisa.activation(result, nl.exp, scores, bias=_negative(maxima[0:P, i : i + 1]))
            weights = _scaled(result, inverse[0:P, i : i + 1], dtype)
            for start in range(0, BANK, P):
                weight = copy(transpose(weights[0:P, start : start + P]))
                value = copy(transpose(v[0:P, at_k + start : at_k + start + P]), dtype)
                nisa.nc_matmul(acc, weight, value)
        nisa.dma_copy(out[at_q : at_q + P, 0:P], copy(acc, q.dtype))
    return out


def one_pass(q: Any, k: Any, v: Any, *, scores: str) -> Any:
    """Values are transposed once, the division comes last.

    scores: kept in SBUF ("kept"), computed a second time ("again"), or shifted by the maxima of the first query tile
    without looking for others ("first maxima").
    """
    size = q.shape[1]
    out = hbm(size, P, dtype=q.dtype)
    queries, keys, narrow = range(0, size, P), range(0, size, BANK), nl.bfloat16
    q, k = load(q), load(k)
    values = [scalar_copy(transpose(load(v[0:P, at : at + P]))) for at in queries]

    def largest(at_q: int) -> tuple[Any, list[Any]]:
        maxima, best, kept = sbuf(P, len(keys)), sbuf(P, 1), []
        for i, at_k in enumerate(keys):
            tile = _scores(q, k, at_q, at_k)
            _largest(tile, maxima[0:P, i : i + 1])
            if scores == "kept":
                kept.append(vector_copy(tile, narrow))
        _largest(maxima, best)
        return best, kept

    best, kept = largest(0) if scores == "first maxima" else (None, [])
    for at_q in queries:
        if scores != "first maxima":
            best, kept = largest(at_q)
        sums, acc = sbuf(P, len(queries)), psum(P, P)
        nisa.memset(sums, 0.0)
        for i, at_k in enumerate(keys):
            tile = kept[i] if kept else _scores(q, k, at_q, at_k)
            for start in range(0, BANK, P):
                column = (at_k + start) // P
                result = sbuf(P, P, dtype=narrow)
                nisa.activation(result, nl.exp, tile[0:P, start : start + P], bias=_negative(best))
                nisa.tensor_reduce(sums[0:P, column : column + 1], nl.add, result, axis=1)
                nisa.nc_matmul(acc, scalar_copy(transpose(result)), values[column])
        total, inverse = sbuf(P, 1), sbuf(P, 1)
        nisa.tensor_reduce(total, nl.add, sums, axis=1)
        nisa.reciprocal(inverse, total)
        nisa.dma_copy(out[at_q : at_q + P, 0:P], _scaled(acc, inverse, nl.float32))
    return out


SHAPES = [((128, 4096), ml_dtypes.bfloat16)] * 3


def _variant(name: str, published_ms: float, kernel: Any, **parameters: Any) -> Variant:
    return Variant(name=name, published_ms=published_ms, kernel=partial(kernel, **parameters), shapes=SHAPES)


FAMILY = Family(
    name="attention",
    target="trn1",
    source="ucb-bar/autocomp examples/trn-tutorial/4_attention_trace.py",
    variants=[
        _variant("through HBM", 3.093, through_hbm, sum_by_scalar=False),
        _variant("through HBM, fused sums", 2.879, through_hbm, sum_by_scalar=True),
        _variant("three passes, float32", 1.016, three_passes, dtype=nl.float32, sum_by_scalar=False),
        _variant("three passes, bfloat16", 0.691, three_passes, dtype=nl.bfloat16, sum_by_scalar=False),
        _variant("three passes, fused sums", 0.682, three_passes, dtype=nl.bfloat16, sum_by_scalar=True),
        _variant("scores kept", 0.411, one_pass, scores="kept"),
        _variant("scores computed again", 0.409, one_pass, scores="again"),
        _variant("maxima of the first tile", 0.293, one_pass, scores="first maxima"),
    ],
)
