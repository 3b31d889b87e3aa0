"""Raw access patterns: `.ap()` builds any strided view of a storage, and refuses what leaves it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from neuron_port.simulator import dtypes
from neuron_port.simulator.bits import bit_view
from neuron_port.simulator.errors import ConstraintError, OutOfBoundsError
from neuron_port.simulator.memory import repeats_elements
from neuron_port.simulator.tensor import NkiTensor, Shape


def access_pattern(
    tensor: NkiTensor,
    pattern: Sequence[Sequence[int]],
    offset: int | None,
    scalar_offset: Any,
    vector_offset: NkiTensor | None,
    indirect_dim: int,
    dtype: Any,
) -> NkiTensor:
    """The view [[stride, count], ...] of the storage behind `tensor`; strides and offset in elements."""
    base = tensor
    if dtype is not None and dtypes.resolve(dtype) is not tensor.dtype:
        base = whole(tensor).view(dtype)
        if offset is None and tensor.offset:
            raise ConstraintError(
                f"ap: {tensor!r} starts at element {tensor.offset}, so dtype= needs an explicit offset"
            )
        begin = offset or 0
    else:
        begin = tensor.offset + (offset or 0)
    strides = [int(stride) for stride, _ in pattern]
    counts = [int(count) for _, count in pattern]
    if min(counts) < 1 or min(strides) < 0 or begin < 0:
        raise ConstraintError(
            f"ap: pattern {pattern} at offset {begin} of {tensor!r} has a negative or empty entry"
        )
    if scalar_offset is not None or vector_offset is not None:
        from neuron_port.simulator.indirect import indirect_pattern

        if base is not tensor:
            base = tensor.view(base.dtype)  # the index counts rows of the tensor as given, in the new dtype
        return indirect_pattern(base, strides, counts, begin, scalar_offset, vector_offset, indirect_dim)
    try:
        return static_pattern(base, strides, counts, begin)
    except OutOfBoundsError as error:
        return UnusableTensor(base, counts, error)


class UnusableTensor(NkiTensor):
    """A pattern that leaves its tensor: kernels may make one behind a guard, but no instruction takes it."""

    __slots__ = ("counts", "error")

    def __init__(self, base: NkiTensor, counts: Sequence[int], error: OutOfBoundsError) -> None:
        self.storage = base.storage
        self.dtype = base.dtype
        self.start = 0
        self.offset_bytes = 0
        self.counts = tuple(counts)
        self.error = error

    @property
    def array(self) -> np.ndarray:  # type: ignore[override]
        """There is none: raises what the pattern did wrong, at the line that made it."""
        raise self.error

    @property
    def shape(self) -> Shape:
        """Counts of the pattern."""
        return Shape(self.counts)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.counts)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.counts)


def whole(tensor: NkiTensor) -> NkiTensor:
    """The tensor as it was allocated, whatever view this is."""
    return NkiTensor(tensor.storage.array, tensor.storage, tensor.storage.allocation.dtype)


def static_pattern(tensor: NkiTensor, strides: Sequence[int], counts: Sequence[int], begin: int) -> NkiTensor:
    """The strided view at element `begin` of the storage.

    Raises:
        OutOfBoundsError: the pattern leaves the storage, or on chip the partition.
        ConstraintError: on chip, the first stride does not step by one partition.
    """
    storage = tensor.storage
    root, old = storage.array, storage.allocation.dtype
    elements = root.size * old.itemsize // tensor.dtype.itemsize
    pattern = [[stride, count] for stride, count in zip(strides, counts, strict=True)]
    start = 0
    if storage.on_chip:
        free = elements // root.shape[0]
        if counts[0] > 1 and strides[0] != free:
            raise ConstraintError(
                f"ap: pattern {pattern} steps {strides[0]} elements per partition, but {tensor!r} has {free}",
                hint="the first entry walks contiguous partitions: its stride is the number of free elements",
            )
        row, first = divmod(begin, free)
        start = row + storage.allocation.start_partition
        reach = first + sum(
            (count - 1) * stride for stride, count in zip(strides[1:], counts[1:], strict=True)
        )
        if reach >= free or row + counts[0] > root.shape[0]:
            raise OutOfBoundsError(
                f"ap: pattern {pattern} at offset {begin} leaves {tensor!r} ({free} per partition)"
            )
    elif begin + sum((count - 1) * stride for stride, count in zip(strides, counts, strict=True)) >= elements:
        raise OutOfBoundsError(
            f"ap: pattern {pattern} at offset {begin} leaves {tensor!r} ({elements} elements)"
        )
    view = bit_view(storage, tensor.dtype, counts, strides, begin, start)
    if view.__class__ is NkiTensor and repeats_elements(strides, counts):
        view.array.flags.writeable = False  # what such a write leaves depends on its order
    return view
