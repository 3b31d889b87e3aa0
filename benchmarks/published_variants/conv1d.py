"""Depthwise convolution of images [8, 512, 2048] with windows of 3, float32: products of 3 columns and their sums.

What the shortest VectorE instructions cost. Images and channel tiles are 32 row tiles; fewer are run where they only
repeat. How many instructions the compiler makes of the source's loop over single columns is in the profile on
charleshong3.github.io/blog/autocomp_trainium_conv1d.html: 65,536 products and 16,384 reductions, in the end 512 of each.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl
from published_variants import Family, Variant
from published_variants.tiles import P, hbm, load, psum, sbuf, zeros

SUMMED = 4  # columns that one reduction sums


def single_columns(image: Any, window: Any, *, taps_in_psum: bool) -> Any:
    """One product [P, 3] for each output column, one reduction for every four."""
    rows, size = image.shape
    out, taps = hbm(rows, size), load(window)
    if taps_in_psum:
        taps = psum(P, 3)
        nisa.tensor_copy(taps, load(window), engine=nisa.engine.vector)
    for r in range(0, rows, P):
        padded, result = zeros(P, size + 2), sbuf(P, size)
        nisa.dma_copy(padded[0:P, 1 : size + 1], image[r : r + P, 0:size])
        for first in range(0, size, SUMMED):
            product = sbuf(P, SUMMED, 3)
            for i in range(SUMMED):
                at = first + i
                nisa.tensor_tensor(product[0:P, i, 0:3], padded[0:P, at : at + 3], taps, nl.multiply)
            nisa.tensor_reduce(result[0:P, first : first + SUMMED], nl.add, product, axis=2)
        nisa.dma_copy(out[r : r + P, 0:size], result)
    return out


def blocks(image: Any, window: Any, *, block: int) -> Any:
    """`block` output columns in one product [P, block, 3] and one reduction; the window is in PSUM."""
    rows, size = image.shape
    out, taps = hbm(rows, size), psum(P, 1, 3)
    nisa.tensor_copy(taps.reshape((P, 3)), load(window), engine=nisa.engine.vector)
    for r in range(0, rows, P):
        padded, result = zeros(P, size + 2), sbuf(P, size)
        nisa.dma_copy(padded[0:P, 1 : size + 1], image[r : r + P, 0:size])
        for i in range(0, size, block):
            product = sbuf(P, block, 3)
            sliding = padded.ap([[size + 2, P], [1, block], [1, 3]], offset=i)
            nisa.tensor_tensor(product, sliding, taps.broadcast(1, block), nl.multiply)
            nisa.tensor_reduce(result[0:P, i : i + block], nl.add, product, axis=2)
        nisa.dma_copy(out[r : r + P, 0:size], result)
    return out


def _variant(name: str, published_ms: float, tiles: int, kernel: Any, **parameters: Any) -> Variant:
    return Variant(
        name=name,
        published_ms=published_ms,
        kernel=partial(kernel, **parameters),
        shapes=[((tiles * P, 2048), np.float32), ((P, 3), np.float32)],
        repeats=32 / tiles,
    )


FAMILY = Family(
    name="conv1d",
    target="trn1",
    source="ucb-bar/autocomp examples/trn-advanced/4_conv1d_trace.py",
    variants=[
        _variant("column by column", 8.007, 4, single_columns, taps_in_psum=False),
        _variant("window in PSUM", 4.955, 4, single_columns, taps_in_psum=True),
        _variant("128 columns at once", 0.461, 32, blocks, block=128),
    ],
)
