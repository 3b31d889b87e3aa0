"""Races between the two cores of a logical core: accesses to the same bytes of shared HBM that nothing orders.

The simulation runs one core at a time, so a race never shows in its results; it is found afterwards, in what both
cores' traces say they touched. A core_barrier orders accesses to its data for both cores; so does a collective
that both issue on it. Between accesses that only other synchronization separates (sendrecv, a barrier on another
tensor) the documents promise no order, as a barrier blocks one engine and DMA queues run on: that is a warning.
Writes of the same values by both cores, the usual fate of code that does not ask for nl.program_id, are no race.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from neuron_port.simulator.cores import LogicalCore
from neuron_port.simulator.errors import RaceError, location_of
from neuron_port.simulator.memory import Allocation, MemoryRegion
from neuron_port.simulator.trace import NkiInstruction, Operand, Recorded, engine

SHARED_HBM = MemoryRegion.shared_hbm
NEVER_IN_HBM = (engine.tensor, engine.vector, engine.scalar)
MEETINGS = ("core_barrier", "sendrecv")


@dataclass(frozen=True, eq=False, slots=True)
class Access:
    """One operand in shared HBM of one instruction."""

    core: int
    instruction: NkiInstruction
    recorded: Recorded
    rows: np.ndarray | None  # which rows of the operand, in gathers and scatters
    writes: bool
    digest: int | None  # of the written values
    moment: int  # how often the two cores have met before it

    @property
    def doing(self) -> str:
        """Such as `core 1 writes at kernel.py:12`."""
        verb = "writes" if self.writes else "reads"
        return f"core {self.core} {verb} at {self.instruction.location}"

    @property
    def same_write(self) -> tuple[object, ...] | None:
        """Equal for writes of equal values to equal places; None where that is not known."""
        if self.digest is None:
            return None
        place = self.recorded if isinstance(self.recorded, Allocation) else self.recorded[1:6]
        return (place, None if self.rows is None else self.rows.tobytes(), self.digest)


# Accesses of core 0 and of core 1.
Sides = tuple[list[Access], list[Access]]


def check_races(core: LogicalCore) -> None:
    """Refuse unordered accesses of both cores to the same bytes; warn of those that are ordered by accident.

    Raises:
        RaceError: the first such pair, with the lines of both cores.
    """
    for (allocation, _), sides in _accesses_by_period(core).items():
        if not (sides[0] and sides[1]) or not any(access.writes for side in sides for access in side):
            continue
        moments = sorted({access.moment for side in sides for access in side})
        for moment in moments:
            at_once = tuple([access for access in side if access.moment == moment] for side in sides)
            if (pair := _conflict(core, allocation, at_once)) is not None:  # type: ignore[arg-type]
                _refuse(allocation, *pair)
        if len(moments) > 1 and (pair := _conflict(core, allocation, sides)) is not None:
            _warn(core, allocation, *pair)


def _refuse(allocation: Allocation, first: Access, second: Access) -> NoReturn:
    raise RaceError(
        f"{first.doing} and {second.doing} the same bytes of {allocation!r}, and nothing orders the two",
        location=second.instruction.location,
        hint=f"let both cores execute nisa.core_barrier({allocation.name}, (0, 1)) in between, or give each core "
        "bytes of its own",
    )


def _warn(core: LogicalCore, allocation: Allocation, first: Access, second: Access) -> None:
    core.runs[0].warnings[
        f"{second.instruction.location}: {first.doing} and {second.doing} the same bytes of {allocation!r}; only "
        "sendrecv, or core_barrier on other data, lies in between, which orders no DMA for sure: add "
        f"nisa.core_barrier({allocation.name}, (0, 1))"
    ] = None


def _times_written(element: int, allocation: Allocation, side: list[Access]) -> int:
    """How often the scatters of one core write an element."""
    numbers = np.arange(math.prod(allocation.shape), dtype=np.int32)
    scatters = (access for access in side if access.writes and access.rows is not None)
    return sum(int(np.count_nonzero(_touched(numbers, allocation, one) == element)) for one in scatters)


def _warn_of_sink(core: LogicalCore, allocation: Allocation, sides: Sides, element: int, row: int) -> None:
    """A row that one core alone scatters into repeatedly: AWS's kernels send padding to one that nobody reads."""
    first, second = (_last_on(element, allocation, side) for side in sides)
    core.runs[0].warnings[
        f"{second.instruction.location}: {first.doing} and {second.doing} scatter into the same row {row} of "
        f"{allocation!r}; which of the two values it keeps is undefined, so nothing may look at it"
    ] = None


def warn_of_diverging_loops(core: LogicalCore) -> None:
    """Hardware loops must be the same on both cores (spec of LNC2): warn of the first that differs."""
    first, second = (run.loops for run in core.runs)
    for position in range(max(len(first), len(second))):
        a = first[position] if position < len(first) else None
        b = second[position] if position < len(second) else None
        if a != b:
            described = [
                f"core {index} runs "
                + ("none" if loop is None else f"{loop[2]} iterations at {_place(loop)}")
                for index, loop in enumerate((a, b))
            ]
            where = a or b
            assert where is not None
            core.runs[0].warnings[
                f"{_place(where)}: hardware loop number {position + 1} differs: {'; '.join(described)}; both cores "
                "of a logical core must follow the same control flow"
            ] = None
            return


def _place(loop: tuple[object, int, int]) -> str:
    return location_of(loop[0], loop[1])  # type: ignore[arg-type]


# ---- who touches what, between which barriers -------------------------------------------------------------------


def _accesses_by_period(core: LogicalCore) -> dict[tuple[Allocation, int], Sides]:
    """Accesses by (tensor, number of the barriers on it before): what is in different periods is ordered."""
    together = _issued_together(core)
    found: dict[tuple[Allocation, int], Sides] = defaultdict(lambda: ([], []))
    for number, run in enumerate(core.runs):
        moment = 0
        periods: dict[Allocation, int] = defaultdict(int)
        for instruction in run.instructions:
            meets = instruction.opcode in MEETINGS or (number, instruction.index) in together
            if meets:
                moment += 1
                if instruction.opcode != "sendrecv":
                    for recorded in instruction.recorded:
                        periods[_allocation_of(recorded)] += 1
            elif instruction.engine not in NEVER_IN_HBM:
                for access in _shared_operands(core, number, instruction, moment):
                    allocation = _allocation_of(access.recorded)
                    found[allocation, periods[allocation]][number].append(access)
    return found


def _shared_operands(
    core: LogicalCore, number: int, instruction: NkiInstruction, moment: int
) -> Iterator[Access]:
    if instruction.attributes.get("indirect") == "skipped":
        return
    key = (number, instruction.index)
    recorded_operands = instruction.recorded
    # A tensor copied onto itself, a fence for earlier transfers, changes nothing.
    is_fence = instruction.opcode == "dma_copy" and recorded_operands[0] == recorded_operands[1]
    for position, recorded in enumerate(recorded_operands):
        allocation = _allocation_of(recorded)
        if allocation.buffer is not SHARED_HBM:
            continue
        writes = position < instruction.writes and not is_fence
        rows = None
        if (named := core.rows.get(key)) is not None and _allocation_of(named[0]) is allocation:
            recorded, rows = named
        digest = core.digests.get(key) if writes else None
        yield Access(number, instruction, recorded, rows, writes, digest, moment)


def _issued_together(core: LogicalCore) -> set[tuple[int, int]]:
    """(core, index) of collectives that both cores issue on the same tensors: one collective of the pair."""
    issued: list[list[tuple[int, object]]] = []
    for run in core.runs:
        moment = 0
        mine: list[tuple[int, object]] = []
        for instruction in run.instructions:
            if instruction.opcode in MEETINGS:
                moment += 1
            elif "ranks" in instruction.attributes:
                places = tuple(
                    r if isinstance(r, Allocation) else (r[0], *r[1:4]) for r in instruction.recorded
                )
                shared = all(_allocation_of(r).buffer is SHARED_HBM for r in instruction.recorded)
                if shared:
                    mine.append((instruction.index, (moment, instruction.opcode, places)))
        issued.append(mine)
    together: set[tuple[int, int]] = set()
    for (index_0, what_0), (index_1, what_1) in zip(issued[0], issued[1], strict=False):
        if what_0 == what_1:
            together |= {(0, index_0), (1, index_1)}
    return together


def _allocation_of(recorded: Recorded) -> Allocation:
    return recorded if isinstance(recorded, Allocation) else recorded[0]


# ---- which of them meet in memory ---------------------------------------------------------------------------------

NOBODY = -1
SEVERAL = -2  # writes of different values


def _conflict(core: LogicalCore, allocation: Allocation, sides: Sides) -> tuple[Access, Access] | None:
    """A write and an access of the other core that share bytes and do not come to the same in any order.

    Of two writers, the bytes end up as either wrote them last: that is certain if both wrote the same. A reader
    sees its own last write if all that the other core writes there is the same. A row that
    both scatter into, one of them repeatedly, only warns, as a row that one scatter writes twice does.
    """
    if not _may_meet(sides):
        return None
    kinds = _kinds_of_writes(sides)
    last = [_painted(allocation, side, kinds, blend=False) for side in sides]
    unlike = (last[0] != NOBODY) & (last[1] != NOBODY) & (last[0] != last[1])
    scatters = [kind for access, kind in kinds.items() if access.rows is not None]
    if scatters and unlike.any():
        both = np.isin(last[0], scatters) & np.isin(last[1], scatters) & unlike
        row_elements = math.prod(allocation.shape[1:])
        for row in np.unique(np.flatnonzero(both) // row_elements):
            element = int(row) * row_elements + int(np.argmax(both[row * row_elements :]))
            if any(_times_written(element, allocation, side) > 1 for side in sides):
                unlike[row * row_elements : (row + 1) * row_elements] = False
                _warn_of_sink(core, allocation, sides, element, int(row))
    if unlike.any():
        element = int(np.argmax(unlike))
        return tuple(_last_on(element, allocation, side) for side in sides)  # type: ignore[return-value]
    for mine, others in (sides, sides[::-1]):
        if not any(access.writes for access in mine) or all(access.writes for access in others):
            continue
        written = _painted(allocation, mine, kinds, blend=True)
        own = np.full(written.shape, NOBODY, np.int32)
        for access in others:
            if access.writes:
                _paint(own, allocation, access, kinds[access], blend=False)
                continue
            theirs = _touched(written, allocation, access)
            bad = (theirs != NOBODY) & (theirs != _touched(own, allocation, access))
            if bad.any():
                return _writer_under(access, allocation, mine, bad), access
    return None


def _kinds_of_writes(sides: Sides) -> dict[Access, int]:
    """A number for every write; the same for writes of equal values to equal places."""
    numbers: dict[object, int] = {}
    kinds: dict[Access, int] = {}
    for side in sides:
        for access in side:
            if access.writes:
                what = access.same_write or access
                kinds[access] = numbers.setdefault(what, len(numbers))
    return kinds


def _painted(
    allocation: Allocation, side: list[Access], kinds: dict[Access, int], *, blend: bool
) -> np.ndarray:
    """Element -> kind of the write to it: the last, or SEVERAL where kinds blend."""
    owners = np.full(math.prod(allocation.shape), NOBODY, np.int32)
    for access in side:
        if access.writes:
            _paint(owners, allocation, access, kinds[access], blend=blend)
    return owners


def _paint(owners: np.ndarray, allocation: Allocation, access: Access, kind: int, *, blend: bool) -> None:
    view = _window(owners, allocation, access.recorded)
    where = ... if access.rows is None else access.rows
    if blend:
        before = view[where]
        view[where] = np.where((before == NOBODY) | (before == kind), kind, SEVERAL)
    else:
        view[where] = kind


def _touched(owners: np.ndarray, allocation: Allocation, access: Access) -> np.ndarray:
    view = _window(owners, allocation, access.recorded)
    return view if access.rows is None else view[access.rows]


def _last_on(element: int, allocation: Allocation, side: list[Access]) -> Access:
    """The last write of a core to an element."""
    for access in reversed(side):
        if access.writes and _painted(allocation, [access], {access: 0}, blend=False)[element] == 0:
            return access
    raise AssertionError("the element is written")


def _writer_under(reader: Access, allocation: Allocation, side: list[Access], bad: np.ndarray) -> Access:
    """A write of `side` to an element that the reader finds uncertain; the last of them."""
    for access in reversed(side):
        if access.writes:
            owners = _painted(allocation, [access], {access: 0}, blend=False)
            if ((_touched(owners, allocation, reader) == 0) & bad).any():
                return access
    raise AssertionError("the elements are written")


def _may_meet(sides: Sides) -> bool:
    """Whether what one core writes and what the other touches overlap as whole ranges of bytes."""
    for mine, others in (sides, sides[::-1]):
        spans = [_span(access) for access in mine if access.writes]
        if spans:
            first, end = min(span[0] for span in spans), max(span[1] for span in spans)
            if any(begin < end and first < stop for begin, stop in map(_span, others)):
                return True
    return False


def _span(access: Access) -> tuple[int, int]:
    """[first, end) of the bytes of an operand, all of the tensor's for a whole tensor."""
    recorded = access.recorded
    if isinstance(recorded, Allocation):
        return 0, math.prod(recorded.shape) * recorded.dtype.itemsize
    return Operand(*recorded).byte_range


def _window(owners: np.ndarray, allocation: Allocation, recorded: Recorded) -> np.ndarray:
    """The elements of the tensor that an operand covers; rounded outwards if it is read as another dtype."""
    if isinstance(recorded, Allocation):
        return owners.reshape(recorded.shape)
    _, shape, strides_bytes, offset_bytes, held_bytes, dtype, _ = recorded
    steps = [stride // held_bytes for stride in strides_bytes]
    begin = offset_bytes // held_bytes
    if dtype.itemsize == allocation.dtype.itemsize:
        itemsize = owners.itemsize
        return np.ndarray(shape, owners.dtype, owners, begin * itemsize, [step * itemsize for step in steps])
    reach = begin + 1 + sum((size - 1) * step for size, step in zip(shape, steps, strict=True))
    return owners[
        begin * dtype.itemsize // allocation.dtype.itemsize : -(
            -reach * dtype.itemsize // allocation.dtype.itemsize
        )
    ]
