"""What only the whole run shows: tiles that overwrite each other too early, and tiles that outlive their loop.

Kernels reuse explicit addresses legally, one tile after another, and here every tile has memory of its own. So the
trace is walked in program order: every byte knows the tile that wrote it last, and reading a byte of another tile is
an error. Only tiles that overlap both in place and in time are looked at; without them nothing is walked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from neuron_port.simulator.errors import HazardError
from neuron_port.simulator.memory import Allocation, MemoryRegion
from neuron_port.simulator.trace import NkiInstruction, Operand, Recorded, Trace

PAGE_BYTES = 2048  # granularity in which tiles at explicit addresses are looked up
# Besides nc_matmul that accumulates, what leaves a part of its destination as it was and so depends on it.
MODIFIES = frozenset({"tensor_copy_predicated"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Hazard:
    """`read` needs bytes of `victim` that `write` has replaced by those of `clobberer`."""

    victim: Allocation
    clobberer: Allocation
    write: NkiInstruction
    read: NkiInstruction
    partition: int
    byte: int  # within the partition

    def error(self) -> HazardError:
        """The error that names both tensors, both lines and the cure."""
        return HazardError(
            f"{self.read.opcode} reads {self.victim!r}, but {self.write.opcode} at {self.write.location} has "
            f"overwritten it: partition {self.partition}, byte {self.byte} of {self.victim.buffer.name.upper()} "
            f"now holds {self.clobberer!r} (explicit addresses {self.victim.address}, from "
            f"{self.victim.location}, and {self.clobberer.address}, from {self.clobberer.location})",
            location=self.read.location,
            hint=f"use `{self.victim.name}` up before `{self.clobberer.name}` is written, or give one of them an "
            "address of its own",
        )


def find_overlaps(trace: Trace) -> list[Hazard]:
    """The first hazard of every pair of tiles at explicit addresses, in program order; empty if there is none."""
    if sum(tile.address is not None for tile in trace.allocations) < 2:
        return []
    suspects = _overlapping(_spans(trace))
    return _walk(trace, suspects) if suspects else []


@dataclass(slots=True)
class _Span:
    """A tile at an explicit address, with the first and last instruction of the trace that touch it."""

    tile: Allocation
    first: int
    last: int


def _spans(trace: Trace) -> list[_Span]:
    """Every touched tile at an explicit address, in the order of its first use."""
    spans: dict[int, _Span] = {}
    for instruction in trace.instructions:
        for recorded in instruction.recorded:
            tile = recorded if isinstance(recorded, Allocation) else recorded[0]
            if tile.address is None:
                continue
            span = spans.get(id(tile))
            if span is None:
                spans[id(tile)] = _Span(tile, instruction.index, instruction.index)
            else:
                span.last = instruction.index
    return list(spans.values())


def _overlapping(spans: list[_Span]) -> set[int]:
    """Ids of the tiles that share bytes with another while both are in use."""
    suspects: set[int] = set()
    pages: dict[tuple[MemoryRegion, int], list[_Span]] = {}
    for span in spans:
        first_byte, end_byte = _bytes_of(span.tile)
        for page in range(first_byte // PAGE_BYTES, (end_byte - 1) // PAGE_BYTES + 1):
            here = pages.setdefault((span.tile.buffer, page), [])
            here[:] = [other for other in here if other.last > span.first]
            for other in here:
                if _share_bytes(span.tile, other.tile):
                    suspects.update((id(span.tile), id(other.tile)))
            here.append(span)
    return suspects


def _bytes_of(tile: Allocation) -> tuple[int, int]:
    assert tile.address is not None
    return tile.address[1], tile.address[1] + tile.bytes_per_partition


def _share_bytes(one: Allocation, other: Allocation) -> bool:
    (first, end), (other_first, other_end) = _bytes_of(one), _bytes_of(other)
    partition, other_partition = one.start_partition, other.start_partition
    return (
        first < other_end
        and other_first < end
        and partition < other_partition + other.shape[0]
        and other_partition < partition + one.shape[0]
    )


# ---- the walk --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Access:
    """The bytes of one operand: partitions, and a strided pattern of bytes within each of them."""

    tile: Allocation
    reads: bool
    writes: bool
    first_partition: int
    end_partition: int
    first_byte: int
    pattern: tuple[tuple[int, int], ...]  # (bytes between neighbours, count), outermost first
    run_bytes: int  # that lie side by side


def _accesses(trace: Trace, suspects: set[int]) -> Iterator[tuple[NkiInstruction, list[_Access]]]:
    """The instructions that touch a suspect, with what they touch; reads come first."""
    for instruction in trace.instructions:
        found = []
        for position, recorded in enumerate(instruction.recorded):
            tile = recorded if isinstance(recorded, Allocation) else recorded[0]
            if id(tile) in suspects:
                found.append(_access(instruction, position, recorded))
        if found:
            found.sort(key=lambda access: access.writes)
            yield instruction, found


def _access(instruction: NkiInstruction, position: int, recorded: Recorded) -> _Access:
    writes = position < instruction.writes
    facts = instruction.attributes
    adds = facts.get("accumulates") and not facts.get("overwrites_part")
    reads = not writes or bool(adds) or instruction.opcode in MODIFIES
    if isinstance(recorded, Allocation):  # all of a tile is one run of bytes in every partition
        assert recorded.address is not None
        partition, byte = recorded.address
        end = partition + recorded.shape[0]
        return _Access(recorded, reads, writes, partition, end, byte, (), recorded.bytes_per_partition)
    operand = Operand(*recorded)
    assert operand.allocation.address is not None
    size = operand.dtype.itemsize
    pattern = tuple(
        (stride * size, count)
        for stride, count in zip(operand.strides[1:], operand.shape[1:], strict=True)
        if count > 1 and stride
    )
    if pattern and pattern[-1][0] == size:  # contiguous elements are one run
        size *= pattern[-1][1]
        pattern = pattern[:-1]
    partition, end, byte, _ = operand.region
    byte += operand.allocation.address[1]
    return _Access(operand.allocation, reads, writes, partition, end, byte, pattern, size)


class _Owners:
    """For every byte of one memory: the tile that wrote it last, and the instruction that did.

    Bytes are grouped into the largest unit that all accesses are made of, partitions into the bands between the
    first and last partitions of all accesses.
    """

    def __init__(self, accesses: list[_Access]) -> None:
        edges = {a.first_partition for a in accesses} | {a.end_partition for a in accesses}
        self.edges = sorted(edges)
        self.band_of = {edge: band for band, edge in enumerate(self.edges)}
        self.unit = math.gcd(
            *(a.first_byte for a in accesses),
            *(a.run_bytes for a in accesses),
            *(abs(stride) for a in accesses for stride, _ in a.pattern),
        )
        end = max(a.tile.address[1] + a.tile.bytes_per_partition for a in accesses if a.tile.address)
        shape = (len(self.edges) - 1, -(-end // self.unit))
        self.tiles = np.full(shape, -1, dtype=np.int32)
        self.writers = np.full(shape, -1, dtype=np.int32)

    def view(self, array: np.ndarray, access: _Access) -> np.ndarray:
        """The part of `array` that the access covers: [bands, *pattern, units of a run]."""
        band, end = self.band_of[access.first_partition], self.band_of[access.end_partition]
        step = array.itemsize
        shape = [end - band, *(count for _, count in access.pattern), access.run_bytes // self.unit]
        strides = [array.strides[0], *(stride // self.unit * step for stride, _ in access.pattern), step]
        offset = band * array.strides[0] + access.first_byte // self.unit * step
        return np.ndarray(shape, array.dtype, array, offset, strides)

    def place(self, access: _Access, at: tuple[int, ...]) -> tuple[int, int]:
        """(partition, byte) of element `at` of a view of the access."""
        band = self.band_of[access.first_partition] + at[0]
        byte = access.first_byte + at[-1] * self.unit
        byte += sum(i * stride for i, (stride, _) in zip(at[1:-1], access.pattern, strict=True))
        return self.edges[band], byte


def _walk(trace: Trace, suspects: set[int]) -> list[Hazard]:
    """Follow all accesses to the suspects in program order."""
    touched = list(_accesses(trace, suspects))
    memories = {
        buffer: _Owners(accesses)
        for buffer in (MemoryRegion.sbuf, MemoryRegion.psum)
        if (accesses := [a for _, found in touched for a in found if a.tile.buffer is buffer])
    }
    numbers: dict[int, int] = {}
    tiles: list[Allocation] = []
    hazards: dict[tuple[int, int], Hazard] = {}
    for instruction, found in touched:
        for access in found:
            number = numbers.setdefault(id(access.tile), len(tiles))
            if number == len(tiles):
                tiles.append(access.tile)
            owners = memories[access.tile.buffer]
            if access.reads:
                held = owners.view(owners.tiles, access)
                foreign = (held != number) & (held >= 0)
                if foreign.any():
                    at = tuple(int(i) for i in np.argwhere(foreign)[0])
                    partition, byte = owners.place(access, at)
                    writer = trace.instructions[owners.view(owners.writers, access)[at]]
                    clobberer = tiles[held[at]]
                    hazards.setdefault(
                        (number, numbers[id(clobberer)]),
                        Hazard(
                            victim=access.tile,
                            clobberer=clobberer,
                            write=writer,
                            read=instruction,
                            partition=partition,
                            byte=byte,
                        ),
                    )
            if access.writes:
                owners.view(owners.tiles, access)[...] = number
                owners.view(owners.writers, access)[...] = instruction.index
    return list(hazards.values())


# ---- hardware loops -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Escape:
    """`tile` was made in an iteration of a hardware loop and is used after it, by `use`."""

    tile: Allocation
    use: NkiInstruction

    def error(self) -> HazardError:
        """The error that names the tile, both lines and the cure."""
        return HazardError(
            f"{self.use.opcode} uses {self.tile!r}, which an earlier iteration of a hardware loop made (at "
            f"{self.tile.location}); what is allocated in the body is not visible outside of it",
            location=self.use.location,
            hint="allocate it before the loop",
        )


def find_escapes(trace: Trace) -> list[Escape]:
    """Uses of tiles on chip after the iteration of the hardware loop in which they were allocated."""
    escapes: list[Escape] = []
    for iteration in trace.iterations:
        end = iteration.end_instruction
        for tile in trace.allocations[iteration.first_allocation : iteration.end_allocation]:
            if tile.last >= end and tile.buffer in (MemoryRegion.sbuf, MemoryRegion.psum):
                uses = (i for i in trace.instructions[end : tile.last + 1] if _touches(i, tile))
                escapes.extend(Escape(tile=tile, use=use) for use in uses)
    return escapes


def _touches(instruction: NkiInstruction, tile: Allocation) -> bool:
    return any((r if isinstance(r, Allocation) else r[0]) is tile for r in instruction.recorded)


def check_hazards(trace: Trace) -> None:
    """Refuse the first overwritten tile and the first escape from a hardware loop.

    Raises:
        HazardError: naming both tensors and both lines.
    """
    overlaps = find_overlaps(trace)
    if overlaps:
        raise min(overlaps, key=lambda hazard: hazard.read.index).error()
    escapes = find_escapes(trace)
    if escapes:
        raise escapes[0].error()
