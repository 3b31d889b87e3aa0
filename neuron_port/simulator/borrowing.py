"""Loads without a copy: a tile that DMA fills from a read-only input keeps to the input until it is looked at.

nc_matmul hands the input's own memory to BLAS, which saves a fifth of the time of a tiled matmul. Everything else
that touches the tile, or writes to it, makes the copy first, and the tile is a plain one from then on. Both the
tile and its storage change their class for as long as they borrow, so that plain tiles pay nothing for the check.
"""

from __future__ import annotations

import sys
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from neuron_port.simulator.memory import BY_OTHERS, UNWRITTEN, MemoryRegion, Storage
from neuron_port.simulator.tensor import NkiTensor
from neuron_port.simulator.trace import Recorded

LEAST_BYTES = 32 * 1024  # a smaller copy costs no more than the bookkeeping
SLOT: Any = vars(Storage)["array"]  # what BorrowedStorage.array hides


class BorrowedStorage(Storage):
    """A storage whose array is still a view of the input; looking at `array` copies it."""

    __slots__ = ()

    @property
    def array(self) -> np.ndarray:  # type: ignore[override]
        """The tile's own copy of the input."""
        copied = np.array(self.borrowed, order="C", copy=True)
        self.__class__ = Storage  # type: ignore[assignment]
        self.array = copied  # type: ignore[misc]
        return copied

    @property
    def borrowed(self) -> np.ndarray:
        """The view of the input."""
        view: np.ndarray = SLOT.__get__(self)
        return view


class BorrowedTile(NkiTensor):
    """The whole of a borrowed storage."""

    __slots__ = ()

    @property
    def array(self) -> np.ndarray:  # type: ignore[override]
        """The tile's own array; from here on the tile is a plain one."""
        array = self.storage.array
        self.__class__ = NkiTensor  # type: ignore[assignment]
        self.array = array  # type: ignore[misc]
        return array

    @property
    def readable(self) -> np.ndarray:
        """The input's memory, to be read at once."""
        storage = self.storage
        return storage.borrowed if isinstance(storage, BorrowedStorage) else self.array

    def recorded(self) -> Recorded:
        """Its allocation: it is all of it."""
        return self.storage.allocation


def borrow(dst: NkiTensor, src: NkiTensor) -> bool:
    """Let dst, a whole unwritten tile that nothing else looks at, borrow src, a view of a read-only input."""
    array, own = src.array, dst.array
    if (
        dst.dtype is not src.dtype
        or dst.storage.state != UNWRITTEN
        or own is not dst.storage.array
        or own.nbytes < LEAST_BYTES
        or dst.storage.buffer is not MemoryRegion.sbuf
        or array.dtype != own.dtype
        or array.shape != own.shape
        or array.strides[-1] != own.itemsize
        or src.storage.array.flags.writeable
        or _references(dst) != _references_of_one_tensor()
    ):
        return False
    storage = dst.storage
    storage.array = dst.array = array
    storage.state = BY_OTHERS
    storage.__class__ = BorrowedStorage
    dst.__class__ = BorrowedTile
    return True


def _references(tensor: Any) -> int:
    """How many references to the tensor's storage Python counts from here."""
    return sys.getrefcount(tensor.storage)


@cache
def _references_of_one_tensor() -> int:
    """What _references gives for a storage that one tensor has to itself, in this version of Python."""
    return _references(SimpleNamespace(storage=object()))
