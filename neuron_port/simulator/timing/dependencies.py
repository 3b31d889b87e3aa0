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


class Dependencies(NamedTuple):
    """For each instruction its producers, and what it needs of on-chip memory."""

    edges: list[list[Edge]]
    first_writes: list[list[Allocation]]  # tiles without an address that the instruction is the first to touch
    touches: dict[Allocation, list[int]]  # instructions that touch them


class _Access:
    """The last writer of a box and who read it since."""

    __slots__ = ("box", "readers", "writer")

    def __init__(self, box: Box | None) -> None:
        self.box = box  # None: all of the allocation
        self.writer = -1
        self.readers: list[int] = []


class _Tracker:
    """The accesses to one allocation."""

    __slots__ = ("accesses", "boxes")

    def __init__(self) -> None:
        self.accesses: dict[Box | None, _Access] = {}
        self.boxes: dict[Recorded, Box | None] = {}


def dependencies_of(instructions: list[NkiInstruction]) -> Dependencies:
    """The edges between `instructions`, which are one core's in program order; producers come first."""
    return _Analysis(instructions).run()


class _Analysis:
    def __init__(self, instructions: list[NkiInstruction]) -> None:
        self.instructions = instructions
        self.trackers: dict[Allocation, _Tracker] = {}
        self.touches: dict[Allocation, list[int]] = {}
        self.addressed: dict[MemoryRegion, list[Allocation]] = {region: [] for region in ON_CHIP}
        self.needed = _hbm_tensors_read_after_writing(instructions)

    def run(self) -> Dependencies:
        edges: list[list[Edge]] = []
        first_writes: list[list[Allocation]] = []
        for index, instruction in enumerate(self.instructions):
            found: dict[int, int] = {}
            fresh: list[Allocation] = []
            recorded = instruction.recorded
            writes = instruction.writes
            accumulates = instruction.engine is engine.tensor and instruction.opcode.startswith("nc_matmul")
            for position in range(len(recorded) - 1, -1, -1):  # sources before destinations
                item = recorded[position]
                allocation = item if item.__class__ is Allocation else item[0]  # type: ignore[index]
                if allocation.buffer not in ON_CHIP and allocation not in self.needed:  # type: ignore[union-attr]
                    continue
                self._touch(allocation, index, fresh, found)  # type: ignore[arg-type]
                tracker = self.trackers[allocation]  # type: ignore[index]
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

    def _touch(self, allocation: Allocation, index: int, fresh: list[Allocation], found: dict[int, int]) -> None:
        """Make the tracker on first use; wait for tiles that were at the same address before."""
        if allocation in self.trackers:
            touches = self.touches.get(allocation)
            if touches is not None and touches[-1] != index:
                touches.append(index)
            return
        self.trackers[allocation] = _Tracker()
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
                for access in self.trackers[other].accesses.values():
                    _wait_for(access, found, REUSE, DATA)
            if not _covers(place, _placed(other)):
                still_there.append(other)
        still_there.append(allocation)
        self.addressed[allocation.buffer] = still_there


def _hbm_tensors_read_after_writing(instructions: list[NkiInstruction]) -> set[Allocation]:
    """HBM tensors that carry data between instructions; plain inputs and outputs need no tracking."""
    written: set[Allocation] = set()
    needed: set[Allocation] = set()
    for instruction in instructions:
        if instruction.engine is not engine.dma and instruction.opcode != "core_barrier":
            if all((r if r.__class__ is Allocation else r[0]).buffer in ON_CHIP for r in instruction.recorded):  # type: ignore[index,union-attr]
                continue
        for position, item in enumerate(instruction.recorded):
            allocation: Allocation = item if item.__class__ is Allocation else item[0]  # type: ignore[assignment,index]
            if allocation.buffer in ON_CHIP:
                continue
            if position < instruction.writes:
                written.add(allocation)
            elif allocation in written:
                needed.add(allocation)
    return needed


# ---- one allocation ---------------------------------------------------------------------------------------------


def _read(tracker: _Tracker, box: Box | None, index: int, found: dict[int, int]) -> None:
    accesses = tracker.accesses
    for access in accesses.values():
        if access.writer >= 0 and (access.box is None or box is None or _meet(access.box, box)):
            found[access.writer] = DATA
    own = accesses.get(box)
    if own is None:
        own = accesses[box] = _Access(box)
    own.readers.append(index)


def _write(tracker: _Tracker, box: Box | None, index: int, found: dict[int, int], accumulates: bool) -> None:
    accesses = tracker.accesses
    covered = []
    for key, access in accesses.items():
        if not (access.box is None or box is None or _meet(access.box, box)):
            continue
        _wait_for(access, found, REUSE, CHAIN if accumulates else REUSE)
        if box is None or (access.box is not None and _inside(access.box, box)):
            covered.append(key)
    for key in covered:
        del accesses[key]
    own = accesses.get(box)
    if own is None:
        own = accesses[box] = _Access(box)
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
    if recorded.__class__ is Allocation:
        return None
    try:
        return tracker.boxes[recorded]
    except KeyError:
        box = tracker.boxes[recorded] = box_of(recorded)  # type: ignore[arg-type]
        return box


def box_of(recorded: tuple) -> Box | None:  # type: ignore[type-arg]
    """Smallest box over the allocation's dimensions that holds the view."""
    allocation, shape, strides_bytes, offset_bytes, held_bytes, _, start_partition = recorded[:7]
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
    for (first, end), (begin, stop) in zip(one, other, strict=True):
        if end <= begin or stop <= first:
            return False
    return True


def _inside(inner: Box, outer: Box) -> bool:
    for (first, end), (begin, stop) in zip(inner, outer, strict=True):
        if first < begin or end > stop:
            return False
    return True


# ---- addresses --------------------------------------------------------------------------------------------------

Place = tuple[int, int, int, int]  # partitions [first, end), bytes [first, end)


def _placed(allocation: Allocation) -> Place | None:
    """Where the kernel put the tile; None when that is left to the compiler."""
    address = allocation.address
    if address is None:
        return None
    partition, byte = address
    return partition, partition + allocation.shape[0], byte, byte + math.prod(allocation.shape[1:]) * allocation.dtype.itemsize


def _overlap(one: Place, other: Place | None) -> bool:
    return other is not None and (
        one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]
    )


def _covers(one: Place, other: Place | None) -> bool:
    return other is not None and (
        one[0] <= other[0] and other[1] <= one[1] and one[2] <= other[2] and other[3] <= one[3]
    )
