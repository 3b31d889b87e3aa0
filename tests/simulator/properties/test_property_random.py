"""Properties of random numbers: reproducible, distributed as documented, with a state that can be kept."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from property_reference import ALL_INTEGERS, NUMPY, as_bits
from property_tiles import (
    Tile,
    covers,
    few_properties,
    make_values,
    plain,
    results,
    run_instruction,
    seeds,
    shapes,
    tiles,
)

from neuron_port.simulator import run_kernel
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl

SHAPE = (128, 64)


def draw_bits(seed: int, dtype: str, engine: str) -> np.ndarray:
    """[2, 128, 64] bits from two instructions after seeding VectorE, or GpSimdE's lanes."""
    state = np.random.default_rng(seed).integers(1, 2**32, (128, 6), dtype=np.uint32)

    def kernel(words: Any) -> Any:
        seeded = nl.ndarray(words.shape, nl.uint32, nl.sbuf)
        nisa.dma_copy(seeded, words)
        if engine == "vector":
            nisa.set_rng_seed(seeded[0:1, 0:1])
        else:
            nisa.rand_set_state(seeded)
        out = nl.ndarray((2, *SHAPE), getattr(nl, dtype), nl.shared_hbm)
        for i in range(2):
            tile = nl.ndarray(SHAPE, getattr(nl, dtype), nl.sbuf)
            nisa.rng(tile, engine=nisa.engine[engine])
            nisa.dma_copy(out[i], tile)
        return out

    return run_kernel(kernel, state).outputs[0]


@covers("rng", "set_rng_seed", "rand_set_state")
@given(seeds, st.sampled_from(list(ALL_INTEGERS)), st.sampled_from(["vector", "gpsimd"]))
@few_properties
def test_rng_fills_with_even_bits_that_the_seed_decides(seed: int, dtype: str, engine: str) -> None:
    """The same seed gives the same bits, another seed others; each bit is set half of the time."""
    drawn = draw_bits(seed, dtype, engine)
    np.testing.assert_array_equal(drawn, draw_bits(seed, dtype, engine))
    assert (drawn != draw_bits(seed + 1, dtype, engine)).mean() > 0.9
    assert (drawn[0] != drawn[1]).mean() > 0.9
    bits = as_bits(drawn.astype(np.float64), dtype)
    for position in range(8 * NUMPY[dtype].itemsize):
        assert abs(((bits >> position) & 1).mean() - 0.5) < 0.03  # 16,384 draws: 0.03 is 7.7 deviations


@covers("rand_get_state", "rand_set_state")
@given(seeds)
@few_properties
def test_a_restored_state_repeats_the_numbers(seed: int) -> None:
    """rand_get_state gives six words for each lane, and setting them again repeats what follows."""
    state = np.random.default_rng(seed).integers(1, 2**32, (128, 6), dtype=np.uint32)

    def kernel(words: Any) -> Any:
        kept = nl.ndarray((128, 6), nl.uint32, nl.sbuf)
        nisa.dma_copy(kept, words)
        nisa.rand_set_state(kept)
        out = nl.ndarray((2, *SHAPE), nl.uint32, nl.shared_hbm)
        tile = nl.ndarray(SHAPE, nl.uint32, nl.sbuf)
        nisa.rng(tile, engine=nisa.engine.gpsimd)
        nisa.rand_get_state(kept)
        for i in range(2):
            nisa.rand_set_state(kept)
            nisa.rng(tile, engine=nisa.engine.gpsimd)
            nisa.dma_copy(out[i], tile)
        return out

    first, second = run_kernel(kernel, state).outputs[0]
    np.testing.assert_array_equal(first, second)


@covers("dropout")
@given(st.data(), shapes())
@few_properties
def test_dropout_keeps_or_zeroes(data: Any, shape: tuple[int, ...]) -> None:
    """Every element is its own value or zero; probability 0 keeps all and 1 none."""
    source = data.draw(tiles(shape))
    dst = data.draw(results(shape, source.dtype))
    prob = data.draw(st.sampled_from([0.0, 0.3, 1.0]))
    (whole,) = run_instruction(lambda d, x: nisa.dropout(d, x, prob), [dst], [source])
    got = dst.layout.mirror(whole)
    kept = got == source.logical
    assert (kept | (got == 0)).all()
    assert prob > 0 or kept.all()
    assert prob < 1 or (got == 0).all()


@covers("dropout")
@given(seeds, st.booleans())
@few_properties
def test_dropout_drops_with_the_given_probability(seed: int, by_partition: bool) -> None:
    """The share of zeros in each partition is its probability, a number's or a column's."""
    column = np.linspace(0.05, 0.95, 128)[:, None]
    probability = Tile("float32", plain((128, 1)), column) if by_partition else 0.4
    values = np.abs(make_values((128, 400), "float32", seed, "normal")) + 1
    source, dst = Tile("float32", plain((128, 400)), values), Tile("float32", plain((128, 400)))
    (whole,) = run_instruction(nisa.dropout, [dst], [source, probability])
    expected = column[:, 0] if by_partition else np.full(128, 0.4)
    assert np.abs((whole == 0).mean(axis=1) - expected).max() < 0.13  # 400 draws: over 5 deviations
    assert abs((whole == 0).mean() - expected.mean()) < 0.012  # 51,200 draws: over 5 deviations
