"""Memory as the kernel sees it: buffers, allocations with live ranges, and who wrote which element last.

A storage that is wholly written carries no mask, so the checks on it cost one comparison.
"""

from __future__ import annotations

import linecache
import math
import re
from collections.abc import Sequence
from enum import Enum
from types import CodeType
from typing import TYPE_CHECKING, Any

import numpy as np

from neuron_port.simulator.dtypes import DType
from neuron_port.simulator.errors import location_of

if TYPE_CHECKING:
    from neuron_port.simulator.tensor import NkiTensor


class MemoryRegion(Enum):
    """Where a tensor lives; the names are AWS's."""

    sbuf = "sbuf"
    psum = "psum"
    private_hbm = "private_hbm"
    shared_hbm = "shared_hbm"


# States of a storage. Positive: every element is written, last by this kind of writer. Then no mask is kept.
UNWRITTEN = 0
BY_OTHERS = 1  # memset, copies, DMA, any engine but TensorE
BY_MATMUL = 2  # TensorE: only these elements may be accumulated onto
MIXED = -1  # look at the mask: 0, BY_OTHERS or BY_MATMUL for each element, perhaps with the bit UNDEFINED
UNDEFINED = 4  # bit in the mask: written, but computed from elements that nothing has written
WRITERS = UNDEFINED - 1
POISON_INTEGER = 4


class Allocation:
    """The record of a tensor that outlives its array: identity, size, live range in instruction indices."""

    __slots__ = (
        "address",
        "buffer",
        "bytes_per_partition",
        "code",
        "dtype",
        "first",
        "given_name",
        "held_bytes",
        "last",
        "line",
        "shape",
        "start_partition",
    )

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: DType,
        buffer: MemoryRegion,
        bytes_per_partition: int,
        name: str,
        code: CodeType | None,
        line: int,
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self.buffer = buffer
        self.bytes_per_partition = bytes_per_partition
        self.given_name = name
        self.held_bytes = dtype.held.itemsize  # of an element in the simulator's own array
        self.code = code
        self.line = line
        self.first = -1  # index of the first instruction that writes it
        self.start_partition = 0  # from nl.ndarray(address=...)
        self.address: tuple[int, int] | None = None  # (partition, byte in it), if the kernel chose it
        self.last = -1  # index of the last instruction that touches it

    @property
    def name(self) -> str:
        """The name given by the kernel, or the variable that it was assigned to."""
        if self.given_name or self.code is None:
            return self.given_name or "tensor"
        assigned = re.match(r"\s*(\w+)\s*=[^=]", linecache.getline(self.code.co_filename, self.line))
        return assigned.group(1) if assigned else f"tensor@{self.line}"

    @property
    def location(self) -> str:
        """`file:line` where the kernel allocates it."""
        return location_of(self.code, self.line)

    def __repr__(self) -> str:
        return f"`{self.name}` {tuple(self.shape)} {self.dtype} @ {self.buffer.name}"


class Storage:
    """The array behind a tensor and all of its views, with the state of every element."""

    __slots__ = (
        "allocation",
        "array",
        "buffer",
        "mask",
        "on_chip",
        "origin",
        "poisoned",
        "remaining",
        "state",
    )

    def __init__(self, array: np.ndarray, allocation: Allocation, state: int = UNWRITTEN) -> None:
        self.array = array
        self.allocation = allocation
        self.buffer = allocation.buffer
        self.on_chip = allocation.buffer is MemoryRegion.sbuf or allocation.buffer is MemoryRegion.psum
        self.state = state
        self.mask: np.ndarray | None = None
        self.remaining = array.size
        self.origin: tuple[str, str | None] | None = None  # (message, location) of the read behind UNDEFINED
        self.poisoned = False  # whether never-written elements were filled with NaN

    def mark_written(self, view: NkiTensor, writer: int) -> None:
        """Remember that `writer` wrote all elements of `view`, a view of this storage."""
        if view.array.size == self.array.size:
            self.state = writer
            self.mask = None
        elif self.state != writer:
            self._mark_part(self.mask_of(view), writer)

    def mark_selected(self, view: NkiTensor, selection: Any, writer: int = BY_OTHERS) -> None:
        """Remember that the elements `view[selection]` were written."""
        if self.state == writer:
            return
        mask = self.mask_of(view)
        before = np.count_nonzero(mask)
        mask[selection] = writer
        self._settle(int(np.count_nonzero(mask) - before))

    def _mark_part(self, mask: np.ndarray, writer: int) -> None:
        fresh = mask.size - np.count_nonzero(mask)
        mask[...] = writer
        self._settle(int(fresh))

    def _settle(self, fresh: int) -> None:
        """Drop the mask once everything is written by one kind of writer."""
        self.remaining -= fresh
        mask = self.mask
        if self.remaining == 0 and mask is not None:
            lowest, highest = int(mask.min()), int(mask.max())
            if lowest == highest < UNDEFINED:
                self.state = lowest
                self.mask = None

    def mask_of(self, view: NkiTensor) -> np.ndarray:
        """The part of the element states that `view` covers; makes the mask on first need."""
        if self.mask is None:
            if self.state > 0:
                self.mask = np.full(self.array.shape, self.state, dtype=np.uint8)
            else:
                self.mask = np.zeros(self.array.shape, dtype=np.uint8)
            self.remaining = 0 if self.state > 0 else self.mask.size
            self.state = MIXED
        itemsize = self.array.itemsize
        array, offset = view.array, view.offset_bytes
        if array.itemsize != itemsize:
            return self._mask_of_reinterpreted(array, offset)
        return np.ndarray(
            array.shape, np.uint8, self.mask, offset // itemsize, [s // itemsize for s in array.strides]
        )

    def _mask_of_reinterpreted(self, array: np.ndarray, offset: int) -> np.ndarray:
        """The bytes that a reinterpreted view covers, rounded outwards to whole elements of the storage."""
        reach = sum((size - 1) * stride for size, stride in zip(array.shape, array.strides, strict=True))
        itemsize = self.array.itemsize
        assert self.mask is not None
        return self.mask.reshape(-1)[
            offset // itemsize : (offset + reach + array.itemsize - 1) // itemsize + 1
        ]

    def is_written(self, view: NkiTensor) -> bool:
        """Whether all elements of `view` are written."""
        if self.state > 0:
            return True
        if self.state != MIXED:
            return False
        mask = self.mask_of(view)
        return bool(mask.all()) and (self.origin is None or int(mask.max()) < UNDEFINED)

    def undefined_in(self, view: NkiTensor) -> np.ndarray:
        """Which elements of `view` are never written, or computed from such elements; true of view's shape."""
        mask = self.mask_of(view)
        return (mask == UNWRITTEN) | (mask >= UNDEFINED)

    def mark_undefined(self, view: NkiTensor, undefined: np.ndarray, origin: tuple[str, str | None]) -> None:
        """Remember that the elements `view[undefined]` were computed from elements that nothing has written."""
        self.mask_of(view)[undefined] |= UNDEFINED
        if self.origin is None:
            self.origin = origin

    def poison(self) -> None:
        """Fill what was never written with NaN (integers with 4), as AWS's simulator does; once."""
        if not self.poisoned and self.mask is not None and self.array.flags.writeable:
            self.array[self.mask == UNWRITTEN] = np.nan if self.array.dtype.kind == "f" else POISON_INTEGER
            self.poisoned = True


def peak_of(
    allocations: list[Allocation], buffer: MemoryRegion, unit: int = 1
) -> tuple[int, int, list[Allocation]]:
    """Largest sum of live tensors in `buffer`: (units, instruction where it is reached, tensors live there).

    A tensor lives from the first write to the last use; each takes ceil(bytes per partition / unit) units. Tensors
    at explicit addresses may share units, which count once.
    """
    changes: list[tuple[int, int, Allocation]] = []
    placed: list[Allocation] = []
    for allocation in allocations:
        if allocation.buffer is buffer and allocation.first >= 0:
            units = -(-allocation.bytes_per_partition // unit)
            if allocation.address is not None:
                placed.append(allocation)
            changes.append((allocation.first * 2, units, allocation))
            changes.append((max(allocation.first, allocation.last) * 2 + 1, -units, allocation))
    changes.sort(key=lambda change: change[0])
    cover = _Cover(placed, unit)
    live = peak = peak_at = 0
    for moment, units, allocation in changes:
        live += units if allocation.address is None else cover.change(allocation, units > 0)
        if live > peak:
            peak, peak_at = live, moment // 2
    at_peak = [a for _, units, a in changes if units > 0 and a.first <= peak_at <= max(a.first, a.last)]
    return peak, peak_at, at_peak


class _Cover:
    """How many units of a partition the live tensors at explicit addresses cover together."""

    def __init__(self, placed: list[Allocation], unit: int) -> None:
        self.unit = unit
        edges = sorted({edge for allocation in placed for edge in self._span(allocation)})
        self.place = {edge: position for position, edge in enumerate(edges)}
        self.lengths = np.diff(np.asarray(edges, dtype=np.int64))
        self.counts = np.zeros(len(self.lengths), dtype=np.int32)

    def _span(self, allocation: Allocation) -> tuple[int, int]:
        first = 0 if allocation.address is None else allocation.address[1]
        return first // self.unit, -(-(first + allocation.bytes_per_partition) // self.unit)

    def change(self, allocation: Allocation, begins: bool) -> int:
        """The change of the covered units when the allocation begins or ends to live."""
        first, end = self._span(allocation)
        part = slice(self.place[first], self.place[end])
        counts, lengths = self.counts[part], self.lengths[part]
        if begins:
            change = int(lengths[counts == 0].sum())
            counts += 1
        else:
            counts -= 1
            change = -int(lengths[counts == 0].sum())
        return change


def repeats_elements(strides: Sequence[int], counts: Sequence[int]) -> bool:
    """Whether two indices of a pattern address the same element."""
    steps = sorted((stride, count) for stride, count in zip(strides, counts, strict=True) if count > 1)
    reach = 0
    nested = True  # each step leads beyond what the finer ones cover
    for stride, count in steps:
        nested = nested and stride > reach
        reach += stride * (count - 1)
    if nested:
        return False
    if math.prod(counts) > reach + 1:
        return True
    offsets = {0}
    for stride, count in steps:
        offsets = {offset + stride * index for offset in offsets for index in range(count)}
    return len(offsets) < math.prod(counts)
