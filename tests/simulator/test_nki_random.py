"""Random numbers: one generator restated in plain Python, its states, and what the instructions refuse."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from neuron_port.simulator import ConstraintError, run_kernel
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl

MASK = 2**32 - 1


def xorwow(words, count):
    """`count` numbers of Marsaglia's XORWOW from a state of six words, and the state after them."""
    x, y, z, w, v, d = (int(word) for word in words)
    numbers = []
    for _ in range(count):
        t = x ^ (x >> 2)
        x, y, z, w = y, z, w, v
        v = (v ^ (v << 4) ^ t ^ (t << 1)) & MASK
        d = (d + 362437) & MASK
        numbers.append((d + v) & MASK)
    return numbers, [x, y, z, w, v, d]


def drawing(dtype, shape, engine=nisa.engine.gpsimd, target="trn2"):
    """Seed the lanes of an engine, draw a tile, and return it with the states after that."""

    def kernel(seeds):
        words = nl.load(seeds)
        nisa.rand_set_state(words, engine)
        tile = nl.ndarray(shape, dtype)
        nisa.rng(tile, engine)
        after = nl.ndarray(seeds.shape, nl.uint32)
        nisa.rand_get_state(after, engine)
        outs = [nl.ndarray(t.shape, t.dtype, nl.shared_hbm) for t in (tile, after)]
        nl.store(outs[0], tile)
        nl.store(outs[1], after)
        return tuple(outs)

    return lambda seeds: run_kernel(kernel, seeds, target=target).outputs


@pytest.mark.parametrize("dtype", [nl.uint32, nl.int32, nl.uint16, nl.int16, nl.uint8, nl.int8])
def test_every_lane_of_gpsimd_runs_xorwow(rng, dtype):
    """The numbers of a lane follow from its six words, cut to the low bits of the dtype."""
    seeds = rng.integers(0, 2**32, (5, 6), dtype=np.uint32)
    drawn, after = drawing(dtype, (5, 7))(seeds)
    for lane in range(5):
        numbers, state = xorwow(seeds[lane], 7)
        low = np.array(numbers, np.uint32).astype(f"u{dtype.itemsize}").view(dtype.native)
        np.testing.assert_array_equal(drawn[lane], low)
        np.testing.assert_array_equal(after[lane], np.array(state, np.uint32))


def test_vector_engine_of_gen4_takes_turns_between_four_streams(rng):
    """Element i of a lane is drawn from stream i % 4."""
    seeds = rng.integers(0, 2**32, (3, 24), dtype=np.uint32)
    drawn, _ = drawing(nl.uint32, (3, 10), nisa.engine.vector, "trn3")(seeds)
    for lane in range(3):
        for stream in range(4):
            numbers, _ = xorwow(seeds[lane, stream * 6 : stream * 6 + 6], 3)
            expected = np.array(numbers, np.uint32)[: len(drawn[lane, stream::4])]
            np.testing.assert_array_equal(drawn[lane, stream::4], expected)


def seeded(seeds, shape=(4, 64)):
    """A kernel that seeds VectorE before every draw of a tile."""

    def kernel(_):
        out = nl.ndarray((len(seeds), *shape), nl.uint32, nl.shared_hbm)
        for position, seed in enumerate(seeds):
            if seed is not None:
                nisa.set_rng_seed(nl.full((1, 1), seed, nl.uint32))
            tile = nl.ndarray(shape, nl.uint32)
            nisa.rng(tile)
            nl.store(out[position], tile)
        return out

    return run_kernel(kernel, np.zeros((1, 1), np.float32)).outputs[0]


def test_a_seed_repeats_its_numbers():
    """Equal seeds give equal numbers, other seeds other ones; without a seed the sequence goes on."""
    first, again, other, further = seeded([42, 42, 43, None])
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.99
    assert (other != further).mean() > 0.99
    np.testing.assert_array_equal(seeded([None])[0], seeded([0])[0])


def dropping(prob, dtype=nl.float32):
    def kernel(x, chance=None):
        tile = nl.load(x)
        kept = nl.ndarray(x.shape, dtype)
        nisa.dropout(kept, tile, prob if chance is None else nl.load(chance))
        out = nl.ndarray(x.shape, dtype, nl.shared_hbm)
        nl.store(out, kept)
        return out

    return kernel


def test_dropout_zeroes_the_given_fraction(rng):
    """0 keeps everything, 1 drops everything, a probability about that many; what is kept is not scaled."""
    x = rng.uniform(1, 2, (128, 512)).astype(np.float32)
    np.testing.assert_array_equal(run_kernel(dropping(0.0), x).outputs[0], x)
    assert not run_kernel(dropping(1.0), x).outputs[0].any()
    kept = run_kernel(dropping(0.25), x).outputs[0]
    assert abs((kept == 0).mean() - 0.25) < 0.01
    np.testing.assert_array_equal(kept[kept != 0], x[kept != 0])


def test_dropout_takes_a_probability_for_each_partition(rng):
    """A [P, 1] tile: every partition has its own."""
    x = rng.uniform(1, 2, (2, 4096)).astype(np.float32)
    chance = np.array([[0.0], [0.5]], np.float32)
    kept = run_kernel(dropping(None), x, chance).outputs[0]
    np.testing.assert_array_equal(kept[0], x[0])
    assert abs((kept[1] == 0).mean() - 0.5) < 0.05


def test_rules_of_dropout():
    """A probability lies in 0 to 1, dst has data's dtype, and integer data takes float32 probabilities."""
    x, chance = np.ones((2, 4), np.float32), np.full((2, 1), 0.5, np.float32)
    run_kernel(dropping(0.5), x)
    with pytest.raises(ConstraintError, match="lies in 0 to 1"):
        run_kernel(dropping(1.5), x)
    with pytest.raises(ConstraintError, match="must be float32"):
        run_kernel(dropping(0.5, nl.bfloat16), x)
    integers = x.astype(np.int32)
    run_kernel(dropping(None, nl.int32), integers, chance)
    with pytest.raises(ConstraintError, match=r"prob .* must be float32"):
        run_kernel(dropping(None, nl.int32), integers, chance.astype(ml_dtypes.bfloat16))


def test_rules_of_states_and_seeds():
    """Words for each lane, generations and engines, one seed of 32 bits, integer results."""
    six = np.ones((2, 6), np.uint32)
    drawing(nl.uint32, (2, 4))(six)
    with pytest.raises(ConstraintError, match="NeuronCore-v3"):
        drawing(nl.uint32, (2, 4), target="trn1")(six)
    with pytest.raises(ConstraintError, match="engine vector needs NeuronCore-v4"):
        drawing(nl.uint32, (2, 4), nisa.engine.vector)(np.ones((2, 24), np.uint32))
    with pytest.raises(ConstraintError, match=r"must have shape \(2, 6\)"):
        drawing(nl.uint32, (2, 4))(np.ones((2, 24), np.uint32))
    with pytest.raises(ConstraintError, match="must be int8"):
        drawing(nl.float32, (2, 4))(six)


def test_the_seed_is_one_value():
    """set_rng_seed takes 32 bits."""

    def kernel(x):
        nisa.set_rng_seed(nl.load(x))
        return nl.zeros((1, 1), nl.float32, nl.shared_hbm)

    run_kernel(kernel, np.ones((1, 1), np.uint32))
    with pytest.raises(ConstraintError, match="one 32-bit value"):
        run_kernel(kernel, np.ones((1, 2), np.uint32))


def test_an_all_zero_state_warns():
    """XORWOW with five zero words only counts."""

    def kernel(seeds):
        nisa.rand_set_state(nl.load(seeds))
        out = nl.ndarray((1, 1), nl.float32, nl.shared_hbm)
        nl.store(out, nl.zeros((1, 1), nl.float32))
        return out

    assert not run_kernel(kernel, np.ones((2, 6), np.uint32)).warnings
    assert "only counts" in run_kernel(kernel, np.zeros((2, 6), np.uint32)).warnings[0]
