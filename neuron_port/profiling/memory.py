"""Where SBUF and PSUM are fullest: how much, at which instruction, and which tiles are live there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from neuron_port.simulator import Target, Trace
from neuron_port.simulator.memory import MemoryRegion, peak_of


@dataclass(frozen=True, kw_only=True)
class LiveTile:
    """One tile that is live at a peak."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    used: int  # bytes per partition in SBUF, banks in PSUM
    location: str


@dataclass(frozen=True, kw_only=True)
class MemoryPeak:
    """The largest use of one memory by one core. `used` and `capacity` count `unit`s."""

    memory: str  # "SBUF" or "PSUM"
    unit: str  # "bytes per partition" or "banks"
    used: int
    capacity: int
    location: str  # file:line of the instruction at which the peak is reached; empty when nothing is used
    tiles: tuple[LiveTile, ...]  # the largest first


def memory_peaks(traces: Sequence[Trace], target: Target) -> tuple[MemoryPeak, MemoryPeak]:
    """The SBUF and PSUM peaks of the core that uses most."""
    sbuf = [_peak(trace, MemoryRegion.sbuf, 1, target.sbuf_usable_bytes_per_partition) for trace in traces]
    psum = [_peak(trace, MemoryRegion.psum, target.psum_bank_bytes, target.psum_banks) for trace in traces]
    return max(sbuf, key=lambda peak: peak.used), max(psum, key=lambda peak: peak.used)


def _peak(trace: Trace, region: MemoryRegion, unit: int, capacity: int) -> MemoryPeak:
    used, moment, live = peak_of(trace.allocations, region, unit)
    tiles = sorted(live, key=lambda allocation: -allocation.bytes_per_partition) if used else []
    return MemoryPeak(
        memory="SBUF" if region is MemoryRegion.sbuf else "PSUM",
        unit="bytes per partition" if unit == 1 else "banks",
        used=used,
        capacity=capacity,
        location=trace.instructions[moment].location if used else "",
        tiles=tuple(
            LiveTile(
                name=tile.name,
                shape=tuple(tile.shape),
                dtype=str(tile.dtype),
                used=-(-tile.bytes_per_partition // unit),
                location=tile.location,
            )
            for tile in tiles
        ),
    )
