"""Tensor indirection of NeuronCore-v4: `tile.indirect(index)` gathers or scatters along the free dimension.

Which elements it means depends on the engine, so a view is bound to its offsets when an instruction runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from neuron_port.simulator.bits import ComputedTensor
from neuron_port.simulator.checks import check_generation
from neuron_port.simulator.errors import ConstraintError, UnsupportedError
from neuron_port.simulator.memory import UNDEFINED, MemoryRegion
from neuron_port.simulator.tensor import NkiTensor, Shape
from neuron_port.simulator.trace import Recorded
from neuron_port.simulator.values import refuse_write


class NeedsEngineError(UnsupportedError):
    """An indirect operand was looked at; an error unless the instruction takes tensor indirection."""


class FreeIndirection(NkiTensor):
    """`base.indirect(index, count)`, [P, count]: which elements it means depends on the engine that uses it.

    Instructions that take it (see instructions/indirect_operands.py) turn it into a GatheredTensor; all others refuse it.
    """

    __slots__ = ("base", "count", "index")

    def __init__(self, base: NkiTensor, index: NkiTensor, count: int) -> None:
        self.base = base
        self.index = index
        self.count = count
        self.storage = base.storage
        self.dtype = base.dtype
        self.start = base.start
        self.offset_bytes = base.offset_bytes

    @property
    def array(self) -> np.ndarray:  # type: ignore[override]
        """Not available outside the instructions that take tensor indirection."""
        raise NeedsEngineError(
            f"{self!r} is an operand that does not take tensor indirection",
            hint="gather it into a tile first: nisa.tensor_copy(dst=tile, src=x.indirect(index))",
        )

    @property
    def shape(self) -> Shape:
        """(P, number of offsets)."""
        return Shape((self.base.shape[0], self.count))

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.base.shape[0] * self.count

    @property
    def ndim(self) -> int:
        """2."""
        return 2

    def __repr__(self) -> str:
        return f"`{self.name}` {tuple(self.shape)} {self.dtype} @ {self.buffer.name} by offsets `{self.index.name}`"

    def __getitem__(self, key: Any) -> NkiTensor:
        raise NeedsEngineError(
            f"{self!r} cannot be sliced further", hint="slice the tile, then .indirect(index)"
        )

    def is_indirect(self) -> bool:
        """True."""
        return True


class GatheredTensor(ComputedTensor):
    """The elements that a FreeIndirection means on one engine, with the offsets as they are now."""

    __slots__ = ("base", "columns", "count", "rows")

    def __init__(self, base: NkiTensor, columns: np.ndarray) -> None:
        self.base = base
        self.count = columns.shape[1]
        self.storage = base.storage
        self.dtype = base.dtype
        self.start = base.start
        self.offset_bytes = base.offset_bytes
        self.columns = columns  # [P, count] position of each element in the free dimensions of base
        self.rows = np.arange(columns.shape[0])[:, None]

    @property
    def shape(self) -> Shape:
        """(P, number of offsets)."""
        return Shape(self.columns.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.columns.size

    @property
    def ndim(self) -> int:
        """2."""
        return 2

    def __getitem__(self, key: Any) -> NkiTensor:
        if not isinstance(key, slice):
            raise UnsupportedError(
                f"{self!r} cannot be sliced further", hint="slice the tile before .indirect(index)"
            )
        part = self.base[key]
        first = part.start - self.base.start
        return GatheredTensor(part, self.columns[first : first + part.shape[0]])

    @property
    def array(self) -> np.ndarray:  # type: ignore[override]
        """The gathered elements [P, count]; never writeable."""
        values = self._flat(self.base.array)[self.rows, self.columns]
        values.flags.writeable = False
        return values

    def store(self, values: np.ndarray, writer: int, selection: np.ndarray | None = None) -> None:
        """Scatter `values`; of two to one element the later stays."""
        if not self.base.array.flags.writeable:
            refuse_write(self.base)
        rows, columns = np.broadcast_to(self.rows, self.columns.shape), self.columns
        values = values.reshape(columns.shape)
        if selection is not None:
            chosen = selection.reshape(columns.shape)
            rows, columns, values = rows[chosen], columns[chosen], values[chosen]
        self._flat(self.base.array)[rows, columns] = values
        flat = self.base.reshape((self.base.shape[0], -1))
        self.storage.mark_selected(flat, (rows, columns), writer)

    def states(self) -> np.ndarray:
        """Who wrote each element."""
        return self._flat(self.storage.mask_of(self.base))[self.rows, self.columns]

    def is_written(self) -> bool:
        """Whether all gathered elements are written."""
        if self.storage.state > 0:
            return True
        states = self.states() if self.storage.state else np.zeros(1)
        return bool(states.all()) and int(states.max()) < UNDEFINED

    @staticmethod
    def _flat(array: np.ndarray) -> np.ndarray:
        return array.reshape((array.shape[0], -1), copy=False)

    @property
    def stored(self) -> NkiTensor:
        """The tile that is gathered from."""
        return self.base

    def recorded(self) -> Recorded:
        """As many elements as are moved, spread over all of the tile, any of which may be meant."""
        array = self.base.array
        free = array.size // array.shape[0]
        shape: tuple[int, ...] = (array.shape[0], self.count)
        strides: tuple[int, ...] = (
            array.strides[0],
            max(1, (free - 1) // max(1, self.count - 1)) * array.itemsize,
        )
        if self.count > free:
            shape = (array.shape[0], -(-self.count // free), free)
            strides = (array.strides[0], 0, array.itemsize)
        allocation = self.storage.allocation
        return (allocation, shape, strides, self.offset_bytes, array.itemsize, self.dtype, self.start)


def indirect(tensor: NkiTensor, index: NkiTensor, num_elem: int | None) -> FreeIndirection:
    """`tensor.indirect(index, num_elem)`.

    Raises:
        ConstraintError: older than NeuronCore-v4, memory, index dtype or shape, a tile with gaps.
    """
    check_generation("indirect", 4, "tensor indirection")
    if not tensor.storage.on_chip or tensor.is_indirect() or not tensor.is_contiguous():
        raise ConstraintError(
            f"indirect: {tensor!r} must be a plain tile in SBUF or PSUM with contiguous free dimensions",
            hint="take .indirect(index) of the tile itself; in HBM use .ap(vector_offset=...)",
        )
    if (
        not isinstance(index, NkiTensor)
        or index.buffer is not MemoryRegion.sbuf
        or not index.dtype.is_integer
    ):
        raise ConstraintError(f"indirect: index {index!r} must be an integer tile in SBUF")
    if index.ndim != 2 or index.shape[0] != tensor.shape[0]:
        raise ConstraintError(
            f"indirect: index {index!r} must have shape (P, K) with the {tensor.shape[0]} partitions of {tensor!r}"
        )
    count = index.size if num_elem is None else num_elem
    if not isinstance(count, int | np.integer) or count < 1:
        raise ConstraintError(f"indirect: num_elem is {num_elem!r}, must be a positive integer")
    return FreeIndirection(tensor, index, int(count))
