"""Who waits for whom: overlap, reuse, memory, order, locks, tables, the clock, two cores."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from neuron_port.simulator import run_kernel
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl
from neuron_port.simulator.target import GEN2, GEN3
from neuron_port.simulator.timing import Timeline, predict
from neuron_port.simulator.timing.clock import TensorClock
from neuron_port.simulator.timing.constants import GEN3_COSTS
from neuron_port.simulator.timing.dependencies import dependencies_of

ROWS = 8 * 128
X = np.zeros((ROWS, 2048), np.float32)


def timeline(
    kernel: Callable[..., Any], *arrays: np.ndarray, target: str = "trn2", **options: Any
) -> Timeline:
    return predict(run_kernel(kernel, *arrays, target=target, **options))


def scaled(x: Any) -> Any:
    """Each tile is loaded, scaled and stored; every tile is its own buffer."""
    out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
    for t in range(0, x.shape[0], 128):
        tile = nl.ndarray((128, x.shape[1]), x.dtype, nl.sbuf)
        nisa.dma_copy(tile, x[t : t + 128, 0 : x.shape[1]])
        nisa.tensor_scalar(tile, tile, nl.multiply, 2.0)
        nisa.dma_copy(out[t : t + 128, 0 : x.shape[1]], tile)
    return out


def scaled_in_one_buffer(x: Any) -> Any:
    """As scaled, with the buffer hoisted out of the loop."""
    out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
    tile = nl.ndarray((128, x.shape[1]), x.dtype, nl.sbuf)
    for t in range(0, x.shape[0], 128):
        nisa.dma_copy(tile, x[t : t + 128, 0 : x.shape[1]])
        nisa.tensor_scalar(tile, tile, nl.multiply, 2.0)
        nisa.dma_copy(out[t : t + 128, 0 : x.shape[1]], tile)
    return out


def scaled_at_addresses(x: Any, buffers: int) -> Any:
    """As scaled, with tiles at explicit addresses that repeat after `buffers` tiles."""
    out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
    for number, t in enumerate(range(0, x.shape[0], 128)):
        address = (0, number % buffers * x.shape[1] * 4)
        tile = nl.ndarray((128, x.shape[1]), x.dtype, nl.sbuf, address=address)
        nisa.dma_copy(tile, x[t : t + 128, 0 : x.shape[1]])
        nisa.tensor_scalar(tile, tile, nl.multiply, 2.0)
        nisa.dma_copy(out[t : t + 128, 0 : x.shape[1]], tile)
    return out


def test_a_hoisted_buffer_serialises_what_own_buffers_overlap():
    """The kernel that differs by where its tile is allocated takes half as long again."""
    assert timeline(scaled_in_one_buffer, X).device_ns > 1.5 * timeline(scaled, X).device_ns


def test_reused_addresses_serialise_like_a_hoisted_buffer():
    """One address for all tiles is as slow as one tile; eight addresses are as fast as eight tiles."""
    one = timeline(lambda x: scaled_at_addresses(x, 1), X).device_ns
    eight = timeline(lambda x: scaled_at_addresses(x, 8), X).device_ns
    assert one == pytest.approx(timeline(scaled_in_one_buffer, X).device_ns)
    assert eight == pytest.approx(timeline(scaled, X).device_ns)


def test_the_wait_is_named():
    """A load into a reused tile says that it waits for the store that still reads it."""
    loads = [e for e in timeline(scaled_in_one_buffer, X).scheduled if e.dma_queue == "load"]
    assert loads[1].cause == "reuse"
    assert loads[1].waited_index == 2


def test_loads_run_ahead_only_as_far_as_sbuf_has_room():
    """Where VectorE is slow, loads of 64 KiB tiles wait for older tiles, and loads of 8 KiB tiles do not."""

    def slow(x: Any) -> Any:
        out = nl.ndarray((128, 1), x.dtype, nl.shared_hbm)
        total = nl.ndarray((128, 1), x.dtype, nl.sbuf)
        for t in range(0, x.shape[0], 128):
            tile = nl.ndarray((128, x.shape[1]), x.dtype, nl.sbuf)
            nisa.dma_copy(tile, x[t : t + 128, 0 : x.shape[1]])
            for _ in range(10):
                nisa.tensor_reduce(total, nl.add, tile, axis=1)
        nisa.dma_copy(out, total)
        return out

    def causes(columns: int) -> set[str]:
        x = np.zeros((6 * 128, columns), np.float32)
        return {e.cause for e in timeline(slow, x).scheduled if e.dma_queue == "load"}

    assert "buffers" in causes(16 * 1024)
    assert "buffers" not in causes(2 * 1024)


def test_neighbouring_columns_are_independent_and_the_same_column_is_not():
    """Two stores into different columns of one tile do not wait for each other; a read of one waits for it alone."""

    def kernel(x: Any) -> Any:
        out = nl.ndarray((128, 64), nl.float32, nl.shared_hbm)
        tile = nl.ndarray((128, 128), nl.float32, nl.sbuf)
        nisa.memset(tile[0:128, 0:64], 0.0)
        nisa.memset(tile[0:128, 64:128], 0.0)
        nisa.dma_copy(out, tile[0:128, 64:128])
        return out

    edges = dependencies_of(run_kernel(kernel, X).trace.instructions).edges
    assert edges[1] == []
    assert [producer for producer, _ in edges[2]] == [1]


def test_nothing_starts_before_what_it_reads_is_there():
    """Every instruction starts after the end of each producer of its inputs, in both cores' order of time."""
    result = timeline(scaled, X)
    ends = {e.index: e.end_ns for e in result.scheduled}
    edges = dependencies_of([e.instruction for e in sorted(result.scheduled, key=lambda e: e.index)]).edges
    for entry in result.scheduled:
        for producer, kind in edges[entry.index]:
            if kind == 0:
                assert entry.start_ns >= ends[producer]


def test_no_engine_runs_two_instructions_at_once():
    """Busy intervals of one compute engine never overlap."""
    result = timeline(scaled, X)
    last = 0.0
    for entry in result.scheduled:
        if entry.lane == "vector":
            assert entry.start_ns >= last
            last = entry.free_ns


def test_strict_program_order_is_never_faster():
    """The in-order bound is at least the reordered one."""
    for kernel in (scaled, scaled_in_one_buffer):
        result = timeline(kernel, X)
        assert result.in_order_ns >= result.reordered_ns - 1e-6
        assert result.device_ns == result.reordered_ns


def test_depends_on_orders_independent_instructions():
    """Two memsets on two engines overlap, unless one is told to depend on the other."""

    def kernel(x: Any, ordered: bool) -> Any:
        out = nl.ndarray((128, 4096), nl.float32, nl.shared_hbm)
        one, two = (nl.ndarray((128, 4096), nl.float32, nl.sbuf) for _ in range(2))
        first = nisa.memset(one, 0.0, engine=nisa.engine.vector)
        second = nisa.memset(two, 0.0, engine=nisa.engine.gpsimd)
        if ordered:
            second.depends_on(first)
        nisa.dma_copy(out, one)
        return out

    free, ordered = (timeline(lambda x, o=o: kernel(x, o), X).scheduled for o in (False, True))
    starts = [{e.index: e.start_ns for e in entries} for entries in (free, ordered)]
    assert starts[0][1] == 0.0
    assert starts[1][1] > 0.0


@pytest.mark.parametrize(("target", "overlap"), [("trn1", False), ("trn2", True)])
def test_vector_and_gpsimd_share_sbuf_from_v3_on(target, overlap):
    """VectorE and GpSimdE exclude each other in SBUF on NeuronCore-v2 and run side by side on v3."""

    def kernel(x: Any) -> Any:
        out = nl.ndarray((128, 4096), nl.float32, nl.shared_hbm)
        one, two = (nl.ndarray((128, 4096), nl.float32, nl.sbuf) for _ in range(2))
        nisa.memset(one, 0.0, engine=nisa.engine.vector)
        nisa.memset(two, 0.0, engine=nisa.engine.gpsimd)
        nisa.dma_copy(out, one)
        return out

    first, second = sorted(
        (e for e in timeline(kernel, X, target=target).scheduled if e.lane != "dma"), key=lambda e: e.start_ns
    )
    assert (second.start_ns < first.free_ns) is overlap
    assert (second.cause == "lock") is not overlap


def test_alternating_functions_reload_their_tables():
    """exp and rsqrt in turn load a table each time; all exp first needs two loads."""

    def kernel(x: Any, functions: list[Any]) -> Any:
        out = nl.ndarray((128, 64), nl.float32, nl.shared_hbm)
        tile = nl.ndarray((128, 64), nl.float32, nl.sbuf)
        nisa.memset(tile, 1.0)
        for function in functions:
            nisa.activation(tile, function, tile)
        nisa.dma_copy(out, tile)
        return out

    mixed = timeline(lambda x: kernel(x, [nl.exp, nl.rsqrt] * 3), X)
    sorted_ = timeline(lambda x: kernel(x, [nl.exp] * 3 + [nl.rsqrt] * 3), X)
    assert (mixed.table_loads, sorted_.table_loads) == (6, 2)
    assert mixed.device_ns > sorted_.device_ns


def test_copies_without_an_engine_are_shared_between_vector_and_scalar():
    """Unspecified copies go where there is less work; specified ones stay."""

    def kernel(x: Any, options: dict[str, Any]) -> Any:
        out = nl.ndarray((128, 1024), nl.float32, nl.shared_hbm)
        source = nl.ndarray((128, 1024), nl.float32, nl.sbuf)
        nisa.memset(source, 0.0)
        for _ in range(8):
            tile = nl.ndarray((128, 1024), nl.float32, nl.sbuf)
            nisa.tensor_copy(tile, source, **options)
        nisa.dma_copy(out, tile)
        return out

    def lanes(options: dict[str, Any]) -> set[str]:
        entries = timeline(lambda x: kernel(x, options), X).scheduled
        return {e.lane for e in entries if e.instruction.opcode == "tensor_copy"}

    assert lanes({}) == {"vector", "scalar"}
    assert lanes({"engine": nisa.engine.vector}) == {"vector"}


def test_tensor_engine_warms_up_and_cools_down():
    """The first 3 us run at half rate, steady work at full rate, and a long pause starts over."""
    clock = TensorClock(GEN3_COSTS)
    now, lost = 0.0, []
    for _ in range(20):
        lost.append(clock.run(now, 500.0))
        now += 500.0 + lost[-1]
    assert lost[0] == 500.0
    assert lost[-1] == 0.0
    assert clock.run(now + 10_000.0, 500.0) == 500.0


def test_only_clock_gated_generations_run_cold():
    """A short matmul loses time on Trn2 and none on Trn1."""

    def kernel(x: Any) -> Any:
        out = nl.ndarray((128, 512), nl.float32, nl.shared_hbm)
        left, right = nl.ndarray((128, 128), nl.float32, nl.sbuf), nl.ndarray((128, 512), nl.float32, nl.sbuf)
        nisa.memset(left, 0.0)
        nisa.memset(right, 0.0)
        psum, tile = nl.ndarray((128, 512), nl.float32, nl.psum), nl.ndarray((128, 512), nl.float32, nl.sbuf)
        nisa.nc_matmul(psum, left, right)
        nisa.tensor_copy(tile, psum)
        nisa.dma_copy(out, tile)
        return out

    assert timeline(kernel, X, target="trn2").tensor_cold_ns > 0
    assert timeline(kernel, X, target="trn1").tensor_cold_ns == 0
    assert GEN3.tensor_clock_gates
    assert not GEN2.tensor_clock_gates


def test_hwdge_transfers_cost_their_sequencer_600_ns_each():
    """Twenty small hwdge loads take at least 20 x 600 ns; prebuilt descriptors do not."""

    def kernel(x: Any, options: dict[str, Any]) -> Any:
        out = nl.ndarray((128, 16), nl.float32, nl.shared_hbm)
        for t in range(20):
            tile = nl.ndarray((128, 16), nl.float32, nl.sbuf)
            nisa.dma_copy(tile, x[0:128, t * 16 : (t + 1) * 16], **options)
        nisa.dma_copy(out, tile)
        return out

    hardware = timeline(lambda x: kernel(x, {"dge_mode": nisa.dge_mode.hwdge, "engine": nisa.engine.sync}), X)
    assert hardware.device_ns > 20 * 600
    assert timeline(lambda x: kernel(x, {"dge_mode": nisa.dge_mode.none}), X).device_ns < hardware.device_ns


def test_two_cores_meet_at_a_barrier():
    """The core with less work waits at the barrier for the other one, and says so."""

    def kernel(x: Any) -> Any:
        out = nl.ndarray((256, 2048), nl.float32, nl.shared_hbm)
        core = nl.program_id(0)
        tile = nl.ndarray((128, 2048), nl.float32, nl.sbuf)
        nisa.dma_copy(tile, x[0:128, 0:2048])
        for _ in range(1 + 20 * core):
            nisa.tensor_scalar(tile, tile, nl.multiply, 1.0)
        nisa.dma_copy(out[core * 128 : core * 128 + 128, 0:2048], tile)
        nisa.core_barrier(out, (0, 1))
        return out

    result = timeline(kernel, X, lnc=2)
    barriers = [e for e in result.scheduled if e.instruction.opcode == "core_barrier"]
    assert result.cores == 2
    assert barriers[0].start_ns == pytest.approx(barriers[1].start_ns)
    assert [e.cause for e in sorted(barriers, key=lambda e: e.core)] == ["core", "data"]


def test_the_same_kernel_gives_the_same_timeline():
    """Two predictions of two runs agree to the last digit."""
    one, two = (timeline(scaled, X) for _ in range(2))
    assert [(e.index, e.start_ns, e.end_ns) for e in one.scheduled] == [
        (e.index, e.start_ns, e.end_ns) for e in two.scheduled
    ]
    assert one.critical_path == two.critical_path


def test_the_critical_path_is_a_chain_through_time():
    """Each step of the path waited for the one before it, and the last one ends the kernel."""
    result = timeline(scaled_in_one_buffer, X)
    by_place = {(e.core, e.index): e for e in result.scheduled}
    path = [by_place[place] for place in result.critical_path]
    assert path[-1].end_ns == result.device_ns
    for before, after in itertools.pairwise(path):
        assert after.waited_index == before.index
        assert after.start_ns >= before.start_ns


def test_totals_follow_from_the_trace():
    """HBM traffic, operations and the roofline of a bf16 matmul are those of its shapes."""

    def kernel(left: Any, right: Any) -> Any:
        out = nl.ndarray((128, 512), nl.bfloat16, nl.shared_hbm)
        a, b = nl.ndarray((128, 128), nl.bfloat16, nl.sbuf), nl.ndarray((128, 512), nl.bfloat16, nl.sbuf)
        nisa.dma_copy(a, left)
        nisa.dma_copy(b, right)
        psum, tile = nl.ndarray((128, 512), nl.float32, nl.psum), nl.ndarray((128, 512), nl.bfloat16, nl.sbuf)
        nisa.nc_matmul(psum, a, b)
        nisa.tensor_copy(tile, psum)
        nisa.dma_copy(out, tile)
        return out

    bf16 = ml_dtypes.bfloat16
    result = timeline(kernel, np.zeros((128, 128), bf16), np.zeros((128, 512), bf16))
    assert result.hbm_read_bytes == 2 * 128 * (128 + 512)
    assert result.hbm_write_bytes == 2 * 128 * 512
    assert result.roofline.operations == 2 * 128 * 128 * 512
    assert result.roofline.bound == "memory"
    assert result.device_ns > result.roofline.bound_ns
    assert result.latency_ns == result.device_ns + result.overhead_ns
    assert result.energy.total_pj > result.energy.hbm_pj > 0


def test_a_bare_trace_needs_a_target():
    """predict refuses a trace without a machine and takes one with it."""
    run = run_kernel(scaled, X)
    with pytest.raises(ValueError, match="target"):
        predict(run.trace)
    assert predict(run.trace, "trn2").device_ns == predict(run).device_ns
