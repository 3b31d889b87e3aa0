"""The same bits read as another dtype.

Integers and float32 are stored as they are, so their views are numpy views. 16- and 8-bit floats on chip are held in
float32: a view from or to them converts when it is read, and cannot be written.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from neuron_port.simulator.dtypes import DType
from neuron_port.simulator.errors import ConstraintError
from neuron_port.simulator.tensor import NkiTensor


class ReinterpretedTensor(NkiTensor):
    """A read-only view whose values are decoded from the bits of `base` at every read."""

    __slots__ = ("base", "path")

    def __init__(self, base: NkiTensor, dtype: DType, path: tuple[Any, ...] = ()) -> None:
        self.base = base
        self.storage = base.storage
        self.dtype = dtype
        self.start = base.start
        self.path = path  # functions from array to array: the view operations made since

    @property
    def array(self) -> np.ndarray:  # type: ignore[override]
        """The decoded values; never writeable."""
        base = self.base
        bits = np.ascontiguousarray(base.array.astype(base.dtype.native))
        values = bits.view(self.dtype.native).astype(self.dtype.held)
        values.flags.writeable = False
        return values


def reinterpret(tensor: NkiTensor, dtype: DType) -> NkiTensor:
    """`tensor.view(dtype)`; the last dimension scales with the ratio of the element sizes."""
    if dtype is tensor.dtype:
        return tensor
    if tensor.is_indirect():
        raise ConstraintError(f"view: {tensor!r} has a run-time address", hint="view first, then index")
    old, new = tensor.dtype.itemsize, dtype.itemsize
    last = tensor.array.shape[-1]
    if tensor.strides[-1] != 1 and last != 1 and old != new:
        raise ConstraintError(f"view: the last dimension of {tensor!r} is not contiguous (stride {tensor.strides[-1]})")
    if last * old % new:
        raise ConstraintError(f"view: {last} elements of {tensor.dtype} in the last dimension of {tensor!r} do not "
                              f"divide into {dtype}")  # fmt: skip
    stored_as_is = tensor.array.dtype == tensor.dtype.native
    if stored_as_is and (dtype.held == dtype.native or not tensor.storage.on_chip):
        return NkiTensor(tensor.array.view(dtype.native), tensor.storage, dtype, tensor.start)
    return ReinterpretedTensor(tensor, dtype)
