"""Depthwise convolution of images [8, 512, 2048] with windows of 3, float32: one output column at a time.

Each output is a product of 3 columns and a reduction, 65,536 of each: what the shortest VectorE instructions cost.
The problem that is run has 1 of 8 images and 1 of 4 channel tiles. The published source has 8 output columns... see each.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from benchmarks.published_variants import Family, Variant
from benchmarks.published_variants.tiles import BANK, P, hbm, load, psum, sbuf, vector_copy, zeros
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl


def single_columns(image: Any, window: Any) -> Any:
    """product [P, 3] and its sum [P, 1] for each output column."""
    size = image.shape[1]
    out = hbm(P, size)
    padded = zeros(P, size + 2)
    nisa.dma_copy(padded[0:P, 1 : size + 1], image)
    taps, result = load(window), sbuf(P, size)
    for i in range(size):
        product = sbuf(P, 3)
        nisa.tensor_tensor(product, padded[0:P, i : i + 3], taps, nl.multiply)
        nisa.tensor_reduce(result[0:P, i : i + 1], nl.add, product, axis=1)
    nisa.dma_copy(out, result)
    return out


def blocks(image: Any, window: Any, *, block: int) -> Any:
    """The same with the inner loop carried out as one pair of instructions over [P, block, 3]; the window is in PSUM.

    Only so can 65,536 outputs take 0.461 ms: the compiler turns the constant inner loop into one access pattern.
    """
    size = image.shape[1]
    out = hbm(P, size)
    padded = zeros(P, size + 2)
    nisa.dma_copy(padded[0:P, 1 : size + 1], image)
    taps, result = psum(P, 1, 3), sbuf(P, size)
    nisa.tensor_copy(taps.reshape((P, 3)), load(window))
    for i in range(0, size, block):
        product = sbuf(P, block, 3)
        sliding = padded.ap([[size + 2, P], [1, block], [1, 3]], offset=i)
        nisa.tensor_tensor(product, sliding, taps.broadcast(1, block), nl.multiply)
        nisa.tensor_reduce(result[0:P, i : i + block], nl.add, product, axis=2)
    nisa.dma_copy(out, result)
    return out


SHAPES = [((P, 2048), np.float32), ((P, 3), np.float32)]

FAMILY = Family(
    name="conv1d",
    target="trn1",
    source="ucb-bar/autocomp examples/trn-advanced/4_conv1d_trace.py",
    variants=[
        Variant(name="column by column", published_ms=8.007, kernel=single_columns, shapes=SHAPES, repeats=32),
        Variant(
            name="64 columns at once", published_ms=0.461, kernel=partial(blocks, block=64), shapes=SHAPES, repeats=32
        ),
    ],
)
