"""Who must wait for whom: read-after-write, write-after-read and write-after-write on what instructions touch.

Each allocation is its own memory, as each `nl.ndarray` is a new tile, unless kernels place tiles at explicit addresses:
then tiles that overlap in SBUF or PSUM wait for each other too. Regions are boxes over the allocation's dimensions, so
that neighbouring columns of a matrix in HBM are independent.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from neuron_port.simulator.memory import Allocation, MemoryRegion
from neuron_port.simulator.trace import ON_CHIP, NkiInstruction, Recorded, engine

Box = tuple[tuple[int, int], ...]  # [first, end) of each dimension of the allocation

# Kinds of edges. The consumer starts no earlier than the producer's ...
DATA = 0  # ... result is visible
REUSE = 1  # ... engine is free again: its reads are over
CHAIN = 2  # ... engine is free again: accumulation in PSUM, and other pairs of one engine in program order
ORDER = 3  # ... result is visible; asked for by the kernel
Edge = tuple[int, int]  # producer index, kind
BARRIER = "core_barrier"
PAGES = 64  # how finely boxes are filed: many tiles of one tensor in HBM must not be compared with each other
READERS_KEPT = 256  # of one box between two writes; the writer after more of them waits for the last ones


class Dependencies(NamedTuple):
    """For each instruction its producers, and what it needs of on-chip memory."""

    edges: list[list[Edge]]
    first_writes: list[
        list[Allocation]
    ]  # tiles without an address that the instruction is the first to touch
    touches: dict[Allocation, list[int]]  # instructions that touch them


class _Access:
    """The last writer of a box and who read it since."""

    __slots__ = ("box", "readers", "writer")

    def __init__(self, box: Box | None) -> None:
        self.box = box  # None: all of the allocation
        self.writer = -1
        self.readers: list[int] = []


class _Tracker:
    """The accesses to one allocation: to all of it, and to boxes, filed by their place along one dimension."""

    __slots__ = ("axis", "boxes", "page", "pages", "whole")

    def __init__(self, allocation: Allocation) -> None:
        sizes = allocation.shape
        self.whole = _Access(None)
        self.pages: dict[int, dict[Box, _Access]] = {}
        self.boxes: dict[Recorded, Box | None] = {}
        first = 1 if allocation.buffer in ON_CHIP else 0
        self.axis = next((axis for axis in range(first, len(sizes)) if sizes[axis] > 1), len(sizes) - 1)
        self.page = -(-sizes[self.axis] // PAGES)

    def pages_of(self, box: Box) -> range:
        """Numbers of the pages that the box lies on."""
        begin, end = box[self.axis]
        return range(begin // self.page, (end - 1) // self.page + 1)

    def meeting(self, box: Box | None) -> list[_Access]:
        """The accesses to boxes that share elements with `box`, each at least once."""
        if box is None:
            return [access for page in self.pages.values() for access in page.values()]
        numbers = self.pages_of(box)
        found = []
        for number in numbers:
            for other, access in self.pages.get(number, {}).items():
                if other is box or _meet(other, box):
                    found.append(access)
        return found

    def of(self, box: Box | None) -> _Access:
        """The record of accesses to exactly this box; made on first use."""
        if box is None:
            return self.whole
        numbers = self.pages_of(box)
        access = self.pages.get(numbers[0], {}).get(box)
        if access is None:
            access = _Access(box)
            for number in numbers:
                self.pages.setdefault(number, {})[box] = access
        return access

    def forget(self, box: Box) -> None:
        """Drop the record of a box that was overwritten."""
        for number in self.pages_of(box):
            self.pages.get(number, {}).pop(box, None)


def dependencies_of(instructions: list[NkiInstruction]) -> Dependencies:
    """The edges between `instructions`, which are one core's in program order; producers come first."""
    return _Analysis(instructions).run()


class _Analysis:
    def __init__(self, instructions: list[NkiInstruction]) -> None:
        self.instructions = instructions
        self.trackers: dict[Allocation, _Tracker] = {}
        self.touches: dict[Allocation, list[int]] = {}
        self.addressed: dict[MemoryRegion, list[Allocation]] = {region: [] for region in ON_CHIP}
        self.needed = _hbm_tensors_read_and_written(instructions)

    def run(self) -> Dependencies:
        edges: list[list[Edge]] = []
        first_writes: list[list[Allocation]] = []
        for index, instruction in enumerate(self.instructions):
            found: dict[int, int] = {}
            fresh: list[Allocation] = []
            recorded = instruction.recorded
            writes = instruction.writes
            barrier = instruction.opcode == BARRIER
            accumulates = instruction.engine is engine.tensor and instruction.opcode.startswith("nc_matmul")
            for position in range(len(recorded) - 1, -1, -1):  # sources before destinations
                item = recorded[position]
                allocation = item if isinstance(item, Allocation) else item[0]
                if allocation.buffer not in ON_CHIP and allocation not in self.needed:
                    continue
                self._touch(allocation, index, fresh, found)
                tracker = self.trackers[allocation]
                if barrier:  # what was written before is visible, and what comes after it waits
                    _read(tracker, _box(tracker, item), index, found)
                if position < writes:
                    _write(tracker, _box(tracker, item), index, found, accumulates)
                else:
                    _read(tracker, _box(tracker, item), index, found)
            for producer in instruction.dependencies:
                if producer.index < index:
                    found[producer.index] = ORDER
            found.pop(index, None)
            edges.append(list(found.items()))
            first_writes.append(fresh)
        return Dependencies(edges, first_writes, self.touches)

    def _touch(
        self, allocation: Allocation, index: int, fresh: list[Allocation], found: dict[int, int]
    ) -> None:
        """Make the tracker on first use; wait for tiles that were at the same address before."""
        if allocation in self.trackers:
            touches = self.touches.get(allocation)
            if touches is not None and touches[-1] != index:
                touches.append(index)
            return
        self.trackers[allocation] = _Tracker(allocation)
        if allocation.buffer not in ON_CHIP:
            return
        place = _placed(allocation)
        if place is None:
            self.touches[allocation] = [index]
            fresh.append(allocation)
            return
        still_there = []
        for other in self.addressed[allocation.buffer]:
            if _overlap(place, _placed(other)):
                tracker = self.trackers[other]
                for access in (tracker.whole, *tracker.meeting(None)):
                    _wait_for(access, found, REUSE, DATA)
            if not _covers(place, _placed(other)):
                still_there.append(other)
        still_there.append(allocation)
        self.addressed[allocation.buffer] = still_there


def _hbm_tensors_read_and_written(instructions: list[NkiInstruction]) -> set[Allocation]:
    """HBM tensors that carry data between instructions; plain inputs and outputs need no tracking."""
    written: set[Allocation] = set()
    read: set[Allocation] = set()
    for instruction in instructions:
        for position, item in enumerate(instruction.recorded):
            allocation: Allocation = item if isinstance(item, Allocation) else item[0]
            if allocation.buffer in ON_CHIP:
                continue
            if instruction.opcode == BARRIER:
                written.add(allocation)
                read.add(allocation)
            else:
                (written if position < instruction.writes else read).add(allocation)
    return written & read


# ---- one allocation ---------------------------------------------------------------------------------------------


def _read(tracker: _Tracker, box: Box | None, index: int, found: dict[int, int]) -> None:
    if tracker.whole.writer >= 0:
        found[tracker.whole.writer] = DATA
    for access in tracker.meeting(box):
        if access.writer >= 0:
            found[access.writer] = DATA
    readers = tracker.of(box).readers
    readers.append(index)
    if len(readers) > READERS_KEPT:
        del readers[0]


def _write(tracker: _Tracker, box: Box | None, index: int, found: dict[int, int], accumulates: bool) -> None:
    after_writer = CHAIN if accumulates else REUSE
    _wait_for(tracker.whole, found, REUSE, after_writer)
    for access in tracker.meeting(box):
        _wait_for(access, found, REUSE, after_writer)
        if box is not None and access.box is not box and access.box is not None and _inside(access.box, box):
            tracker.forget(access.box)
    if box is None:
        tracker.pages.clear()
    own = tracker.of(box)
    own.writer = index
    own.readers = []


def _wait_for(access: _Access, found: dict[int, int], readers: int, writer: int) -> None:
    for reader in access.readers:
        found.setdefault(reader, readers)
    if access.writer >= 0:
        found.setdefault(access.writer, writer)


# ---- boxes ------------------------------------------------------------------------------------------------------


def _box(tracker: _Tracker, recorded: Recorded) -> Box | None:
    """The box that a recorded view spans; None for the whole allocation."""
    if isinstance(recorded, Allocation):
        return None
    try:
        return tracker.boxes[recorded]
    except KeyError:
        box = tracker.boxes[recorded] = box_of(recorded)
        return box


def box_of(recorded: tuple) -> Box | None:
    """Smallest box over the allocation's dimensions that holds the view."""
    allocation, shape, strides_bytes, offset_bytes, held_bytes = recorded[:5]
    sizes = allocation.shape
    if held_bytes != allocation.held_bytes or 0 in sizes:
        return None
    steps = [1] * len(sizes)
    for axis in range(len(sizes) - 2, -1, -1):
        steps[axis] = steps[axis + 1] * sizes[axis + 1]
    reach = [0] * len(sizes)
    first = offset_bytes // held_bytes
    whole_from = len(sizes)  # dimensions from here on are covered all, by a view that runs on from row to row
    for size, stride in zip(shape, strides_bytes, strict=True):
        stride = abs(stride) // held_bytes
        distance = (size - 1) * stride
        for axis, step in enumerate(steps):  # a distance counts in the slowest dimension that it moves
            if distance >= step:
                if stride % step:
                    whole_from = min(whole_from, axis + 1)
                    distance += first % step
                reach[axis] += distance // step
                break
    box = []
    for axis, step in enumerate(steps):
        begin = first // step
        first %= step
        end = begin + reach[axis] + 1
        if axis >= whole_from:
            begin, end = 0, sizes[axis]
        if end > sizes[axis]:
            return None  # the view wraps around: take it for everything
        box.append((begin, end))
    if all(end - begin == size for (begin, end), size in zip(box, sizes, strict=True)):
        return None
    return tuple(box)


def _meet(one: Box, other: Box) -> bool:
    pairs = zip(one, other, strict=True)
    return all(first < stop and begin < end for (first, end), (begin, stop) in pairs)


def _inside(inner: Box, outer: Box) -> bool:
    pairs = zip(inner, outer, strict=True)
    return all(begin <= first and end <= stop for (first, end), (begin, stop) in pairs)


# ---- addresses --------------------------------------------------------------------------------------------------

Place = tuple[int, int, int, int]  # partitions [first, end), bytes [first, end)


def _placed(allocation: Allocation) -> Place | None:
    """Where the kernel put the tile; None when that is left to the compiler."""
    address = allocation.address
    if address is None:
        return None
    partition, byte = address
    return (
        partition,
        partition + allocation.shape[0],
        byte,
        byte + math.prod(allocation.shape[1:]) * allocation.dtype.itemsize,
    )


def _overlap(one: Place, other: Place | None) -> bool:
    return other is not None and (
        one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]
    )


def _covers(one: Place, other: Place | None) -> bool:
    return other is not None and (
        one[0] <= other[0] and other[1] <= one[1] and one[2] <= other[2] and other[3] <= one[3]
    )
