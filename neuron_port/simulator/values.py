"""Reading operands as float32 and writing results with rounding: what every instruction is made of."""

from __future__ import annotations

from typing import Any

import numpy as np

from neuron_port.simulator.bits import ComputedTensor
from neuron_port.simulator.checks import check_vector_operand
from neuron_port.simulator.context import current_run
from neuron_port.simulator.dtypes import FLOAT32, float32
from neuron_port.simulator.errors import ConstraintError, UnsupportedError
from neuron_port.simulator.memory import BY_OTHERS, repeats_elements
from neuron_port.simulator.tensor import NkiTensor

EXACT_INTEGERS = 2**24  # float32 counts exactly up to here


def read(tile: NkiTensor) -> np.ndarray:
    """The tile's values as float32 (no copy for float dtypes)."""
    dtype = tile.dtype
    if dtype.is_float:
        return tile.array
    if dtype.is_packed:
        raise ConstraintError(
            f"{tile!r} holds four elements in one and cannot be computed with",
            hint="multiply it with nisa.nc_matmul_mx, or view it as the dtype of one element",
        )
    if dtype.itemsize == 4 and not np.abs(tile.array.astype(np.int64)).max() <= EXACT_INTEGERS:
        current_run().warn(f"{tile!r} holds integers beyond 2**24, which float32 arithmetic rounds")
    return tile.array.astype(FLOAT32)


def read_like(tile: NkiTensor, shape: tuple[int, ...]) -> np.ndarray:
    """The tile's values as float32 in another shape with the same elements per partition."""
    values = read(tile)
    return values if values.shape == shape else values.reshape(shape)


def write(dst: NkiTensor, values: np.ndarray, writer: int = BY_OTHERS) -> None:
    """Round `values` to dst's dtype, store them, and remember who wrote."""
    dtype = dst.dtype
    array = dst.array
    if dtype is not float32:
        values = rounded(dst, values)
    if values.shape != array.shape:
        values = values.reshape(array.shape)
    try:
        array[...] = values
    except ValueError:
        store_computed(dst, values, writer)
        return
    storage = dst.storage
    if storage.state != writer:
        storage.mark_written(dst, writer)


def rounded(dst: NkiTensor, values: np.ndarray) -> np.ndarray:
    """`values` rounded once to dst's dtype; 8-bit floats that they do not fit are warned of."""
    dtype = dst.dtype
    values = dtype.rounded(values)
    if dtype.itemsize == 1 and dtype.is_float and not np.isfinite(values).all():
        current_run().warn(f"results beyond the range of {dtype} become infinite or NaN in {dst!r}")
    return values


def compute(dst: NkiTensor, function: np.ufunc, *arguments: Any) -> None:
    """dst = function(*arguments), without a temporary array when dst is float32 of the same shape."""
    array = dst.array
    if dst.dtype is float32 and array.shape == arguments[0].shape and array.flags.writeable:
        function(*arguments, out=array)
        storage = dst.storage
        if storage.state != BY_OTHERS:
            storage.mark_written(dst, BY_OTHERS)
    else:
        results = function(*arguments)
        dtype = dst.dtype
        words = dtype.is_integer and dtype.itemsize == 4 and results.dtype == FLOAT32
        if words and not np.abs(results).max() <= EXACT_INTEGERS:
            current_run().warn(
                f"{dst!r} receives integers beyond 2**24 from float32 arithmetic, which rounds them; GpSimdE "
                "computes 32-bit integers exactly"
            )
        write(dst, results)


def write_raw(dst: NkiTensor, values: np.ndarray, writer: int = BY_OTHERS) -> None:
    """Store values that are already representable in dst's dtype."""
    array = dst.array
    try:
        array[...] = values if values.shape == array.shape else values.reshape(array.shape)
    except ValueError:
        store_computed(dst, values, writer)
        return
    storage = dst.storage
    if storage.state != writer:
        storage.mark_written(dst, writer)


def fill(dst: NkiTensor, value: float) -> None:
    """Store one value, representable in dst's dtype, in every element."""
    try:
        dst.array[...] = value
    except ValueError:
        store_computed(dst, np.full(dst.array.shape, value, dst.dtype.held), BY_OTHERS)
        return
    storage = dst.storage
    if storage.state != BY_OTHERS:
        storage.mark_written(dst, BY_OTHERS)


def store_computed(dst: NkiTensor, values: np.ndarray, writer: int) -> None:
    """Store through a view whose elements numpy cannot write in place, or say why that cannot be."""
    if isinstance(dst, ComputedTensor):
        dst.store(values, writer)
        return
    storage = dst.storage
    moving = [axis for axis, step in enumerate(dst.array.strides) if step]
    steps, counts = [dst.array.strides[axis] for axis in moving], [dst.array.shape[axis] for axis in moving]
    if (
        storage.array.flags.writeable
        and storage.array.dtype.isbuiltin
        and len(moving) < dst.array.ndim
        and not repeats_elements(steps, counts)
    ):
        _store_last(dst, values, writer)
        return
    refuse_write(dst)
    raise ValueError(f"{dst!r} refuses values of shape {values.shape}")


def _store_last(dst: NkiTensor, values: np.ndarray, writer: int) -> None:
    """Store through a pattern with steps of 0, as kernels do for results that they do not need: the last stays."""
    array = dst.array
    last = tuple(slice(-1, None) if stride == 0 else slice(None) for stride in array.strides)
    shape = tuple(1 if stride == 0 else size for size, stride in zip(array.shape, array.strides, strict=True))
    kept = np.ndarray(shape, array.dtype, dst.storage.array, dst.offset_bytes, array.strides)
    kept[...] = values.reshape(array.shape)[last]
    dst.storage.mark_written(NkiTensor(kept, dst.storage, dst.dtype, dst.start, dst.offset_bytes), writer)


def refuse_write(dst: NkiTensor) -> None:
    """Explain why a view cannot be written, if it cannot."""
    if dst.array.flags.writeable:
        return
    if not dst.storage.array.flags.writeable:
        raise ConstraintError(
            f"{dst!r} is a kernel input and is written",
            hint="return a new nl.ndarray(..., buffer=nl.shared_hbm); or pass the input as "
            "to_hbm(array, mutable=True) if the kernel updates it in place",
        )
    raise UnsupportedError(
        f"{dst!r} is written through a view whose elements repeat or are reinterpreted",
        hint="write through a plain view of the tile",
    )


def scalar_or_vector(opcode: str, name: str, operand: Any, data: np.ndarray) -> Any:
    """A Python number as float32, or a [P, 1] tile's values shaped to broadcast over `data`."""
    if isinstance(operand, NkiTensor):
        partitions = data.shape[0]
        check_vector_operand(opcode, name, operand, partitions)
        return read(operand).reshape((partitions,) + (1,) * (data.ndim - 1))
    if isinstance(operand, bool | int | float | np.number):
        return FLOAT32.type(operand)
    raise ConstraintError(f"{opcode}: {name} is {operand!r}, must be a number or a (P, 1) tile")
