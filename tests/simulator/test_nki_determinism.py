"""The same kernel and inputs give the same bits, the same trace and the same timeline, on one core and on two."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from neuron_port.simulator import load_kernel_source, run_kernel
from neuron_port.simulator.timing import predict

SOURCE = """
import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def shares(x):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    half = x.shape[0] // nl.num_programs()
    first = nl.program_id() * half
    for row in range(first, first + half, 128):
        tile = nl.ndarray((128, x.shape[1]), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=tile, src=x[row : row + 128, :])
        nisa.activation(tile, op=nl.exp, data=tile, scale=0.5)
        nisa.dropout(tile, tile, 0.5)
        nisa.dma_copy(dst=out[row : row + 128, :], src=tile)
    if nl.num_programs() == 2:
        nisa.core_barrier(out, (0, 1))
    return out
"""


def outcome(cores: int) -> tuple[Any, ...]:
    """Everything that a run leaves: bits, instructions, and when each of them ran."""
    x = np.random.default_rng(0).standard_normal((1024, 96)).astype(np.float32)
    run = run_kernel(load_kernel_source(SOURCE, "shares", "shares.py"), x, lnc=cores)
    timeline = predict(run)
    times = [(one.core, one.index, one.lane, one.start_ns, one.end_ns) for one in timeline.scheduled]
    instructions = [[repr(instruction) for instruction in trace] for trace in run.traces]
    return run.outputs[0].tobytes(), instructions, times, timeline.latency_ns


@pytest.mark.parametrize("cores", [1, 2])
def test_a_run_repeats_exactly(cores: int) -> None:
    """Threads, random numbers and sets leave no trace in the result."""
    assert outcome(cores) == outcome(cores)
