"""Properties of access patterns: every element where the strides say, and writes only where each has its own."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from property_tiles import partition_counts, properties

from neuron_port.simulator import UnsupportedError, run_kernel
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl


@st.composite
def patterns(draw: Any) -> Any:
    """(partitions, elements per partition, [[stride, count], ...], element where it begins)."""
    free = draw(st.lists(st.tuples(st.integers(0, 7), st.integers(1, 4)), min_size=1, max_size=4))
    begin = draw(st.integers(0, 5))
    reach = begin + sum(stride * (count - 1) for stride, count in free)
    return draw(partition_counts), reach + 1 + draw(st.integers(0, 3)), [list(entry) for entry in free], begin


def positions(free: list[list[int]], begin: int) -> list[int]:
    """The element that each index of the pattern addresses, in row-major order."""
    indices = itertools.product(*[range(count) for _, count in free])
    return [begin + sum(stride * i for (stride, _), i in zip(free, index)) for index in indices]


@given(patterns())
@properties
def test_a_pattern_reads_what_its_strides_address(case: Any) -> None:
    """Any strides, repeating ones included, on chip and in HBM."""
    partitions, width, free, begin = case
    data = np.arange(partitions * width, dtype=np.float32).reshape(partitions, width)
    pattern = [[width, partitions], *free]
    shape = (partitions, *[count for _, count in free])

    def kernel(source: Any) -> Any:
        tile = nl.ndarray((partitions, width), nl.float32, nl.sbuf)
        nisa.dma_copy(tile, source)
        out = nl.ndarray((2, *shape), nl.float32, nl.shared_hbm)
        nisa.dma_copy(out[0], tile.ap(pattern=pattern, offset=begin))
        nisa.dma_copy(out[1], source.ap(pattern=pattern, offset=begin))
        return out

    expected = data[:, positions(free, begin)].reshape(shape)
    on_chip, in_hbm = run_kernel(kernel, data).outputs[0]
    np.testing.assert_array_equal(on_chip, expected)
    np.testing.assert_array_equal(in_hbm, expected)


@given(patterns(), st.sampled_from(["memset", "dma_copy", "psum"]))
@properties
def test_a_pattern_is_written_unless_its_elements_repeat(case: Any, how: str) -> None:
    """Distinct elements become what is written and the rest stays; steps of 0 keep the last, others may not repeat."""
    partitions, width, free, begin = case
    pattern = [[width, partitions], *free]
    shape = (partitions, *[count for _, count in free])
    values = np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape) + 1

    def kernel(source: Any) -> Any:
        tile = nl.ndarray((partitions, width), nl.float32, nl.psum if how == "psum" else nl.sbuf)
        nisa.memset(tile, -1.0)
        view = tile.ap(pattern=pattern, offset=begin)
        staged = nl.ndarray(shape, nl.float32, nl.sbuf)
        nisa.dma_copy(staged, source)
        if how == "memset":
            nisa.memset(view, 9.0)
        elif how == "dma_copy":
            nisa.dma_copy(view, source)
        else:
            nisa.tensor_copy(view, staged)
        whole = nl.ndarray((partitions, width), nl.float32, nl.sbuf)
        nisa.tensor_copy(whole, tile)
        out = nl.ndarray((partitions, width), nl.float32, nl.shared_hbm)
        nisa.dma_copy(out, whole)
        return out

    addressed = positions(free, begin)
    moving = positions([[stride, count] for stride, count in free if stride], begin)
    if len(set(moving)) < len(moving):
        with pytest.raises(UnsupportedError, match="elements repeat"):
            run_kernel(kernel, values)
        return
    expected = np.full((partitions, width), -1.0)
    for index, element in enumerate(addressed):
        expected[:, element] = 9.0 if how == "memset" else values.reshape(partitions, -1)[:, index]
    np.testing.assert_array_equal(run_kernel(kernel, values).outputs[0], expected)
