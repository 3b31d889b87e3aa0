"""The same bits read and written as another dtype.

Integers, float32 and packed elements are stored as they are, so views between them are numpy views. 16- and 8-bit
floats on chip are held in float32: a view from or to them converts when it is read, and again when it is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from neuron_port.simulator.dtypes import DType
from neuron_port.simulator.errors import ConstraintError, UnsupportedError
from neuron_port.simulator.memory import Storage
from neuron_port.simulator.tensor import NkiTensor, Shape
from neuron_port.simulator.trace import Recorded


class ComputedTensor(NkiTensor):
    """A view whose `array` is computed at every read, and which instructions write by `store`."""

    __slots__ = ()

    def store(self, values: np.ndarray, writer: int, selection: np.ndarray | None = None) -> None:
        """Write representable `values` of the view's size into the storage, and remember the writer.

        `selection` (of the view's shape) tells which of them are new; the others are what was there.
        """
        raise NotImplementedError


class ReinterpretedTensor(ComputedTensor):
    """A view of a storage's bits as another dtype; one of the two is held in float32.

    `counts`, `steps_bytes` and `begin_bytes` describe it in bytes of the declared dtypes, as on the device.
    """

    __slots__ = ("begin_bytes", "counts", "steps_bytes")

    def __init__(
        self,
        storage: Storage,
        dtype: DType,
        counts: Sequence[int],
        steps_bytes: Sequence[int],
        begin_bytes: int,
        start: int,
    ) -> None:
        if begin_bytes % dtype.itemsize:
            raise ConstraintError(
                f"view: byte {begin_bytes} of {storage.allocation!r} is no address of a {dtype} element",
                hint=f"start the view on a multiple of {dtype.itemsize} bytes",
            )
        self.storage = storage
        self.dtype = dtype
        self.start = start
        self.counts = tuple(counts)
        self.steps_bytes = tuple(steps_bytes)
        self.begin_bytes = begin_bytes
        self.offset_bytes = begin_bytes // dtype.itemsize * dtype.held.itemsize

    # ---- values -------------------------------------------------------------------------------------------

    @property
    def array(self) -> np.ndarray:  # type: ignore[override]
        """The decoded values; never writeable."""
        values = self._bits().astype(self.dtype.held)
        values.flags.writeable = False
        return values

    def store(self, values: np.ndarray, writer: int, selection: np.ndarray | None = None) -> None:
        """Encode `values` and put the bits into the storage."""
        if selection is not None and not selection.all() and not self.storage.is_written(self.stored):
            raise UnsupportedError(
                f"a part of {self!r}, a view of other bits, is written before the rest of it",
                hint="initialise the tile with nisa.memset first",
            )
        if not self.storage.array.flags.writeable:
            raise ConstraintError(
                f"{self!r} is a kernel input and is written",
                hint="pass the input as to_hbm(array, mutable=True) if the kernel updates it in place",
            )
        if any(step == 0 and count > 1 for step, count in zip(self.steps_bytes, self.counts, strict=True)):
            raise UnsupportedError(
                f"{self!r} is written through a view whose elements repeat",
                hint="write through a plain view of the tile",
            )
        encoded = np.ascontiguousarray(values.reshape(self.counts), dtype=self.dtype.native)
        if self._stored_as_is:
            self._layout_array().view(self.dtype.native)[...] = encoded
        else:
            covered = self.stored.array
            native = self.storage.allocation.dtype.native
            if self._covers_exactly:
                covered[...] = encoded.view(native).reshape(covered.shape)
            else:
                bits = covered.astype(native, order="C")
                self._within(bits)[...] = encoded
                covered[...] = bits
        self.storage.mark_written(self.stored, writer)

    def _bits(self) -> np.ndarray:
        """The elements in their native dtype: a view of the storage where that is possible, else a copy."""
        native = self.dtype.native
        if self._stored_as_is:
            return self._layout_array().view(native)
        bits = self.stored.array.astype(self.storage.allocation.dtype.native, order="C")
        if self._covers_exactly:
            return bits.view(native).reshape(self.counts)
        return self._within(bits)

    @property
    def _stored_as_is(self) -> bool:
        return self.storage.array.dtype == self.storage.allocation.dtype.native

    def _layout_array(self) -> np.ndarray:
        """Unsigned integers in the view's layout. Where the storage holds float32 only the layout means something.

        That layout lies inside the storage's memory, since float32 is the widest element.
        """
        carrier = self.storage.array.view(f"u{self.storage.array.itemsize}")
        return np.ndarray(self.counts, f"u{self.dtype.itemsize}", carrier, self.begin_bytes, self.steps_bytes)

    @property
    def _covers_exactly(self) -> bool:
        """Whether `stored` holds the bits of this view, all of them, and in its order."""
        old, new = self.storage.allocation.dtype.itemsize, self.dtype.itemsize
        if not self._covers_rows or self.begin_bytes % old:
            return False
        return new >= old or (self.steps_bytes[-1] == new and self.counts[-1] * new % old == 0)

    @property
    def _covers_rows(self) -> bool:
        """Whether `stored` has this view's outer dimensions, with the last one rounded outwards."""
        old = self.storage.allocation.dtype.itemsize
        return not any(step % old for step in self.steps_bytes[:-1])

    def _within(self, bits: np.ndarray) -> np.ndarray:
        """This view inside the native elements `bits` of `stored`, a contiguous array."""
        steps = self.steps_bytes
        if self._covers_rows:
            steps = (*bits.strides[:-1], steps[-1])
        begin = self.begin_bytes % bits.itemsize
        carrier = bits.view(f"u{bits.itemsize}")
        view = np.ndarray(self.counts, f"u{self.dtype.itemsize}", carrier, begin, steps)
        return view.view(self.dtype.native)

    @property
    def stored(self) -> NkiTensor:
        """The storage's own elements that hold these bits, rounded outwards to whole elements."""
        storage = self.storage
        array, old, new = storage.array, storage.allocation.dtype.itemsize, self.dtype.itemsize
        first = self.begin_bytes // old
        last_reach = (self.counts[-1] - 1) * self.steps_bytes[-1] + new
        if new >= old:  # one more dimension: the old elements within each new one
            counts = [*self.counts, new // old]
            steps = [*(step // old * array.itemsize for step in self.steps_bytes), array.itemsize]
        elif self._covers_rows:
            counts = [*self.counts[:-1], -(-(self.begin_bytes % old + last_reach) // old)]
            steps = [*(step // old * array.itemsize for step in self.steps_bytes[:-1]), array.itemsize]
        else:  # from the first to the last of them
            outer = zip(self.counts[:-1], self.steps_bytes[:-1], strict=True)
            reach = last_reach + sum((count - 1) * step for count, step in outer)
            counts, steps = [-(-(self.begin_bytes % old + reach) // old)], [array.itemsize]
        carrier = array.view(f"u{array.itemsize}")
        offset = first * array.itemsize
        view = np.ndarray(counts, carrier.dtype, carrier, offset, steps).view(array.dtype)
        return NkiTensor(view, storage, storage.allocation.dtype, self.start, offset)

    # ---- what the layout alone tells ----------------------------------------------------------------------

    @property
    def shape(self) -> Shape:
        """Sizes of the dimensions."""
        return Shape(self.counts)

    @property
    def strides(self) -> tuple[int, ...]:
        """Elements between neighbours, for each dimension."""
        return tuple(step // self.dtype.itemsize for step in self.steps_bytes)

    @property
    def offset(self) -> int:
        """Elements of this dtype from the start of the storage."""
        return self.begin_bytes // self.dtype.itemsize

    def recorded(self) -> Recorded:
        """The view in declared bytes, scaled to the dtype that decoded values are held in."""
        scale = self.dtype.held.itemsize // self.dtype.itemsize
        steps = tuple(step * scale for step in self.steps_bytes)
        held = self.dtype.held.itemsize
        allocation = self.storage.allocation
        return (allocation, self.counts, steps, self.offset_bytes, held, self.dtype, self.start)

    # ---- view operations: carried out on the layout --------------------------------------------------------

    def _again(self, plain: NkiTensor) -> NkiTensor:
        array = plain.array
        return ReinterpretedTensor(
            self.storage, self.dtype, array.shape, array.strides, plain.offset_bytes, plain.start
        )

    def _layout(self) -> NkiTensor:
        return NkiTensor(self._layout_array(), self.storage, self.dtype, self.start, self.begin_bytes)

    def __getitem__(self, key: Any) -> NkiTensor:
        return self._again(self._layout()[key])

    def permute(self, dims: Sequence[int]) -> NkiTensor:
        """Dimensions in the order `dims`."""
        return self._again(self._layout().permute(dims))

    def broadcast(self, dim: int, size: int) -> NkiTensor:
        """A size-1 dimension repeated `size` times."""
        return self._again(self._layout().broadcast(dim, size))

    def expand_dim(self, dim: int) -> NkiTensor:
        """A new dimension of size 1 at position `dim`."""
        return self._again(self._layout().expand_dim(dim))

    def squeeze_dim(self, dim: int) -> NkiTensor:
        """The view without its size-1 dimension `dim`."""
        return self._again(self._layout().squeeze_dim(dim))

    def _reshaped(self, shape: tuple[int, ...], what: str) -> NkiTensor:
        return self._again(self._layout()._reshaped(shape, what))


def bit_view(
    storage: Storage,
    dtype: DType,
    counts: Sequence[int],
    strides: Sequence[int],
    begin: int,
    start: int,
) -> NkiTensor:
    """The view of `storage` as `dtype` with `counts` elements, strides and offset in elements of `dtype`.

    The caller has checked that it stays inside.
    """
    array, old = storage.array, storage.allocation.dtype
    as_is = array.dtype == old.native
    if dtype is old or (as_is and (dtype.held == dtype.native or not storage.on_chip)):
        shown = array.dtype if dtype is old else dtype.native
        itemsize = shown.itemsize
        steps = [stride * itemsize for stride in strides]
        # ml_dtypes arrays export no buffer, so their bits are viewed as integers on the way.
        carrier = array if array.dtype.isbuiltin else array.view(f"u{array.itemsize}")
        kind = shown if shown.isbuiltin else np.dtype(f"u{itemsize}")
        view = np.ndarray(counts, kind, carrier, begin * itemsize, steps)
        if any(stride == 0 and count > 1 for stride, count in zip(strides, counts, strict=True)):
            view.flags.writeable = False
        return NkiTensor(view if kind is shown else view.view(shown), storage, dtype, start, begin * itemsize)
    steps = [stride * dtype.itemsize for stride in strides]
    return ReinterpretedTensor(storage, dtype, counts, steps, begin * dtype.itemsize, start)


def reinterpret(tensor: NkiTensor, dtype: DType) -> NkiTensor:
    """`tensor.view(dtype)`; the last dimension scales with the ratio of the element sizes."""
    if dtype is tensor.dtype:
        return tensor
    if tensor.is_indirect():
        raise ConstraintError(f"view: {tensor!r} has a run-time address", hint="view first, then index")
    old, new = tensor.dtype.itemsize, dtype.itemsize
    shape, strides = tensor.shape, tensor.strides
    last = shape[-1]
    if strides[-1] != 1 and last != 1 and old != new:
        raise ConstraintError(
            f"view: the last dimension of {tensor!r} is not contiguous (stride {strides[-1]})"
        )
    begin_bytes = tensor.offset * old
    misfit = last * old % new or begin_bytes % new
    misfit = misfit or any(s * old % new for s, n in zip(strides[:-1], shape[:-1], strict=True) if n > 1)
    if misfit:
        raise ConstraintError(
            f"view: {last} elements of {tensor.dtype} in the last dimension of {tensor!r} do not "
            f"divide into {dtype}"
        )
    counts = [*shape[:-1], last * old // new]
    steps = [stride * old // new for stride in strides[:-1]]
    steps.append(strides[-1] if old == new else 1)
    return bit_view(tensor.storage, dtype, counts, steps, begin_bytes // new, tensor.start)
