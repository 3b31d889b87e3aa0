"""Where instructions go that leave it open: engines and PSUM banks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from neuron_port.simulator import run_kernel
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl
from neuron_port.simulator.timing import Scheduled, Timeline, predict

NOTHING = np.zeros((1, 1), np.float32)


def timeline(body: Callable[[Any], None], source: np.ndarray = NOTHING, target: str = "trn1") -> Timeline:
    """The timeline of `body(source)`, which ends by storing a [128, 1] tile."""

    def kernel(x: Any) -> Any:
        out = nl.ndarray((128, 1), nl.float32, nl.shared_hbm)
        body(x)
        nisa.dma_copy(out, zeros((128, 1)))
        return out

    return predict(run_kernel(kernel, source, target=target))


def zeros(shape: tuple[int, ...], dtype: Any = nl.float32) -> Any:
    tile = nl.ndarray(shape, dtype, nl.sbuf)
    nisa.memset(tile, 0.0)
    return tile


def entries(result: Timeline, opcode: str) -> list[Scheduled]:
    return sorted((e for e in result.scheduled if e.instruction.opcode == opcode), key=lambda e: e.index)


@pytest.mark.parametrize(
    ("target", "options", "lane"),
    [
        ("trn1", {"op0": nl.multiply, "operand0": 2.0}, "scalar"),
        ("trn1", {"op0": nl.add, "operand0": 2.0}, "scalar"),
        ("trn1", {"op0": nl.maximum, "operand0": 2.0}, "vector"),
        ("trn1", {"op0": nl.multiply, "operand0": 2.0, "engine": nisa.engine.vector}, "vector"),
        ("trn2", {"op0": nl.multiply, "operand0": 2.0}, "vector"),
    ],
)
def test_scaling_without_an_engine_runs_on_the_faster_one(target, options, lane):
    """On NeuronCore-v2 ScalarE scales faster than VectorE; it cannot take a maximum, and a named engine is kept."""

    def body(_):
        nisa.tensor_scalar(zeros((128, 512)), zeros((128, 512)), **options)

    (entry,) = entries(timeline(body, target=target), "tensor_scalar")
    assert entry.lane == lane


def test_psum_is_taken_when_it_is_needed_not_ahead():
    """Tiles that wait for a long activation hold no banks, so the next round's matmuls run meanwhile."""

    def body(_):
        left, right = zeros((128, 128), nl.bfloat16), zeros((128, 512), nl.bfloat16)
        for _ in range(2):
            scores = nl.ndarray((128, 512), nl.float32, nl.psum)
            nisa.nc_matmul(scores, left, right)
            wide, slow = zeros((128, 4096)), nl.ndarray((128, 4096), nl.bfloat16, nl.sbuf)
            nisa.tensor_copy(wide[0:128, 0:512], scores, engine=nisa.engine.vector)
            nisa.activation(slow, nl.exp, wide)
            for block in range(8):
                turned = nl.ndarray((128, 128), nl.bfloat16, nl.psum)
                nisa.nc_transpose(turned, slow[0:128, block * 128 : block * 128 + 128])
                nisa.tensor_copy(zeros((128, 128), nl.bfloat16), turned, engine=nisa.engine.vector)

    result = timeline(body)
    matmuls, activations = entries(result, "nc_matmul"), entries(result, "activation")
    assert matmuls[1].start_ns < activations[0].end_ns


def test_psum_is_never_promised_twice():
    """Sixteen accumulators in eight banks: never more than eight are between first matmul and last read."""

    def body(_):
        left, right = zeros((128, 128), nl.bfloat16), zeros((128, 512), nl.bfloat16)
        for _ in range(16):
            acc = nl.ndarray((128, 512), nl.float32, nl.psum)
            for _ in range(2):
                nisa.nc_matmul(acc, left, right)
            nisa.tensor_copy(zeros((128, 512)), acc, engine=nisa.engine.vector)

    result = timeline(body)
    starts = [entry.start_ns for entry in entries(result, "nc_matmul")[::2]]
    ends = [entry.free_ns for entry in entries(result, "tensor_copy")]
    for moment in starts:
        live = sum(start <= moment < end for start, end in zip(starts, ends, strict=True))
        assert live <= 8


def test_a_2_kib_descriptor_takes_97_ns():
    """The profile of a [128, 128] bfloat16 load on Trn2: one 2 KiB piece on each engine, 97 ns."""

    def body(source):
        nisa.dma_copy(nl.ndarray((128, 128), nl.bfloat16, nl.sbuf), source)

    entry = entries(timeline(body, np.zeros((128, 128), ml_dtypes.bfloat16), "trn2"), "dma_copy")[0]
    assert entry.busy_ns == pytest.approx(97, rel=0.01)
