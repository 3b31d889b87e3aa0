"""The timeline as a trace that Perfetto and chrome://tracing open: JSON in the trace event format.

Format: the "Trace Event Format" document of the Chromium project. A process per core, a track per engine. Transfers
overlap, so each DMA stands on the first DMA track that is free; the DMA engines that it uses are among its arguments.
Times are microseconds in the file, as the format wants; Perfetto shows nanoseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neuron_port.profiling.by_line import critical_times
from neuron_port.profiling.files import written_whole
from neuron_port.profiling.profile import Profile
from neuron_port.profiling.words import LANE_NAMES, attributes_text, cause_text, operands_text
from neuron_port.simulator.timing.timeline import COMPUTE_LANES, DMA_LANE, Scheduled

# Arrows for these causes only: an instruction behind another on its own engine needs none.
ARROWS = {"data", "reuse", "buffers", "order", "lock", "core"}
FIRST_DMA_TRACK = 10


def dma_tracks(transfers: list[Scheduled]) -> dict[tuple[int, int], int]:
    """(core, index) of each transfer: the lowest track on which nothing else runs then. Ordered by start."""
    tracks: dict[tuple[int, int], int] = {}
    free_at: dict[int, list[float]] = {}  # core: when each track is free
    for one in transfers:
        free = free_at.setdefault(one.core, [])
        for number, until in enumerate(free):
            if until <= one.start_ns:
                free[number] = one.free_ns
                tracks[one.core, one.index] = number
                break
        else:
            tracks[one.core, one.index] = len(free)
            free.append(one.free_ns)
    return tracks


def write_perfetto(profile: Profile, path: Path) -> None:
    """Write the trace to `path`, wholly or not at all."""
    with written_whole(path) as aside, aside.open("w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit": "ns", "otherData": ')
        json.dump(_facts(profile), file)
        file.write(', "traceEvents": [\n')
        for number, event in enumerate(trace_events(profile)):
            file.write(",\n" if number else "")
            json.dump(event, file, ensure_ascii=False, separators=(",", ":"))
        file.write("\n]}\n")


def _facts(profile: Profile) -> dict[str, str]:
    timeline = profile.timeline
    return {
        "kernel": profile.kernel,
        "target": timeline.target,
        "device_ns": f"{timeline.device_ns:.0f}",
        "latency_ns": f"{timeline.latency_ns:.0f}",
        "origin": "predicted by the simulator; no device has run this",
    }


def trace_events(profile: Profile) -> Iterator[dict[str, Any]]:
    """Names of processes and tracks, then a slice for each instruction, then an arrow for each wait."""
    timeline = profile.timeline
    tracks = dma_tracks([one for one in timeline.scheduled if one.lane == DMA_LANE])
    yield from _names(profile, tracks)
    critical = critical_times(timeline)
    by_key = {(one.core, one.index): one for one in timeline.scheduled}
    for one in timeline.scheduled:
        waited = by_key.get((one.core, one.waited_index)) if one.waited_index is not None else None
        yield _slice(one, waited, tracks, (one.core, one.index) in critical)
        if waited is not None and one.cause in ARROWS:
            yield from _arrow(one, waited, tracks)


def _names(profile: Profile, tracks: dict[tuple[int, int], int]) -> Iterator[dict[str, Any]]:
    timeline = profile.timeline
    for core in range(timeline.cores):
        name = f"{profile.kernel} on {timeline.target}, core {core}"
        yield {"ph": "M", "name": "process_name", "pid": core, "args": {"name": name}}
        numbers = {lane: number for number, lane in enumerate(COMPUTE_LANES)}
        used = {use.lane for use in timeline.lanes if use.core == core}
        rows = [(numbers[lane], LANE_NAMES[lane]) for lane in COMPUTE_LANES if lane in used]
        most = max((track for (of_core, _), track in tracks.items() if of_core == core), default=-1)
        rows += [(FIRST_DMA_TRACK + number, f"DMA {number}") for number in range(most + 1)]
        for number, row in rows:
            yield {"ph": "M", "name": "thread_name", "pid": core, "tid": number, "args": {"name": row}}
            yield {
                "ph": "M",
                "name": "thread_sort_index",
                "pid": core,
                "tid": number,
                "args": {"sort_index": number},
            }


def _track(one: Scheduled, tracks: dict[tuple[int, int], int]) -> int:
    if one.lane == DMA_LANE:
        return FIRST_DMA_TRACK + tracks[one.core, one.index]
    return COMPUTE_LANES.index(one.lane)


def _slice(
    one: Scheduled, waited: Scheduled | None, tracks: dict[tuple[int, int], int], is_critical: bool
) -> dict[str, Any]:
    instruction = one.instruction
    facts: dict[str, Any] = {
        "index": one.index,
        "line": instruction.location,
        "operands": operands_text(instruction),
        "ready_ns": round(one.ready_ns, 1),
        "result_visible_ns": round(one.end_ns, 1),
        "critical_path": is_critical,
    }
    if instruction.name:
        facts["name"] = instruction.name
    if said := attributes_text(instruction):
        facts["attributes"] = said
    if waited is not None:
        facts["waited_for"] = f"{cause_text(one)} {waited.instruction.opcode} {waited.index}"
    if one.table_load_ns:
        facts["table_load_ns"] = round(one.table_load_ns, 1)
    if one.cold_ns:
        facts["slow_clock_ns"] = round(one.cold_ns, 1)
    if one.lane == DMA_LANE:
        facts |= {
            "bytes": one.transfer_bytes,
            "descriptors": one.descriptors,
            "descriptor_bytes": one.descriptor_bytes,
            "dma_engines": ", ".join(str(number) for number in one.dma_engines),
            "queue": one.dma_queue,
            "bandwidth_share": round(one.bandwidth_share, 3),
        }
    return {
        "ph": "X",
        "name": instruction.opcode,
        "cat": one.lane,
        "pid": one.core,
        "tid": _track(one, tracks),
        "ts": round(one.start_ns / 1000, 4),
        "dur": round(one.busy_ns / 1000, 4),
        "args": facts,
    }


def _arrow(one: Scheduled, waited: Scheduled, tracks: dict[tuple[int, int], int]) -> Iterator[dict[str, Any]]:
    """From the last moment of the slice that was waited for to the start of the one that waited."""
    common = {"name": one.cause, "cat": "wait", "id": (one.core << 32) + one.index}
    leaves_ns = max(waited.start_ns, min(waited.free_ns - 0.1, one.start_ns))
    yield {
        "ph": "s", "pid": waited.core, "tid": _track(waited, tracks), "ts": round(leaves_ns / 1000, 4), **common,
    }  # fmt: skip
    yield {
        "ph": "f", "bp": "e", "pid": one.core, "tid": _track(one, tracks), "ts": round(one.start_ns / 1000, 4),
        **common,
    }  # fmt: skip
