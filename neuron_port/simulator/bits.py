"""The same bits read as another dtype.

Integers and float32 are stored as they are, so their views are numpy views. 16- and 8-bit floats on chip are
held in float32: a view from or to them converts when it is read, and cannot be written.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from neuron_port.simulator.dtypes import DType
from neuron_port.simulator.errors import ConstraintError
from neuron_port.simulator.tensor import NkiTensor
from neuron_port.simulator.trace import Recorded


class ReinterpretedTensor(NkiTensor):
    """A read-only view whose values are decoded from the bits of `base` at every read."""

    __slots__ = ("base", "geometry", "origin_bytes")

    def __init__(
        self,
        base: NkiTensor,
        dtype: DType,
        start: int,
        geometry: tuple[Any, ...] | None = None,
        offset_bytes: int | None = None,
    ) -> None:
        self.base = base
        self.storage = base.storage
        self.dtype = dtype
        self.start = start
        self.geometry = geometry  # shape, byte offset and byte strides of a view of the decoded array
        # Where the decoded array begins, counted in its own elements.
        elements = base.offset_bytes // base.array.itemsize * base.dtype.itemsize // dtype.itemsize
        self.origin_bytes = elements * dtype.held.itemsize
        self.offset_bytes = self.origin_bytes if offset_bytes is None else offset_bytes

    @property
    def array(self) -> np.ndarray:  # type: ignore[override]
        """The decoded values; never writeable."""
        base = self.base
        bits = np.ascontiguousarray(base.array.astype(base.dtype.native))
        values = bits.view(self.dtype.native).astype(self.dtype.held)
        if self.geometry is not None:
            shape, offset, strides = self.geometry
            values = np.ndarray(shape, values.dtype, values, offset, strides)
        values.flags.writeable = False
        return values

    @property
    def stored(self) -> NkiTensor:
        """All of the tile whose bits are read."""
        return self.base

    def recorded(self) -> Recorded:
        """The decoded view; its bytes lie in the tile whose bits are read."""
        array = self.array
        return (
            self.storage.allocation,
            array.shape,
            array.strides,
            self.offset_bytes,
            array.itemsize,
            self.dtype,
            self.start,
        )

    def _view(
        self, array: np.ndarray, start: int | None = None, offset_bytes: int | None = None
    ) -> NkiTensor:
        """The same view operation, repeated at every read."""
        offset = self.offset_bytes if offset_bytes is None else offset_bytes
        geometry = (array.shape, offset - self.origin_bytes, array.strides)
        first = self.start if start is None else start
        return ReinterpretedTensor(self.base, self.dtype, first, geometry, offset)

    def __getitem__(self, key: Any) -> NkiTensor:
        plain = super().__getitem__(key)
        return self._view(plain.array, plain.start, plain.offset_bytes)


def reinterpret(tensor: NkiTensor, dtype: DType) -> NkiTensor:
    """`tensor.view(dtype)`; the last dimension scales with the ratio of the element sizes."""
    if dtype is tensor.dtype:
        return tensor
    if tensor.is_indirect():
        raise ConstraintError(f"view: {tensor!r} has a run-time address", hint="view first, then index")
    old, new = tensor.dtype.itemsize, dtype.itemsize
    last = tensor.array.shape[-1]
    if tensor.strides[-1] != 1 and last != 1 and old != new:
        raise ConstraintError(
            f"view: the last dimension of {tensor!r} is not contiguous (stride {tensor.strides[-1]})"
        )
    if last * old % new:
        raise ConstraintError(
            f"view: {last} elements of {tensor.dtype} in the last dimension of {tensor!r} do not "
            f"divide into {dtype}"
        )
    stored_as_is = tensor.array.dtype == tensor.dtype.native
    if stored_as_is and (dtype.held == dtype.native or not tensor.storage.on_chip):
        array = tensor.array.view(dtype.native)
        return NkiTensor(array, tensor.storage, dtype, tensor.start, tensor.offset_bytes)
    return ReinterpretedTensor(tensor, dtype, tensor.start)
