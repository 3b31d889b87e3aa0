"""From an executed kernel to its timeline: schedule it in both orders and sum up where the time went."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from neuron_port.simulator.target import Target, find_target
from neuron_port.simulator.timing.constants import COSTS
from neuron_port.simulator.timing.dma import Transfer
from neuron_port.simulator.timing.roofline import energy_of, roofline_of, traffic_of
from neuron_port.simulator.timing.schedule import Scheduler
from neuron_port.simulator.timing.state import Work
from neuron_port.simulator.timing.timeline import DMA_LANE, LANES, LaneUse, Scheduled, Timeline
from neuron_port.simulator.trace import NkiInstruction, Trace

# How far an instruction may overtake others of its engine. The compiler schedules unrolled programs; no document
# states a limit, and results hardly depend on it beyond a few loop bodies.
WINDOW = 512
IN_ORDER = 1
NOTABLE_UTILISATION = 0.5  # below it no resource bounds the kernel: waiting does


def predict(run: Any, target: str | Target | None = None) -> Timeline:
    """The predicted timeline of `run`: a KernelRun, a Trace, or one Trace for each core of a logical core.

    Args:
        run: what run_kernel returned, or its trace(s).
        target: the machine; by default the one that the kernel ran on. A bare Trace needs it.

    Raises:
        ValueError: a bare trace without a target.
    """
    traces = _traces_of(run)
    machine = target if target is not None else getattr(run, "target", None)
    if machine is None:
        raise ValueError("predict: a bare trace has no target; pass target=")
    with _collector_paused():
        work = Work(traces, find_target(machine), COSTS[find_target(machine).generation])
        reordered = Scheduler(work, WINDOW)
        device_ns = reordered.run()
        return _timeline(work, reordered.entries(), device_ns, Scheduler(work, IN_ORDER).run())


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Millions of small records without a cycle among them: looking for cycles would take half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _traces_of(run: Any) -> list[list[NkiInstruction]]:
    if isinstance(run, Trace):
        return [run.instructions]
    if isinstance(run, Sequence):
        return [trace.instructions for trace in run]
    traces = getattr(run, "traces", None) or (run.trace,)
    return [trace.instructions for trace in traces]


def _timeline(work: Work, scheduled: list[Scheduled], device_ns: float, in_order_ns: float) -> Timeline:
    lanes = _lane_uses(work, scheduled, device_ns)
    busiest = max(lanes, key=lambda use: use.utilisation, default=None)
    reads, writes = traffic_of(work)
    return Timeline(
        target=work.target.name,
        generation=work.target.generation,
        cores=len(work.traces),
        device_ns=device_ns,
        overhead_ns=work.costs.overhead_ns,
        in_order_ns=in_order_ns,
        reordered_ns=device_ns,
        scheduled=tuple(scheduled),
        lanes=lanes,
        bound_lane=busiest.lane if busiest and busiest.utilisation >= NOTABLE_UTILISATION else "latency",
        critical_path=_critical_path(scheduled),
        hbm_read_bytes=reads,
        hbm_write_bytes=writes,
        dma_bytes=sum(entry.transfer_bytes for entry in scheduled),
        roofline=roofline_of(work),
        energy=energy_of(work),
        tensor_cold_ns=sum(entry.cold_ns for entry in scheduled),
        table_loads=sum(1 for entry in scheduled if entry.table_load_ns),
        table_load_ns=sum(entry.table_load_ns for entry in scheduled),
    )


def _critical_path(scheduled: list[Scheduled]) -> tuple[tuple[int, int], ...]:
    """From the instruction that ends last back over what each waited for; in order of time."""
    if not scheduled:
        return ()
    by_place = {(entry.core, entry.index): entry for entry in scheduled}
    entry: Scheduled | None = max(scheduled, key=lambda e: (e.end_ns, -e.core, -e.index))
    path: list[tuple[int, int]] = []
    while entry is not None and len(path) <= len(scheduled):
        path.append((entry.core, entry.index))
        entry = None if entry.waited_index is None else by_place[entry.core, entry.waited_index]
    path.reverse()
    return tuple(path)


def _lane_uses(work: Work, scheduled: list[Scheduled], device_ns: float) -> tuple[LaneUse, ...]:
    """Busy and exposed time of each lane of each core, from entries in order of start."""
    uses = []
    for core in range(len(work.traces)):
        spans: dict[str, list[tuple[float, float]]] = {}
        engine_ns = 0.0
        counts: dict[str, int] = {}
        for entry in scheduled:
            if entry.core != core:
                continue
            spans.setdefault(entry.lane, []).append((entry.start_ns, entry.free_ns))
            counts[entry.lane] = counts.get(entry.lane, 0) + 1
            if entry.lane == DMA_LANE:
                planned = work.plans[core][entry.index]
                engine_ns += (
                    planned.engine_ns * len(entry.dma_engines) if isinstance(planned, Transfer) else 0.0
                )
        merged = {lane: _union(intervals) for lane, intervals in spans.items()}
        exposed = _exposed(merged)
        for lane in LANES:
            if lane not in merged:
                continue
            busy = sum(end - begin for begin, end in merged[lane])
            used = engine_ns / work.target.dma_engines if lane == DMA_LANE else busy
            uses.append(
                LaneUse(
                    core=core,
                    lane=lane,
                    instructions=counts[lane],
                    busy_ns=busy,
                    exposed_ns=exposed[lane],
                    utilisation=used / device_ns if device_ns else 0.0,
                )
            )
    return tuple(uses)


def _union(intervals: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Disjoint intervals that cover the same time; the input is in order of start."""
    merged: list[tuple[float, float]] = []
    begin, end = intervals[0]
    for first, last in intervals:
        if first > end:
            merged.append((begin, end))
            begin, end = first, last
        elif last > end:
            end = last
    merged.append((begin, end))
    return merged


def _exposed(merged: dict[str, list[tuple[float, float]]]) -> dict[str, float]:
    """Time in which only that lane is busy."""
    changes = [
        (moment, change, lane)
        for lane, intervals in merged.items()
        for begin, end in intervals
        for moment, change in ((begin, 1), (end, -1))
    ]
    changes.sort(key=lambda item: (item[0], item[1]))
    exposed = dict.fromkeys(merged, 0.0)
    active: set[str] = set()
    before = 0.0
    for moment, change, lane in changes:
        if len(active) == 1 and moment > before:
            exposed[next(iter(active))] += moment - before
        before = moment
        if change > 0:
            active.add(lane)
        else:
            active.discard(lane)
    return exposed
