"""Advice on the two ends of a kernel, where nothing overlaps: the first load and the last store."""

from __future__ import annotations

from collections.abc import Iterator

from neuron_port.profiling.advice.dma import RECOMMENDED_BYTES, on_chip_side
from neuron_port.profiling.advice.evidence import Candidate, Change, Evidence, key_of, location_of
from neuron_port.profiling.by_line import place_of
from neuron_port.profiling.words import bytes_text, time_text
from neuron_port.simulator.timing.timeline import DMA_LANE, Scheduled

PARTS = 4
SOURCE = "kernel-optimization.rst: overlap loads, compute and stores by working in smaller tiles"


def _can_be_split(one: Scheduled) -> bool:
    """Whether its parts would still be transfers of a good size."""
    side = on_chip_side(one)
    return side is not None and side.bytes_per_partition >= PARTS * RECOMMENDED_BYTES


def exposed_first_load(evidence: Evidence) -> Iterator[Candidate]:
    """Compute waits for a large first transfer, of which it could begin with a part."""
    computing = [one for one in evidence.timeline.scheduled if one.lane != DMA_LANE and one.cause == "data"]
    for first in computing[:1]:
        load = (
            evidence.by_key.get((first.core, first.waited_index)) if first.waited_index is not None else None
        )
        if load is None or load.lane != DMA_LANE or not _can_be_split(load):
            continue
        yield Candidate(
            rule="first-load-exposed",
            location=location_of(place_of(load)),
            measured=f"the first load, {bytes_text(load.transfer_bytes)}, takes {time_text(load.busy_ns)}; "
            f"compute begins at {time_text(first.start_ns)}",
            change=f"Load the first tile in {PARTS} parts, and begin to compute on the first part.",
            source=SOURCE,
            effect=Change(saved_ns={key_of(load): load.busy_ns * (1 - 1 / PARTS)}),
        )


def exposed_last_store(evidence: Evidence) -> Iterator[Candidate]:
    """The kernel ends with a large transfer, most of which could have left while the rest was computed."""
    if not evidence.timeline.scheduled:
        return
    last = max(evidence.timeline.scheduled, key=lambda one: (one.end_ns, one.index))
    if last.lane != DMA_LANE or last.cause != "data" or not _can_be_split(last):
        return
    exposed = evidence.timeline.device_ns - last.ready_ns
    yield Candidate(
        rule="last-store-exposed",
        location=location_of(place_of(last)),
        measured=f"the last store, {bytes_text(last.transfer_bytes)}, takes {time_text(last.busy_ns)} of the "
        f"{time_text(exposed)} after the last result",
        change=f"Store the last tile in {PARTS} parts, each as soon as it is computed.",
        source=SOURCE,
        effect=Change(saved_ns={key_of(last): last.busy_ns * (1 - 1 / PARTS)}),
    )
