"""Random numbers: rng, dropout and the states of the generators inside VectorE and GpSimdE.

Every lane of an engine runs XORWOW (Marsaglia 2003, "Xorshift RNGs"), the generator that AWS names; VectorE runs
four streams for each lane in turn, as its 24 words of state say. AWS documents neither how a 32-bit seed
becomes a state, nor the order in which elements draw, nor the generator of NeuronCore-v2 and v3's VectorE, so
the numbers are deterministic here but not those of a device. An unseeded engine starts from seed 0.
"""

from __future__ import annotations

import numpy as np

from neuron_port.simulator.checks import (
    SBUF,
    check_destination,
    check_dtype,
    check_engine,
    check_generation,
    check_memory,
    check_no_psum,
    check_source,
    check_tiles,
)
from neuron_port.simulator.context import Run, current_run, record
from neuron_port.simulator.dtypes import FLOAT32, float32, int8, int16, int32, uint8, uint16, uint32
from neuron_port.simulator.errors import ConstraintError
from neuron_port.simulator.tensor import NkiTensor
from neuron_port.simulator.trace import NkiInstruction, engine
from neuron_port.simulator.values import scalar_or_vector, write_raw

Engine = engine
LANES = 128
STREAM_WORDS = 6  # five of the xorshift and a counter
STREAMS = {engine.gpsimd: 1, engine.vector: 4}  # nki.isa.rand_set_state: 6 and 24 words for each lane
COUNTER_STEP = np.uint32(362437)  # Marsaglia 2003
INTEGERS = (int8, int16, int32, uint8, uint16, uint32)


def next_words(run: Run, on: engine, partitions: int, count: int) -> np.ndarray:
    """[partitions, count] uint32: the next numbers of the first `partitions` lanes of an engine."""
    streams = STREAMS[on]
    # [6, lanes, streams]: one contiguous array for each word of the state
    state = np.ascontiguousarray(
        _state(run, on)[:partitions].reshape(partitions, streams, 6).transpose(2, 0, 1)
    )
    x, y, z, w, v, d = state
    rounds = -(-count // streams)
    words = np.empty((rounds, partitions, streams), dtype=np.uint32)
    for drawn in words:
        t = x ^ (x >> np.uint32(2))
        x, y, z, w = y, z, w, v
        v = v ^ (v << np.uint32(4)) ^ t ^ (t << np.uint32(1))
        d = d + COUNTER_STEP
        np.add(v, d, out=drawn)
    after = np.stack((x, y, z, w, v, d)).transpose(1, 2, 0).reshape(partitions, -1)
    _state(run, on)[:partitions] = after
    return words.transpose(1, 0, 2).reshape(partitions, -1)[:, :count]


def rng(dst: NkiTensor, engine: engine = engine.vector, name: str | None = None) -> NkiInstruction:
    """dst = 32 random bits for each element, cut to the least significant bits of its integer dtype.

    VectorE (SBUF or PSUM), or from NeuronCore-v3 on GpSimdE (SBUF).
    """
    run = current_run()
    check_destination("rng", "dst", dst)
    check_dtype("rng", "dst", dst, INTEGERS)
    check_engine("rng", engine, (Engine.vector, Engine.gpsimd))
    if engine is Engine.gpsimd:
        check_generation("rng", 3, "engine gpsimd")
        check_no_psum("rng", ("dst",), dst)
    chosen = Engine.gpsimd if engine is Engine.gpsimd else Engine.vector
    partitions = dst.array.shape[0]
    words = next_words(run, chosen, partitions, dst.size // partitions)
    unsigned = np.dtype(f"u{dst.dtype.itemsize}")
    write_raw(dst, words.astype(unsigned).view(dst.dtype.native))
    return record("rng", chosen, (dst,), name)


def dropout(
    dst: NkiTensor, data: NkiTensor, prob: float | NkiTensor, name: str | None = None
) -> NkiInstruction:
    """dst = data with elements replaced by 0 with probability `prob`, a number or a [P, 1] tile; nothing is scaled.

    dst has data's dtype. A tile of probabilities is float32 for integer data, any float dtype otherwise.
    """
    check_tiles("dropout", ("dst", "data"), dst, data)
    check_dtype("dropout", "dst", dst, (data.dtype,))
    operands = [dst, data]
    if isinstance(prob, NkiTensor):
        if data.dtype.is_integer:
            check_dtype("dropout", "prob", prob, (float32,))
        elif not prob.dtype.is_float:
            raise ConstraintError(f"dropout: prob {prob!r} must have a float dtype")
        operands.append(prob)
    partitions = data.array.shape[0]
    rows = data.array.reshape(partitions, -1)
    chance = np.asarray(scalar_or_vector("dropout", "prob", prob, rows), dtype=FLOAT32)
    if not ((chance >= 0) & (chance <= 1)).all():
        raise ConstraintError(
            f"dropout: prob {prob!r} holds {float(chance.ravel()[0])!r}; a probability lies in 0 to 1",
        )
    words = next_words(current_run(), Engine.vector, partitions, rows.shape[1])
    dropped = words * 2.0**-32 < chance  # in float64, where 32 bits are exact: 0 drops nothing, 1 everything
    write_raw(dst, np.where(dropped, data.array.dtype.type(0), rows))
    return record("dropout", Engine.vector, operands, name)


def set_rng_seed(src_seeds: NkiTensor, name: str | None = None) -> NkiInstruction:
    """Start VectorE's generator from a [1, 1] seed of 32 bits, in SBUF or PSUM."""
    check_source("set_rng_seed", "src_seeds", src_seeds)
    if src_seeds.size != 1 or src_seeds.dtype.itemsize != 4:
        raise ConstraintError(
            f"set_rng_seed: src_seeds {src_seeds!r} must be one 32-bit value of shape (1, 1)",
            hint="nisa.rand_set_state seeds the lanes of GpSimdE one by one",
        )
    seed = int(np.ascontiguousarray(src_seeds.array).reshape(-1).view(np.uint32)[0])
    run = current_run()
    run.random_states[Engine.vector] = _seeded(seed, STREAMS[Engine.vector])
    return record("set_rng_seed", Engine.vector, (src_seeds,), name, writes=0)


def rand_set_state(
    src_seeds: NkiTensor, engine: engine = engine.gpsimd, name: str | None = None
) -> NkiInstruction:
    """Set the state of the first P lanes: src_seeds [P, 6] for GpSimdE, [P, 24] for VectorE; uint32 @ SBUF.

    GpSimdE from NeuronCore-v3 on, VectorE from v4 on.
    """
    check_source("rand_set_state", "src_seeds", src_seeds)
    check_memory("rand_set_state", "src_seeds", src_seeds, SBUF)
    chosen = _check_state("rand_set_state", "src_seeds", src_seeds, engine)
    words = src_seeds.array.reshape(src_seeds.array.shape[0], -1)
    run = current_run()
    streams = words.reshape(-1, STREAM_WORDS)
    if not streams[:, :5].any(axis=1).all():
        run.warn(
            f"rand_set_state: src_seeds {src_seeds!r} has a stream whose first five words are zero; XORWOW then "
            "only counts"
        )
    _state(run, chosen)[: words.shape[0]] = words
    return record("rand_set_state", chosen, (src_seeds,), name, writes=0)


def rand_get_state(dst: NkiTensor, engine: engine = engine.gpsimd, name: str | None = None) -> NkiInstruction:
    """dst [P, 6] (GpSimdE) or [P, 24] (VectorE) = the state of the first P lanes; uint32 @ SBUF.

    From NeuronCore-v4 on VectorE too, whose dst may be in PSUM.
    """
    check_destination("rand_get_state", "dst", dst)
    chosen = _check_state("rand_get_state", "dst", dst, engine)
    run = current_run()
    if run.target.generation < 4 or chosen is Engine.gpsimd:
        check_memory("rand_get_state", "dst", dst, SBUF)
    write_raw(dst, _state(run, chosen)[: dst.array.shape[0]])
    return record("rand_get_state", chosen, (dst,), name)


def _check_state(opcode: str, label: str, tile: NkiTensor, chosen: engine) -> engine:
    check_generation(opcode, 3)
    check_engine(opcode, chosen, (Engine.gpsimd, Engine.vector))
    if chosen is Engine.vector:
        check_generation(opcode, 4, "engine vector")
    chosen = Engine.vector if chosen is Engine.vector else Engine.gpsimd
    check_dtype(opcode, label, tile, (uint32,))
    words = STREAMS[chosen] * STREAM_WORDS
    if tile.array.ndim != 2 or tile.array.shape[1] != words:
        raise ConstraintError(
            f"{opcode}: {label} {tile!r} must have shape ({tile.array.shape[0]}, {words}): {words} words of state "
            f"for each lane of engine {chosen.name}"
        )
    return chosen


def _state(run: Run, on: engine) -> np.ndarray:
    """[128, words] uint32: the generator state of every lane, made from seed 0 on first use."""
    state = run.random_states.get(on)
    if state is None:
        state = run.random_states[on] = _seeded(0, STREAMS[on])
    return state


def _seeded(seed: int, streams: int) -> np.ndarray:
    """[128, 6 * streams] uint32 from one seed, by SplitMix64 (Steele, Lea and Flood 2014)."""
    count = LANES * streams * STREAM_WORDS
    mixed = (np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(32)).astype(np.uint32).reshape(LANES, -1)
