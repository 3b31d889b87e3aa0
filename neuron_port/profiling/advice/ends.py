"""Advice on the two ends of a kernel, where nothing overlaps: the first load and the last store."""

from __future__ import annotations

from collections.abc import Iterator

from neuron_port.profiling.advice.dma import RECOMMENDED_BYTES, on_chip_side
from neuron_port.profiling.advice.evidence import Candidate, Change, Evidence, Key, key_of, location_of
from neuron_port.profiling.by_line import Place, place_of
from neuron_port.profiling.words import bytes_text, time_text
from neuron_port.simulator.timing.timeline import DMA_LANE, Scheduled

PARTS = 4
SOURCE = "kernel-optimization.rst: overlap loads, compute and stores by working in smaller tiles"


def _can_be_split(one: Scheduled) -> bool:
    """Whether its parts would still be transfers of a good size."""
    side = on_chip_side(one)
    return side is not None and side.bytes_per_partition >= PARTS * RECOMMENDED_BYTES


def exposed_first_load(evidence: Evidence) -> Iterator[Candidate]:
    """Compute waits for the first, large load of a line, and could begin with a part of it."""
    first_of_line: dict[Place, Scheduled] = {}
    for one in evidence.in_order:
        if one.lane == DMA_LANE:
            first_of_line.setdefault(place_of(one), one)
    waiting: dict[Key, Scheduled] = {}
    for one in evidence.timeline.scheduled:
        if one.lane != DMA_LANE and one.cause == "data" and one.waited_index is not None:
            waiting.setdefault((one.core, one.waited_index), one)
    for place, load in first_of_line.items():
        consumer = waiting.get(key_of(load))
        if consumer is None or not _can_be_split(load):
            continue
        yield Candidate(
            rule="first-load-exposed",
            location=location_of(place),
            measured=f"the first load, {bytes_text(load.transfer_bytes)}, takes {time_text(load.busy_ns)}; "
            f"{consumer.instruction.opcode} in line {consumer.instruction.line} waits for it until "
            f"{time_text(consumer.start_ns)}",
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
