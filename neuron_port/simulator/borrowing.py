"""Loads without a copy: a tile that DMA fills from a read-only input keeps to the input until it is looked at.

nc_matmul hands the input's own memory to BLAS, which saves a fifth of the time of a tiled matmul. Everything else
that touches the tile, or writes to it, makes the copy first, and the tile is a plain one from then on. Both the
tile and its storage change their class for as long as they borrow, so that plain tiles pay nothing for the check.
"""

from __future__ import annotations

import sys

import numpy as np

from neuron_port.simulator.memory import BY_OTHERS, UNWRITTEN, MemoryRegion, Storage
from neuron_port.simulator.tensor import NkiTensor
from neuron_port.simulator.trace import Recorded

LEAST_BYTES = 32 * 1024  # a smaller copy costs no more than the bookkeeping
# Of a storage that nothing refers to but one tensor: its slot, the variable here, and the question itself.
REFERENCES_OF_ONE_TENSOR = 3


class BorrowedStorage(Storage):
    """A storage whose array is still a view of the input; looking at `array` copies it."""

    __slots__ = ()

    @property  # type: ignore[override]
    def array(self) -> np.ndarray:
        """The tile's own copy of the input."""
        copied = np.array(self.borrowed, order="C", copy=True)
        self.__class__ = Storage  # type: ignore[assignment]
        self.array = copied
        return copied

    @property
    def borrowed(self) -> np.ndarray:
        """The view of the input."""
        view: np.ndarray = Storage.array.__get__(self)  # type: ignore[attr-defined]
        return view


class BorrowedTile(NkiTensor):
    """The whole of a borrowed storage."""

    __slots__ = ()

    @property  # type: ignore[override]
    def array(self) -> np.ndarray:
        """The tile's own array; from here on the tile is a plain one."""
        array = self.storage.array
        self.__class__ = NkiTensor  # type: ignore[assignment]
        self.array = array
        return array

    @property
    def readable(self) -> np.ndarray:
        """The input's memory, to be read at once."""
        storage = self.storage
        return storage.borrowed if storage.__class__ is BorrowedStorage else self.array  # type: ignore[attr-defined]

    def recorded(self) -> Recorded:
        """Its allocation: it is all of it."""
        return self.storage.allocation


def borrow(dst: NkiTensor, src: NkiTensor) -> bool:
    """Let dst, a whole unwritten tile that nothing else looks at, borrow src, a view of a read-only input."""
    storage, array = dst.storage, src.array
    own = dst.array
    if (
        storage.state != UNWRITTEN
        or own is not storage.array
        or storage.buffer is not MemoryRegion.sbuf
        or own.nbytes < LEAST_BYTES
        or array.dtype != own.dtype
        or array.shape != own.shape
        or array.strides[-1] != own.itemsize
        or src.storage.array.flags.writeable
        or sys.getrefcount(storage) != REFERENCES_OF_ONE_TENSOR
    ):
        return False
    storage.array = dst.array = array
    storage.state = BY_OTHERS
    storage.__class__ = BorrowedStorage
    dst.__class__ = BorrowedTile
    return True
