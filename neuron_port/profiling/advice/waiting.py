"""Advice on waiting for memory: one tile that every iteration fills again, or no room for the next."""

from __future__ import annotations

from collections.abc import Iterator

from neuron_port.profiling.advice.evidence import Candidate, Change, Evidence, location_of
from neuron_port.profiling.by_line import place_of
from neuron_port.profiling.words import bytes_text
from neuron_port.simulator.memory import Allocation
from neuron_port.simulator.timing.timeline import Scheduled
from neuron_port.simulator.trace import ON_CHIP

FEW = 3


def _delay_ns(evidence: Evidence, one: Scheduled) -> float:
    """How long it was held back beyond the release of what came before it on its lane: an upper bound."""
    return evidence.critical.get((one.core, one.index), 0.0)


def one_buffer(evidence: Evidence) -> Iterator[Candidate]:
    """Iterations wait for each other because they share one tile: with a tile each they would overlap."""
    waiting: dict[Allocation, list[Scheduled]] = {}
    for one in evidence.in_order:
        if one.cause != "reuse" or one.waited_index is None:
            continue
        waited = evidence.by_key[one.core, one.waited_index]
        instruction = one.instruction
        written = {operand.allocation for operand in instruction.operands[: instruction.writes]}
        for tile in written & {operand.allocation for operand in waited.instruction.operands}:
            if tile.buffer in ON_CHIP:
                waiting.setdefault(tile, []).append(one)
    for tile, members in waiting.items():
        if len(members) < FEW:
            continue
        lines = sorted({place_of(one)[1] for one in members})
        unit = bytes_text(tile.bytes_per_partition)
        yield Candidate(
            rule="one-buffer",
            location=tile.location,
            measured=f"{len(members)} instructions (line {', '.join(map(str, lines[:4]))}) wait until the former "
            f"contents of `{tile.name}` are used up",
            change=f"Allocate `{tile.name}` inside the loop, or take two in turn: {unit} per partition more, and the "
            "next iteration begins while this one ends.",
            source="nki/migration: hoisting an allocation out of a loop loses multi-buffering",
            effect=Change(own_copies=frozenset({tile})),
        )


def memory_full(evidence: Evidence) -> Iterator[Candidate]:
    """Tiles wait for room in SBUF or PSUM."""
    members = [one for one in evidence.in_order if one.cause == "buffers" and one.waited_index is not None]
    if len(members) < FEW:
        return
    waits: dict[tuple[str, int], float] = {}
    for one in members:
        waits[place_of(one)] = waits.get(place_of(one), 0.0) + _delay_ns(evidence, one)
    place = max(waits, key=lambda place: waits[place])
    tile = next(one for one in members if place_of(one) == place).instruction.operands[0].allocation
    what = "PSUM banks" if tile.buffer is ON_CHIP[1] else "SBUF"
    yield Candidate(
        rule="memory-full",
        location=location_of(place),
        measured=f"{len(members)} instructions wait until {what} have room for their tile, `{tile.name}` here",
        change="Use tiles up sooner (move results out of PSUM at once), or make them smaller, so that the next "
        "iteration's fit beside them.",
        source="trainium_inferentia2_arch.rst: 8 PSUM banks of 2 KiB per partition; SBUF by generation",
        effect=Change(memory_factor=2),
    )
