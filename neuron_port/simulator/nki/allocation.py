"""Allocation of tensors: `nl.ndarray` and what is built on it, with the rules that a tile obeys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from neuron_port.simulator import dtypes
from neuron_port.simulator.context import caller, current_run
from neuron_port.simulator.dtypes import uint8
from neuron_port.simulator.errors import CapacityError, ConstraintError, UnsupportedError
from neuron_port.simulator.instructions.vector_engine import memset
from neuron_port.simulator.memory import BY_OTHERS, Allocation, MemoryRegion, Storage
from neuron_port.simulator.tensor import NkiTensor

SBUF, PSUM, SHARED_HBM = MemoryRegion.sbuf, MemoryRegion.psum, MemoryRegion.shared_hbm


def ndarray(
    shape: Sequence[int],
    dtype: Any,
    buffer: MemoryRegion = SBUF,
    name: str = "",
    address: tuple[int, int] | None = None,
) -> NkiTensor:
    """An unwritten tensor. On chip, shape[0] is the partition dimension.

    `address` (partition, byte offset) is checked for legality; overlap between addresses is not modelled.

    Raises:
        ConstraintError: more than 128 partitions, a rank or size that cannot be, a PSUM address off its bank.
        CapacityError: the tensor alone exceeds its memory.
    """
    run = current_run()
    dtype = dtypes.resolve(dtype)
    sizes = tuple(shape) if not isinstance(shape, int) else (shape,)
    code, line = caller()
    if buffer.__class__ is not MemoryRegion:
        raise ConstraintError(f"buffer is {buffer!r}, must be nl.sbuf, nl.psum, nl.hbm or nl.shared_hbm")
    partition_bytes = math.prod(sizes[1:]) * dtype.itemsize
    allocation = Allocation(sizes, dtype, buffer, partition_bytes, name, code, line)
    if buffer is SBUF or buffer is PSUM:
        _check_tile(run.target, allocation)
        if address is not None:
            _check_address(run.target, allocation, address)
            allocation.start_partition = address[0]
    if any(not isinstance(size, int | np.integer) or size < 1 for size in sizes) or not sizes:
        raise ConstraintError(f"{allocation!r} has a shape that is not made of positive integers")
    run.allocations.append(allocation)
    array = np.empty(sizes, dtype.held)
    return NkiTensor(array, Storage(array, allocation), dtype, allocation.start_partition)


def _check_tile(target: Any, allocation: Allocation) -> None:
    shape = allocation.shape
    if not 2 <= len(shape) <= 5:
        raise ConstraintError(
            f"{allocation!r} has {len(shape)} dimensions; a tile on chip has 2 to 5",
            hint="shape[0] is the partition dimension; use (n, 1) for a column",
        )
    if shape[0] > target.partitions:
        raise ConstraintError(
            f"{allocation!r} has {shape[0]} partitions, at most {target.partitions}",
            hint="put the tile index into a free dimension: (128, tiles, columns)",
        )
    limit = (
        target.sbuf_usable_bytes_per_partition
        if allocation.buffer is SBUF
        else target.psum_banks * target.psum_bank_bytes
    )
    if allocation.bytes_per_partition > limit:
        raise CapacityError(
            f"{allocation!r} takes {allocation.bytes_per_partition} bytes per partition; "
            f"{allocation.buffer.name.upper()} of {target.name} has {limit}",
            hint="loop over smaller tiles",
        )


def _check_address(target: Any, allocation: Allocation, address: tuple[int, int]) -> None:
    partition, offset = address
    if allocation.buffer is PSUM and offset % target.psum_bank_bytes:
        raise ConstraintError(
            f"{allocation!r} at byte {offset} of a partition does not start on a PSUM bank",
            hint="use a multiple of nl.tile_size.psum_bank_fmax_bytes",
        )
    limit = (
        target.sbuf_usable_bytes_per_partition
        if allocation.buffer is SBUF
        else target.psum_banks * target.psum_bank_bytes
    )
    if (
        partition + allocation.shape[0] > 128
        or offset + allocation.bytes_per_partition > limit
        or partition % 32
    ):
        raise ConstraintError(
            f"{allocation!r} does not fit at address {address}", hint="start partitions are 0, 32, 64, 96"
        )


def full(
    shape: Sequence[int], fill_value: float, dtype: Any, buffer: MemoryRegion = SBUF, name: str = ""
) -> NkiTensor:
    """A tensor filled with a constant (one memset on chip)."""
    tensor = ndarray(shape, dtype, buffer, name)
    if tensor.storage.on_chip:
        memset(tensor, int(fill_value) if tensor.dtype.is_integer else fill_value)
    else:
        tensor.array[...] = tensor.dtype.rounded(np.full(1, fill_value, np.float32))
        tensor.storage.mark_written(tensor, BY_OTHERS)
    return tensor


def zeros(shape: Sequence[int], dtype: Any, buffer: MemoryRegion = SBUF, name: str = "") -> NkiTensor:
    """A tensor of zeros."""
    return full(shape, 0, dtype, buffer, name)


def ones(shape: Sequence[int], dtype: Any, buffer: MemoryRegion = SBUF, name: str = "") -> NkiTensor:
    """A tensor of ones."""
    return full(shape, 1, dtype, buffer, name)


def empty_like(
    x: NkiTensor, dtype: Any = None, buffer: MemoryRegion | None = None, name: str = ""
) -> NkiTensor:
    """An unwritten tensor of x's shape, and of its dtype and memory unless given."""
    return ndarray(x.shape, dtype or x.dtype, buffer or x.buffer, name)


def zeros_like(
    x: NkiTensor, dtype: Any = None, buffer: MemoryRegion | None = None, name: str = ""
) -> NkiTensor:
    """A tensor of zeros of x's shape."""
    return zeros(x.shape, dtype or x.dtype, buffer or x.buffer, name)


def shared_constant(constant: Any) -> NkiTensor:
    """A constant numpy array as a read-only tensor in shared HBM."""
    run = current_run()
    if not isinstance(constant, np.ndarray):
        raise UnsupportedError(f"nl.shared_constant of {type(constant).__name__}", hint="pass a numpy array")
    dtype = dtypes.resolve(constant.dtype)
    array = np.array(constant, dtype=dtype.held, order="C")
    array.flags.writeable = False
    code, line = caller()
    allocation = Allocation(array.shape, dtype, SHARED_HBM, array.nbytes, "", code, line)
    run.allocations.append(allocation)
    return NkiTensor(array, Storage(array, allocation, BY_OTHERS), dtype)


def shared_identity_matrix(n: int, dtype: Any = uint8, dst: NkiTensor | None = None) -> NkiTensor:
    """The n x n identity matrix in SBUF."""
    tensor = dst if dst is not None else ndarray((n, n), dtype, SBUF)
    tensor.array[...] = np.eye(n, dtype=tensor.array.dtype)
    tensor.storage.mark_written(tensor, BY_OTHERS)
    allocation = tensor.storage.allocation
    allocation.first = allocation.last = len(current_run().instructions)
    return tensor
