"""Random tiles of `nki.language`: uniform numbers, dropout, and the seed.

The numbers are those of `instructions/random_numbers.py`: deterministic, not a device's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from neuron_port.simulator import dtypes
from neuron_port.simulator.dtypes import uint32
from neuron_port.simulator.instructions import random_numbers
from neuron_port.simulator.instructions.dma import dma_copy
from neuron_port.simulator.instructions.operators import multiply, operator_named
from neuron_port.simulator.instructions.vector_engine import tensor_copy, tensor_scalar
from neuron_port.simulator.memory import MemoryRegion
from neuron_port.simulator.nki.allocation import ndarray
from neuron_port.simulator.tensor import NkiTensor

SBUF = MemoryRegion.sbuf
UNUSED_BITS = 8  # float32 holds 24 of the 32 bits exactly


def random_seed(seed: NkiTensor) -> None:
    """Seed the generator that nl.rand and nl.dropout draw from; seed is a [1, 1] tile of 32 bits."""
    random_numbers.set_rng_seed(seed)


def rand(shape: Sequence[int], dtype: Any, buffer: MemoryRegion = SBUF, name: str = "") -> NkiTensor:
    """A new tensor of uniform numbers from 0 (included) to 1 (excluded before the last rounding to dtype).

    24 random bits each: nisa.rng, a shift and a multiplication by 2 ** -24.
    """
    result = ndarray(shape, dtype, buffer, name)
    on_chip = result.storage.on_chip
    words = ndarray(result.shape if on_chip or result.ndim > 1 else (1, *result.shape), uint32)
    random_numbers.rng(words)
    tensor_scalar(words, words, operator_named("right_shift"), UNUSED_BITS)
    tile = result if on_chip else ndarray(words.shape, result.dtype)
    tensor_scalar(tile, words, multiply, 2.0**-24)
    if not on_chip:
        dma_copy(result, tile)
    return result


def dropout(x: NkiTensor, rate: float | NkiTensor, dtype: Any = None) -> NkiTensor:
    """A new tile: x with elements replaced by 0 with probability `rate`, a number or a [P, 1] tile."""
    kept = ndarray(x.shape, x.dtype)
    random_numbers.dropout(kept, x, rate)
    if dtype is None or dtypes.resolve(dtype) is x.dtype:
        return kept
    result = ndarray(x.shape, dtype)
    tensor_copy(result, kept)
    return result
