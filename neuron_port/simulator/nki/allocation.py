"""Allocation of tensors: `nl.ndarray` and what is built on it, with the rules that a tile obeys."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from neuron_port.simulator import dtypes
from neuron_port.simulator.checks import touch
from neuron_port.simulator.context import caller, current_run
from neuron_port.simulator.dtypes import uint8
from neuron_port.simulator.errors import CapacityError, ConstraintError, UnsupportedError
from neuron_port.simulator.instructions.vector_engine import memset
from neuron_port.simulator.memory import BY_OTHERS, UNWRITTEN, Allocation, MemoryRegion, Storage
from neuron_port.simulator.tensor import NkiTensor
from neuron_port.simulator.values import write_raw

SBUF, PSUM, SHARED_HBM = MemoryRegion.sbuf, MemoryRegion.psum, MemoryRegion.shared_hbm


def ndarray(
    shape: Sequence[int],
    dtype: Any,
    buffer: MemoryRegion = SBUF,
    name: str = "",
    address: tuple[int, int] | None = None,
) -> NkiTensor:
    """An unwritten tensor. On chip, shape[0] is the partition dimension.

    `address` is (partition, byte within the partition), on chip only. Tensors may share addresses one after the
    other: reading what another tensor has overwritten is refused when the kernel has ended (hazards.py).

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
            allocation.address = (int(address[0]), int(address[1]))
    elif address is not None:
        raise ConstraintError(
            f"{allocation!r} is given address {address}", hint="only tiles in SBUF and PSUM have addresses"
        )
    if any(not isinstance(size, int | np.integer) or size < 1 for size in sizes) or not sizes:
        raise ConstraintError(f"{allocation!r} has a shape that is not made of positive integers")
    if buffer is SHARED_HBM and run.logical_core is not None:
        return run.logical_core.shared_tensor(run, allocation)
    run.charge(allocation, math.prod(sizes))
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
    limit = _usable_bytes(target, allocation)
    if allocation.bytes_per_partition > limit:
        raise CapacityError(
            f"{allocation!r} takes {allocation.bytes_per_partition} bytes per partition; "
            f"{allocation.buffer.name.upper()} of {target.name} has {limit}",
            hint="loop over smaller tiles",
        )


def _check_address(target: Any, allocation: Allocation, address: Any) -> None:
    """`address` is (partition, byte within it), inside the memory; PSUM tiles start on a bank."""
    if (
        not isinstance(address, tuple | list)
        or len(address) != 2
        or any(isinstance(part, bool) or not isinstance(part, int | np.integer) for part in address)
    ):
        raise ConstraintError(
            f"{allocation!r} is given address {address!r}, must be a pair of integers",
            hint="address=(partition, byte offset within the partition)",
        )
    partition, offset = address
    if allocation.buffer is PSUM and offset % target.psum_bank_bytes:
        raise ConstraintError(
            f"{allocation!r} at byte {offset} of a partition does not start on a PSUM bank",
            hint="use a multiple of nl.tile_size.psum_bank_fmax_bytes",
        )
    limit = _usable_bytes(target, allocation)
    end_partition, end_byte = partition + allocation.shape[0], offset + allocation.bytes_per_partition
    if partition < 0 or offset < 0 or end_partition > target.partitions or end_byte > limit:
        raise ConstraintError(
            f"{allocation!r} at address {address} ends at partition {end_partition} of {target.partitions} and byte "
            f"{end_byte} of {limit} in {allocation.buffer.name.upper()}",
            hint="address=(partition, byte offset within the partition), as the device counts them",
        )


def _usable_bytes(target: Any, allocation: Allocation) -> int:
    """Bytes of one partition of the allocation's memory."""
    if allocation.buffer is SBUF:
        return int(target.sbuf_usable_bytes_per_partition)
    return int(target.psum_banks * target.psum_bank_bytes)


def full(
    shape: Sequence[int], fill_value: float, dtype: Any, buffer: MemoryRegion = SBUF, name: str = ""
) -> NkiTensor:
    """A tensor filled with a constant (one memset on chip)."""
    tensor = ndarray(shape, dtype, buffer, name)
    if tensor.storage.on_chip:
        memset(tensor, int(fill_value) if tensor.dtype.is_integer else fill_value)
    elif tensor.storage.state == UNWRITTEN:  # else the other core has allocated and filled it
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
    """A constant, a numpy array or the path of a `.npy` file, as a read-only tensor in shared HBM."""
    run = current_run()
    if isinstance(constant, str | os.PathLike):
        constant = _loaded(os.fspath(constant))
    if not isinstance(constant, np.ndarray):
        raise UnsupportedError(
            f"nl.shared_constant of {type(constant).__name__}",
            hint="pass a numpy array or the path of a .npy file",
        )
    dtype = dtypes.resolve(constant.dtype)
    array = np.array(constant, dtype=dtype.held, order="C")
    array.flags.writeable = False
    code, line = caller()
    allocation = Allocation(array.shape, dtype, SHARED_HBM, array.nbytes, "", code, line)
    run.charge(allocation, array.size)
    return NkiTensor(array, Storage(array, allocation, BY_OTHERS), dtype)


def _loaded(path: str) -> np.ndarray:
    """The array of a `.npy` file; files that would run code are refused."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ConstraintError(
            f"nl.shared_constant: `{path}` cannot be read: {error}", hint="write it with numpy.save"
        ) from error
    if not isinstance(array, np.ndarray):
        raise ConstraintError(f"nl.shared_constant: `{path}` is an archive", hint="write it with numpy.save")
    return array


def shared_identity_matrix(n: int, dtype: Any = uint8, dst: NkiTensor | None = None) -> NkiTensor:
    """The n x n identity matrix in SBUF, in a new tile or in `dst` [n, n]."""
    tensor = dst if dst is not None else ndarray((n, n), dtype, SBUF)
    if tensor.shape != (n, n) or tensor.buffer is not SBUF:
        raise ConstraintError(
            f"nl.shared_identity_matrix: dst {tensor!r} must have shape ({n}, {n}) and be in SBUF"
        )
    write_raw(tensor, np.eye(n, dtype=tensor.dtype.held))
    touch(tensor.storage, written=True)
    return tensor
