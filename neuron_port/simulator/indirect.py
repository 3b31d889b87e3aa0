"""Views whose address is read at run time: one scalar offset, or one row index for each partition.

They are resolved when an instruction executes, so they see the index as it is then, like the hardware.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from neuron_port.simulator.access import static_pattern
from neuron_port.simulator.bits import bit_view
from neuron_port.simulator.checks import check_index
from neuron_port.simulator.errors import ConstraintError, OutOfBoundsError, UnsupportedError
from neuron_port.simulator.memory import MemoryRegion
from neuron_port.simulator.registers import VirtualRegister
from neuron_port.simulator.tensor import NkiTensor, Shape


class IndirectTensor(NkiTensor):
    """A view without an address until its index is read; only instructions that resolve it accept it."""

    __slots__ = ("base", "begin", "counts", "index", "row_elements", "rows", "steps", "vector")

    def __init__(
        self,
        base: NkiTensor,
        steps: Sequence[int],
        counts: Sequence[int],
        begin: int,
        index: Any,
        row_elements: int,
        rows: int,
        *,
        vector: bool,
    ) -> None:
        self.base = base
        self.storage = base.storage
        self.dtype = base.dtype
        self.start = 0
        self.offset_bytes = 0
        self.steps = list(steps)
        self.counts = list(counts)
        self.begin = begin  # static element offset into the storage
        self.index = index
        self.row_elements = row_elements  # elements that one unit of the index moves
        self.rows = rows  # valid indices are 0 .. rows - 1
        self.vector = vector

    @property
    def array(self) -> np.ndarray:  # type: ignore[override]
        """Not available before the index is read."""
        raise UnsupportedError(
            f"{self!r} has a run-time address, which this instruction does not take",
            hint="copy it to a tile with nisa.dma_copy or nisa.tensor_copy first",
        )

    @property
    def shape(self) -> Shape:
        """Counts of the pattern."""
        return Shape(self.counts)

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.counts))

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.counts)

    def __repr__(self) -> str:
        kind = "vector" if self.vector else "scalar"
        return f"`{self.name}` {tuple(self.counts)} {self.dtype} @ {self.buffer.name} at a {kind} offset"

    def __getitem__(self, key: Any) -> NkiTensor:
        raise UnsupportedError(
            f"{self!r} cannot be sliced further", hint="slice first, then select or .ap(...)"
        )

    def is_indirect(self) -> bool:
        """True."""
        return True

    def in_bounds(self) -> bool:
        """Whether the scalar index lies inside the tensor."""
        return 0 <= self._scalar_index() < self.rows

    def resolved(self) -> NkiTensor:
        """The plain view at the address that the scalar index gives now."""
        if self.vector:
            raise UnsupportedError(f"{self!r} is a gather or scatter, which only nisa.dma_copy executes")
        index = self._scalar_index()
        if not 0 <= index < self.rows:
            raise OutOfBoundsError(
                f"run-time index {index} leaves the {self.rows} positions of {self.base!r}",
                hint="bound the index, or use oob_mode=nisa.oob_mode.skip in nisa.dma_copy",
            )
        return static_pattern(self.base, self.steps, self.counts, self.begin + index * self.row_elements)

    def _scalar_index(self) -> int:
        if isinstance(self.index, VirtualRegister):
            return self.index.value
        check_index("scalar_offset", self.index)
        return int(self.index.array.reshape(-1)[0])

    def rows_view(self) -> NkiTensor:
        """All rows that a vector index can choose: [rows, *free counts], a view of the storage."""
        root, stored_as = self.storage.array, self.storage.allocation.dtype
        elements = root.size * stored_as.itemsize // self.dtype.itemsize
        reach = self.begin + sum((c - 1) * s for c, s in zip(self.counts[1:], self.steps[1:], strict=True))
        rows = min(self.rows, (elements - 1 - reach) // self.row_elements + 1)
        if rows < 1:
            raise OutOfBoundsError(f"the pattern of {self!r} leaves the tensor for every index")
        steps, counts = [self.row_elements, *self.steps[1:]], [rows, *self.counts[1:]]
        return bit_view(self.storage, self.dtype, counts, steps, self.begin, 0)

    def row_indices(self) -> np.ndarray:
        """The [P] integer indices as they are now, one for each partition."""
        if self.index.array.shape[0] != self.counts[0] or self.index.size != self.counts[0]:
            raise ConstraintError(
                f"vector_offset: index {self.index!r} must have shape ({self.counts[0]}, 1)",
                hint="one row index for each partition of the pattern; only dma_transpose takes columns of them",
            )
        check_index("vector_offset", self.index)
        return self.index.array.reshape(-1).astype(np.int64)

    def column_indices(self) -> np.ndarray:
        """As many indices as the pattern has rows, read down the columns of the [P, N] index tile."""
        check_index("vector_offset", self.index)
        flat = self.index.array.reshape(self.index.array.shape[0], -1).T.reshape(-1)
        return flat[: self.counts[0]].astype(np.int64)


def indirect_pattern(
    tensor: NkiTensor, steps: list[int], counts: list[int], begin: int, scalar: Any, vector: Any, dim: int
) -> NkiTensor:
    """`.ap()` with a run-time offset; one index unit moves by the elements right of `dim` in the shape."""
    if scalar is not None and vector is not None:
        raise ConstraintError(
            f"ap: {tensor!r} has both scalar_offset and vector_offset", hint="give one of them"
        )
    if tensor.is_indirect():
        raise ConstraintError(f"ap: {tensor!r} is already indirect")
    shape = tensor.array.shape
    if not 0 <= dim < len(shape):
        raise OutOfBoundsError(f"ap: indirect_dim {dim} does not exist in {tensor!r}")
    row_elements = int(np.prod(shape[dim + 1 :], dtype=np.int64))
    if vector is not None:
        _check_vector_offset(tensor, vector, counts[0], dim)
        return IndirectTensor(tensor, steps, counts, begin, vector, row_elements, shape[0], vector=True)
    _check_scalar_offset(tensor, scalar, dim)
    return IndirectTensor(tensor, steps, counts, begin, scalar, row_elements, shape[dim], vector=False)


def dynamic_select(tensor: NkiTensor, axis: int, index: Any) -> NkiTensor:
    """Element `index` of dimension `axis`, read at run time; the dimension goes away."""
    _check_scalar_offset(tensor, index, axis)
    strides, shape = tensor.strides, tensor.array.shape
    steps = [*strides[:axis], *strides[axis + 1 :]]
    counts = [*shape[:axis], *shape[axis + 1 :]]
    return IndirectTensor(
        tensor, steps, counts, tensor.offset, index, strides[axis], shape[axis], vector=False
    )


def vector_select(tensor: NkiTensor, dim: int, index: NkiTensor) -> NkiTensor:
    """Row index[p] of dimension 0 for each partition p."""
    counts = [index.array.shape[0], *tensor.array.shape[1:]]
    _check_vector_offset(tensor, index, counts[0], dim)
    strides = tensor.strides
    return IndirectTensor(
        tensor, list(strides), counts, tensor.offset, index, strides[0], tensor.array.shape[0], vector=True
    )


def _check_vector_offset(tensor: NkiTensor, index: Any, partitions: int, dim: int) -> None:
    if dim != 0:
        raise ConstraintError(f"vector_offset works on dimension 0 only, not {dim} of {tensor!r}")
    if tensor.storage.on_chip:
        raise ConstraintError(
            f"vector_offset: {tensor!r} must be in HBM", hint="gather with nisa.nc_n_gather on chip"
        )
    if (
        not isinstance(index, NkiTensor)
        or index.buffer is not MemoryRegion.sbuf
        or not index.dtype.is_integer
    ):
        raise ConstraintError(f"vector_offset: index {index!r} must be an int32 or uint32 tile in SBUF")
    if index.size < partitions:
        raise ConstraintError(
            f"vector_offset: index {index!r} must have shape ({partitions}, 1)",
            hint="one row index for each partition of the pattern",
        )


def _check_scalar_offset(tensor: NkiTensor, index: Any, dim: int) -> None:
    if isinstance(index, VirtualRegister):
        return
    if not isinstance(index, NkiTensor) or index.size != 1 or not index.dtype.is_integer:
        raise ConstraintError(
            f"scalar_offset of {tensor!r} is {index!r}, must be a (1, 1) integer tile in SBUF or a register"
        )
    if index.buffer is not MemoryRegion.sbuf:
        raise ConstraintError(
            f"scalar_offset: index {index!r} must be in SBUF", hint="copy it with nisa.dma_copy"
        )
    if tensor.storage.on_chip and dim == 0:
        raise ConstraintError(f"scalar_offset: dimension 0 of {tensor!r} is the partition dimension")
