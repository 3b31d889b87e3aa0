"""NkiTensor: a named view of a storage. Every view operation makes another numpy view; nothing is copied.

Rank rules (NKI 0.6): on chip the partition dimension always stays and a view has at least two dimensions;
in HBM an integer index drops its dimension and a view has at least one.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from neuron_port.simulator import dtypes
from neuron_port.simulator.dtypes import DType
from neuron_port.simulator.errors import ConstraintError, OutOfBoundsError, UnsupportedError
from neuron_port.simulator.memory import MemoryRegion, Storage
from neuron_port.simulator.trace import Recorded

MAXIMUM_DIMENSIONS = 5


class Shape(tuple[int, ...]):
    """A tuple that also equals a list of the same sizes, as kernels compare both."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return tuple.__eq__(self, tuple(other) if isinstance(other, list) else other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = tuple.__hash__


class DynamicSlice:
    """`nl.ds(start, size)`: the slice [start, start + size)."""

    __slots__ = ("size", "start")

    def __init__(self, start: int, size: int) -> None:
        self.start = start
        self.size = size


class NkiTensor:
    """A view: `array` (numpy, in the held dtype), its storage, its NKI dtype, and where it starts.

    `array` holds float32 for every float dtype on chip and in kernel-made HBM; only plain 16- and 8-bit
    inputs keep their own numpy dtype, and only DMA reads those.
    """

    __slots__ = ("array", "dtype", "offset_bytes", "start", "storage")

    def __init__(
        self, array: np.ndarray, storage: Storage, dtype: DType, start: int = 0, offset_bytes: int = 0
    ) -> None:
        self.array = array
        self.storage = storage
        self.dtype = dtype
        self.start = start  # first partition; 0 in HBM
        self.offset_bytes = offset_bytes  # from the storage's first element to the view's, in array's bytes

    # ---- attributes ---------------------------------------------------------------------------------------

    @property
    def shape(self) -> Shape:
        """Sizes of the dimensions; compares equal with tuples and lists."""
        return Shape(self.array.shape)

    @property
    def strides(self) -> tuple[int, ...]:
        """Elements between neighbours, for each dimension."""
        itemsize = self.array.itemsize
        return tuple(stride // itemsize for stride in self.array.strides)

    @property
    def offset(self) -> int:
        """Elements from the start of the storage to the first element of the view."""
        return self.offset_bytes // self.array.itemsize

    @property
    def buffer(self) -> MemoryRegion:
        """The memory that holds it."""
        return self.storage.buffer

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return self.array.ndim

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.array.size

    @property
    def name(self) -> str:
        """The given name, or the kernel variable that the tensor was assigned to."""
        return self.storage.allocation.name

    def __repr__(self) -> str:
        return f"`{self.name}` {tuple(self.shape)} {self.dtype} @ {self.buffer.name}"

    def __bool__(self) -> bool:
        """True: a tensor that is there. What it holds is not known when the kernel is traced."""
        from neuron_port.simulator.context import context

        if context.run is not None:
            context.run.warn(f"{self!r} is used as a condition: it is true, whatever the tensor holds")
        return True

    def __len__(self) -> int:
        return self.array.shape[0]

    @property
    def readable(self) -> np.ndarray:
        """The values, to be read at once: as `array`, but a tile that borrows an input (borrowing.py) goes on."""
        return self.array

    @property
    def stored(self) -> NkiTensor:
        """The plain view of the storage whose elements this tensor depends on."""
        return self

    def is_written(self) -> bool:
        """Whether all elements that it depends on are written."""
        return self.storage.is_written(self.stored)

    def states(self) -> np.ndarray:
        """Who wrote each element (see memory.py)."""
        return self.storage.mask_of(self.stored)

    def recorded(self) -> Recorded:
        """What the trace keeps of it: its allocation alone when it is all of it."""
        array, storage = self.array, self.storage
        if array is storage.array:
            return storage.allocation
        return (
            storage.allocation,
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
        return NkiTensor(
            array,
            self.storage,
            self.dtype,
            self.start if start is None else start,
            self.offset_bytes if offset_bytes is None else offset_bytes,
        )

    def _axis(self, dim: int, what: str, *, free_only: bool = True) -> int:
        axis = dim + self.ndim if dim < 0 else dim
        if not 0 <= axis < self.ndim:
            raise OutOfBoundsError(f"{what}: dimension {dim} does not exist in {self!r}")
        if free_only and axis == 0 and self.storage.on_chip:
            raise ConstraintError(
                f"{what}: dimension 0 of {self!r} is the partition dimension and stays as it is"
            )
        return axis

    # ---- indexing -----------------------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> NkiTensor:
        array = self.array
        shape = array.shape
        rank = len(shape)
        on_chip = self.storage.on_chip
        items = key if type(key) is tuple else (key,)
        if Ellipsis in items:
            items = self._expand_ellipsis(items)
        if len(items) > rank:
            raise OutOfBoundsError(f"{len(items)} indices for the {rank} dimensions of {self!r}")
        start = self.start
        strides = array.strides
        offset_bytes = self.offset_bytes
        result: list[slice | int] = []
        dropped = 0
        for axis, item in enumerate(items):
            size = shape[axis]
            if type(item) is slice:
                begin, end, step = item.start, item.stop, item.step
                if begin is None and end is None and step is None:
                    result.append(item)
                    continue
                begin = 0 if begin is None else begin + size if begin < 0 else begin
                end = size if end is None else end + size if end < 0 else end
                step = 1 if step is None else step
            elif type(item) is DynamicSlice:
                begin, step = _integer(item.start, self), 1
                end = begin + _integer(item.size, self)
            else:
                begin = _integer(item, self)
                begin = begin + size if begin < 0 else begin
                end, step = begin + 1, 1
                if 0 <= begin < size and not (on_chip and axis == 0):
                    offset_bytes += begin * strides[axis]
                    result.append(begin)
                    dropped += 1
                    continue
            if not 0 <= begin < end <= size or step < 1:
                if 0 <= begin == end <= size and step > 0 and not on_chip:
                    result.append(slice(begin, end))  # a core without work: a view that no instruction takes
                    continue
                raise self._out_of_bounds(axis, item, size)
            if axis == 0 and on_chip:
                if step != 1:
                    raise ConstraintError(
                        f"index {item} skips partitions of {self!r}",
                        hint="a tile covers a contiguous range of partitions",
                    )
                start += begin
            if begin:
                offset_bytes += begin * strides[axis]
            result.append(slice(begin, end, step))
        if dropped and rank - dropped < (2 if on_chip else 1):
            _keep_last(result, rank, 2 if on_chip else 1)
        return NkiTensor(array[tuple(result)], self.storage, self.dtype, start, offset_bytes)

    def __setitem__(self, key: Any, value: Any) -> None:
        raise UnsupportedError(
            f"assignment into {self!r}", hint="write with an instruction: nisa.tensor_copy(dst=...)"
        )

    def _expand_ellipsis(self, items: tuple[Any, ...]) -> tuple[Any, ...]:
        at = next(i for i, item in enumerate(items) if item is Ellipsis)
        missing = self.ndim - len(items) + 1
        return items[:at] + (slice(None),) * missing + items[at + 1 :]

    def _out_of_bounds(self, axis: int, item: Any, size: int) -> OutOfBoundsError:
        shown = f"ds({item.start}, {item.size})" if type(item) is DynamicSlice else item
        return OutOfBoundsError(
            f"index {shown} leaves dimension {axis} (size {size}) of {self!r}",
            hint="slices are not clamped, and on chip not empty: end a tail tile with min(start + tile, size)",
        )

    def slice(self, dim: int, start: int, end: int, step: int = 1) -> NkiTensor:
        """The elements start, start + step, ... below `end` of dimension `dim`."""
        axis = self._axis(dim, "slice", free_only=False)
        if start < 0 or end < 0:
            raise self._out_of_bounds(axis, slice(start, end, step), self.array.shape[axis])
        return self[(slice(None),) * axis + (slice(start, end, step),)]

    def select(self, dim: int, index: Any) -> NkiTensor:
        """One element of dimension `dim`, which goes away; index may be a [1, 1] tensor, read at run time."""
        axis = self._axis(dim, "select", free_only=False)
        if isinstance(index, int | np.integer):
            return self[(slice(None),) * axis + (int(index),)]
        from neuron_port.simulator.indirect import dynamic_select

        return dynamic_select(self, axis, index)

    def vector_select(self, dim: int, vector_offset: NkiTensor) -> NkiTensor:
        """Row vector_offset[p] of dimension 0 for each partition p (HBM only)."""
        from neuron_port.simulator.indirect import vector_select

        return vector_select(self, dim, vector_offset)

    # ---- reshaping ----------------------------------------------------------------------------------------

    def permute(self, dims: Sequence[int]) -> NkiTensor:
        """Dimensions in the order `dims`; on chip dims[0] must be 0."""
        if sorted(dims) != list(range(self.ndim)):
            raise ConstraintError(f"permute: {tuple(dims)} is not an order of the dimensions of {self!r}")
        if self.storage.on_chip and dims[0] != 0:
            raise ConstraintError(
                f"permute: {tuple(dims)} moves the partition dimension of {self!r}",
                hint="use nisa.nc_transpose or nisa.dma_transpose",
            )
        return self._view(self.array.transpose(tuple(dims)))

    def broadcast(self, dim: int, size: int) -> NkiTensor:
        """A size-1 dimension repeated `size` times (stride 0)."""
        axis = self._axis(dim, "broadcast")
        shape = list(self.array.shape)
        if shape[axis] != 1:
            raise ConstraintError(f"broadcast: dimension {dim} of {self!r} has size {shape[axis]}, not 1")
        shape[axis] = size
        return self._view(np.broadcast_to(self.array, shape))

    def expand_dim(self, dim: int) -> NkiTensor:
        """A new dimension of size 1 at position `dim`."""
        if dim == 0 and self.storage.on_chip:
            raise ConstraintError(
                f"expand_dim: position 0 of {self!r} is the partition dimension and stays first"
            )
        if not 0 <= dim <= self.ndim:
            raise OutOfBoundsError(f"expand_dim: no position {dim} in {self!r}")
        return self._limited(np.expand_dims(self.array, dim), "expand_dim")

    def squeeze_dim(self, dim: int) -> NkiTensor:
        """The view without its size-1 dimension `dim`."""
        axis = self._axis(dim, "squeeze_dim")
        if self.array.shape[axis] != 1:
            raise ConstraintError(
                f"squeeze_dim: dimension {dim} of {self!r} has size {self.array.shape[axis]}, not 1"
            )
        return self._view(self.array.squeeze(axis))

    def reshape_dim(self, dim: int, shape: Sequence[int]) -> NkiTensor:
        """Dimension `dim` split into `shape`; one entry may be -1."""
        axis = self._axis(dim, "reshape_dim", free_only=len(shape) > 1)
        old = self.array.shape
        known = math.prod(size for size in shape if size != -1)
        sizes = [old[axis] // known if size == -1 and known else size for size in shape]
        if math.prod(sizes) != old[axis]:
            raise ConstraintError(
                f"reshape_dim: {tuple(shape)} does not multiply to dimension {dim} of {self!r}"
            )
        return self._reshaped((*old[:axis], *sizes, *old[axis + 1 :]), "reshape_dim")

    def flatten_dims(self, start_dim: int, end_dim: int) -> NkiTensor:
        """Dimensions start_dim to end_dim (inclusive) merged into one."""
        first, last = self._axis(start_dim, "flatten_dims"), self._axis(end_dim, "flatten_dims")
        old = self.array.shape
        return self._reshaped(
            (*old[:first], math.prod(old[first : last + 1]), *old[last + 1 :]), "flatten_dims"
        )

    def reshape(self, shape: Sequence[int]) -> NkiTensor:
        """The same elements in another shape; on chip dimension 0 stays."""
        sizes = tuple(shape)
        if -1 in sizes:
            known = -math.prod(sizes)
            sizes = tuple(self.size // known if size == -1 and known else size for size in sizes)
        if math.prod(sizes) != self.size:
            raise ConstraintError(
                f"reshape: {sizes} has {math.prod(sizes)} elements, {self!r} has {self.size}"
            )
        if self.storage.on_chip and sizes[0] != self.array.shape[0]:
            raise ConstraintError(
                f"reshape: {sizes} changes the partition dimension of {self!r}",
                hint="data moves between partitions only by an instruction",
            )
        return self._reshaped(sizes, "reshape")

    def _reshaped(self, shape: tuple[int, ...], what: str) -> NkiTensor:
        try:
            array = self.array.reshape(shape, copy=False)
        except ValueError:
            raise ConstraintError(
                f"{what}: {shape} is no view of {self!r} with strides {self.strides}",
                hint="reshape before slicing or permuting, or copy to a tile first",
            ) from None
        return self._limited(array, what)

    def _limited(self, array: np.ndarray, what: str) -> NkiTensor:
        if array.ndim > MAXIMUM_DIMENSIONS and self.storage.on_chip:
            raise ConstraintError(
                f"{what}: {self!r} would have {array.ndim} dimensions, at most {MAXIMUM_DIMENSIONS} on chip"
            )
        return self._view(array)

    def rearrange(
        self,
        src_pattern: Sequence[Any],
        dst_pattern: Sequence[Any],
        fixed_sizes: dict[str, int] | None = None,
    ) -> NkiTensor:
        """Split, reorder and merge dimensions by name, with tuples as groups (as in einops)."""
        if len(src_pattern) != self.ndim:
            raise ConstraintError(
                f"rearrange: pattern {src_pattern} does not name the dimensions of {self!r}"
            )
        sizes = dict(fixed_sizes or {})
        split: list[int] = []
        names: list[str] = []
        for size, entry in zip(self.array.shape, src_pattern, strict=True):
            group = (entry,) if isinstance(entry, str) else tuple(entry)
            unknown = [name for name in group if name not in sizes]
            known = math.prod(sizes[name] for name in group if name in sizes)
            if len(unknown) > 1 or size % known or (not unknown and known != size):
                raise ConstraintError(f"rearrange: sizes of {group} cannot be found from {size} in {self!r}")
            if unknown:
                sizes[unknown[0]] = size // known
            split += [sizes[name] for name in group]
            names += group
        groups = [(entry,) if isinstance(entry, str) else tuple(entry) for entry in dst_pattern]
        if sorted(names) != sorted(name for group in groups for name in group):
            raise ConstraintError(f"rearrange: {dst_pattern} does not use the names of {src_pattern}")
        view = self._reshaped(tuple(split), "rearrange").permute(
            [names.index(n) for group in groups for n in group]
        )
        merged = tuple(math.prod(sizes[name] for name in group) for group in groups)
        return view if merged == view.array.shape else view._reshaped(merged, "rearrange")

    # ---- raw access ---------------------------------------------------------------------------------------

    def view(self, dtype: Any) -> NkiTensor:
        """The same bits read as another dtype; the last dimension scales with the element size."""
        from neuron_port.simulator.bits import reinterpret

        return reinterpret(self, dtypes.resolve(dtype))

    reinterpret_cast = view

    def ap(
        self,
        pattern: Sequence[Sequence[int]],
        offset: int | None = None,
        scalar_offset: Any = None,
        vector_offset: NkiTensor | None = None,
        indirect_dim: int = 0,
        dtype: Any = None,
    ) -> NkiTensor:
        """Raw access pattern [[stride, count], ...] over the storage; `offset` adds to the view's own."""
        from neuron_port.simulator.access import access_pattern

        return access_pattern(self, pattern, offset, scalar_offset, vector_offset, indirect_dim, dtype)

    def indirect(self, index: NkiTensor, num_elem: int | None = None) -> NkiTensor:
        """The elements [P, num_elem] at the offsets in `index`, along the free dimension (NeuronCore-v4)."""
        from neuron_port.simulator.indirection import indirect

        return indirect(self, index, num_elem)

    def get_pattern(self) -> list[list[int]]:
        """The view as [[stride, count], ...]."""
        return [[stride, count] for stride, count in zip(self.strides, self.array.shape, strict=True)]

    def is_contiguous(self) -> bool:
        """Whether the free dimensions (on chip) or all dimensions (HBM) cover storage without gaps."""
        expected = 1
        first = 1 if self.storage.on_chip else 0
        for size, stride in reversed(list(zip(self.array.shape, self.strides, strict=True))[first:]):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return True

    def is_indirect(self) -> bool:
        """Whether the address depends on a value read at run time."""
        return False

    def resolved(self) -> NkiTensor:
        """The view at its run-time address: itself, unless it is indirect."""
        return self


def _integer(value: Any, tensor: NkiTensor) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise UnsupportedError(
            f"index {value!r} of {tensor!r} is no compile-time integer, slice or nl.ds",
            hint="run-time addresses go through .ap(scalar_offset=...), .ap(vector_offset=...) or .select",
        ) from None


def _keep_last(result: list[slice | int], rank: int, least: int) -> None:
    """Turn the last integers back into size-1 slices until the view keeps `least` dimensions."""
    kept = rank - sum(1 for item in result if isinstance(item, int))
    for axis in range(len(result) - 1, -1, -1):
        item = result[axis]
        if kept >= least:
            return
        if isinstance(item, int):
            result[axis] = slice(item, item + 1)
            kept += 1
