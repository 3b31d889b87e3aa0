"""Attention of one head as in Stable Diffusion: q, k, v, out [4096, 64] float32, products in bfloat16.

q and k are transposed when they are loaded: by TensorE, since NeuronCore-v2 has no DMA transpose.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl
from published_variants import Family, Variant
from published_variants.tiles import P, copy, hbm, load, psum, sbuf, scalar_copy, transpose, zeros


def attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    fused_sums: bool,
    narrow_scores: bool = False,
    recast: bool = True,
    upright: bool = False,
) -> Any:
    """All scores of a query tile in SBUF, then softmax, transposes and products.

    fused_sums: ScalarE sums. narrow_scores: scores are bfloat16 in SBUF. recast: exponents are float32 first, then
    copied. upright: the result has queries on partitions; otherwise it is stored element by element, transposed.
    """
    size, depth = q.shape
    out, narrow = hbm(size, depth), nl.bfloat16
    tiles = range(0, size, P)
    values = [load(v[at : at + P, 0:depth], narrow) for at in tiles]
    queries = []
    for at in tiles:
        turned = scalar_copy(transpose(load(q[at : at + P, 0:depth], narrow)))
        scaled = sbuf(depth, P, dtype=narrow)
        nisa.tensor_scalar(scaled, turned, nl.multiply, 0.125)
        queries.append(scaled)
    keys = [scalar_copy(transpose(load(k[at : at + P, 0:depth], narrow))) for at in tiles]
    for at, query in zip(tiles, queries, strict=True):
        scores = sbuf(P, size, dtype=narrow if narrow_scores else nl.float32)
        maxima, lowest = sbuf(P, len(tiles)), sbuf(P, 1)
        for i, key in enumerate(keys):
            tile, here = psum(P, P), scores[0:P, i * P : (i + 1) * P]
            nisa.nc_matmul(tile, query, key)
            if recast and not narrow_scores and not upright and not fused_sums:
                nisa.activation(here, nl.copy, tile)
            else:
                nisa.tensor_copy(here, tile)
            nisa.tensor_reduce(maxima[0:P, i : i + 1], nl.maximum, here, axis=1, negate=True)
        nisa.tensor_reduce(lowest, nl.minimum, maxima, axis=1)
        weights, inverse = _softmax(scores, lowest, fused_sums, recast)
        turned = [scalar_copy(transpose(weights[0:P, i * P : (i + 1) * P])) for i in range(len(tiles))]
        if upright:
            acc, result = psum(P, depth), sbuf(P, depth)
            for weight, value in zip(turned, values, strict=True):
                nisa.nc_matmul(acc, weight, value)
            nisa.tensor_scalar(result, acc, nl.multiply, inverse)
            nisa.dma_copy(out[at : at + P, 0:depth], result)
        else:
            acc, result = psum(depth, P), sbuf(depth, P)
            for weight, value in zip(turned, values, strict=True):
                nisa.nc_matmul(acc, value, weight)
            divisor = sbuf(P, depth)
            nisa.tensor_scalar(divisor, zeros(P, depth), nl.add, inverse)
            nisa.tensor_tensor(result, scalar_copy(acc), transpose(divisor), nl.multiply)
            nisa.dma_copy(out[at : at + P, 0:depth].permute((1, 0)), result)
    return out


def _softmax(scores: Any, lowest: Any, fused_sums: bool, recast: bool) -> tuple[Any, Any]:
    wide = nl.float32 if recast else nl.bfloat16
    exponents, total, inverse = sbuf(*scores.shape, dtype=wide), zeros(P, 1), sbuf(P, 1)
    if fused_sums:
        nisa.activation_reduce(exponents, nl.exp, scores, bias=lowest, reduce_op=nl.add, reduce_res=total)
    else:
        nisa.activation(exponents, nl.exp, scores, bias=lowest)
        nisa.tensor_reduce(total, nl.add, exponents, axis=1)
    nisa.reciprocal(inverse, total)
    if recast:
        exponents = copy(exponents, nl.bfloat16) if fused_sums else scalar_copy(exponents, nl.bfloat16)
    return exponents, inverse


SHAPES = [((4096, 64), np.float32)] * 3


def _variant(name: str, published_ms: float, **parameters: Any) -> Variant:
    return Variant(
        name=name, published_ms=published_ms, kernel=partial(attention, **parameters), shapes=SHAPES
    )


FAMILY = Family(
    name="attention of Stable Diffusion",
    target="trn1",
    source="ucb-bar/autocomp examples/trn-tutorial/5_sd_attention_trace.py",
    variants=[
        _variant("sums by VectorE", 0.558, fused_sums=False),
        _variant("fused sums", 0.437, fused_sums=True, recast=False),
        _variant("fused sums, float32 exponents", 0.424, fused_sums=True, recast=True),
        _variant("scores in bfloat16", 0.399, fused_sums=True, recast=False, narrow_scores=True),
        _variant(
            "queries on partitions", 0.385, fused_sums=True, recast=False, narrow_scores=True, upright=True
        ),
    ],
)
