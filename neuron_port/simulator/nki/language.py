"""`nki.language`: dtypes, allocation, loops and operator tokens under AWS's names."""

from __future__ import annotations

import math as _math
from collections.abc import Sequence
from typing import Any

import numpy as _np

from neuron_port.simulator import dtypes as _dtypes
from neuron_port.simulator.context import caller as _caller
from neuron_port.simulator.context import current_run as _current_run
from neuron_port.simulator.dtypes import (
    bfloat16,
    bool_,
    float8_e4m3,
    float8_e4m3fn,
    float8_e5m2,
    float8_e8m0fnu,
    float16,
    float32,
    int8,
    int16,
    int32,
    tfloat32,
    uint8,
    uint16,
    uint32,
)
from neuron_port.simulator.errors import CapacityError as _CapacityError
from neuron_port.simulator.errors import ConstraintError as _ConstraintError
from neuron_port.simulator.errors import UnsupportedError as _UnsupportedError
from neuron_port.simulator.instructions import activations as _activations
from neuron_port.simulator.instructions.operators import OPERATORS as _OPERATORS
from neuron_port.simulator.memory import BY_OTHERS as _BY_OTHERS
from neuron_port.simulator.memory import Allocation as _Allocation
from neuron_port.simulator.memory import MemoryRegion
from neuron_port.simulator.memory import Storage as _Storage
from neuron_port.simulator.nki.mathematics import (
    broadcast_to,
    expand_dims,
    load,
    load_transpose2d,
    matmul,
    max,
    mean,
    min,
    negative,
    prod,
    rms_norm,
    softmax,
    store,
    sum,
    transpose,
    where,
)
from neuron_port.simulator.registers import VirtualRegister as _VirtualRegister
from neuron_port.simulator.tensor import DynamicSlice as _DynamicSlice
from neuron_port.simulator.tensor import NkiTensor

assert _activations  # imported for the tokens that it registers

sbuf, psum = MemoryRegion.sbuf, MemoryRegion.psum
private_hbm, shared_hbm = MemoryRegion.private_hbm, MemoryRegion.shared_hbm
hbm = private_hbm
_ON_CHIP = (sbuf, psum)


class NKIObject:
    """Base class of the records that a kernel may define."""


class _TileSize(NKIObject):
    """Sizes of the machine in elements or bytes."""

    pmax = 128
    psum_fmax = psum_bank_fmax = 512
    psum_bank_fmax_bytes = 2048
    gemm_stationary_fmax = 128
    gemm_moving_fmax = 512
    bn_stats_fmax = 512
    psum_min_align = 4
    sbuf_min_align = 1

    @property
    def psum_num_banks(self) -> int:
        """Banks of PSUM in each partition."""
        return _current_run().target.psum_banks

    @property
    def sbuf_fmax_bytes(self) -> int:
        """Usable SBUF bytes in each partition."""
        return _current_run().target.sbuf_usable_bytes_per_partition

    @property
    def sbuf_fmax(self) -> int:
        """Usable SBUF float32 elements in each partition."""
        return self.sbuf_fmax_bytes // 4

    @property
    def sbuf_size_bytes(self) -> int:
        """SBUF bytes of all partitions."""
        return _current_run().target.sbuf_bytes_per_partition * self.pmax

    @property
    def total_available_sbuf_size(self) -> int:
        """Deprecated name of sbuf_fmax_bytes."""
        return self.sbuf_fmax_bytes


tile_size = _TileSize()


def is_sbuf(buffer: MemoryRegion) -> bool:
    """Whether `buffer` is SBUF."""
    return buffer is sbuf


def is_psum(buffer: MemoryRegion) -> bool:
    """Whether `buffer` is PSUM."""
    return buffer is psum


def is_hbm(buffer: MemoryRegion) -> bool:
    """Whether `buffer` is private or shared HBM."""
    return buffer in (private_hbm, shared_hbm)


def is_on_chip(buffer: MemoryRegion) -> bool:
    """Whether `buffer` is SBUF or PSUM."""
    return buffer in _ON_CHIP


# ---- allocation ------------------------------------------------------------------------------------------


def ndarray(
    shape: Sequence[int],
    dtype: Any,
    buffer: MemoryRegion = sbuf,
    name: str = "",
    address: tuple[int, int] | None = None,
) -> NkiTensor:
    """An unwritten tensor. On chip, shape[0] is the partition dimension.

    `address` (partition, byte offset) is checked for legality; overlap between addresses is not modelled.

    Raises:
        ConstraintError: more than 128 partitions, a rank or size that cannot be, a PSUM address off its bank.
        CapacityError: the tensor alone exceeds its memory.
    """
    run = _current_run()
    dtype = _dtypes.resolve(dtype)
    sizes = tuple(shape) if not isinstance(shape, int) else (shape,)
    code, line = _caller()
    if buffer.__class__ is not MemoryRegion:
        raise _ConstraintError(f"buffer is {buffer!r}, must be nl.sbuf, nl.psum, nl.hbm or nl.shared_hbm")
    partition_bytes = _math.prod(sizes[1:]) * dtype.itemsize
    allocation = _Allocation(sizes, dtype, buffer, partition_bytes, name, code, line)
    if buffer is sbuf or buffer is psum:
        _check_tile(run.target, allocation)
        if address is not None:
            _check_address(run.target, allocation, address)
            allocation.start_partition = address[0]
    if any(not isinstance(size, int | _np.integer) or size < 1 for size in sizes) or not sizes:
        raise _ConstraintError(f"{allocation!r} has a shape that is not made of positive integers")
    run.allocations.append(allocation)
    array = _np.empty(sizes, dtype.held)
    return NkiTensor(array, _Storage(array, allocation), dtype, allocation.start_partition)


def _check_tile(target: Any, allocation: _Allocation) -> None:
    shape = allocation.shape
    if not 2 <= len(shape) <= 5:
        raise _ConstraintError(
            f"{allocation!r} has {len(shape)} dimensions; a tile on chip has 2 to 5",
            hint="shape[0] is the partition dimension; use (n, 1) for a column",
        )
    if shape[0] > target.partitions:
        raise _ConstraintError(
            f"{allocation!r} has {shape[0]} partitions, at most {target.partitions}",
            hint="put the tile index into a free dimension: (128, tiles, columns)",
        )
    limit = (
        target.sbuf_usable_bytes_per_partition
        if allocation.buffer is sbuf
        else target.psum_banks * target.psum_bank_bytes
    )
    if allocation.bytes_per_partition > limit:
        raise _CapacityError(
            f"{allocation!r} takes {allocation.bytes_per_partition} bytes per partition; "
            f"{allocation.buffer.name.upper()} of {target.name} has {limit}",
            hint="loop over smaller tiles",
        )


def _check_address(target: Any, allocation: _Allocation, address: tuple[int, int]) -> None:
    partition, offset = address
    if allocation.buffer is psum and offset % target.psum_bank_bytes:
        raise _ConstraintError(
            f"{allocation!r} at byte {offset} of a partition does not start on a PSUM bank",
            hint="use a multiple of nl.tile_size.psum_bank_fmax_bytes",
        )
    limit = (
        target.sbuf_usable_bytes_per_partition
        if allocation.buffer is sbuf
        else target.psum_banks * target.psum_bank_bytes
    )
    if (
        partition + allocation.shape[0] > 128
        or offset + allocation.bytes_per_partition > limit
        or partition % 32
    ):
        raise _ConstraintError(
            f"{allocation!r} does not fit at address {address}", hint="start partitions are 0, 32, 64, 96"
        )


def full(
    shape: Sequence[int], fill_value: float, dtype: Any, buffer: MemoryRegion = sbuf, name: str = ""
) -> NkiTensor:
    """A tensor filled with a constant (one memset on chip)."""
    from neuron_port.simulator.instructions.vector_engine import memset

    tensor = ndarray(shape, dtype, buffer, name)
    if tensor.storage.on_chip:
        memset(tensor, int(fill_value) if tensor.dtype.is_integer else fill_value)
    else:
        tensor.array[...] = tensor.dtype.rounded(_np.full(1, fill_value, _np.float32))
        tensor.storage.mark_written(tensor.array, _BY_OTHERS)
    return tensor


def zeros(shape: Sequence[int], dtype: Any, buffer: MemoryRegion = sbuf, name: str = "") -> NkiTensor:
    """A tensor of zeros."""
    return full(shape, 0, dtype, buffer, name)


def ones(shape: Sequence[int], dtype: Any, buffer: MemoryRegion = sbuf, name: str = "") -> NkiTensor:
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
    run = _current_run()
    if not isinstance(constant, _np.ndarray):
        raise _UnsupportedError(f"nl.shared_constant of {type(constant).__name__}", hint="pass a numpy array")
    dtype = _dtypes.resolve(constant.dtype)
    array = _np.array(constant, dtype=dtype.held, order="C")
    array.flags.writeable = False
    code, line = _caller()
    allocation = _Allocation(array.shape, dtype, shared_hbm, array.nbytes, "", code, line)
    run.allocations.append(allocation)
    return NkiTensor(array, _Storage(array, allocation, _BY_OTHERS), dtype)


def shared_identity_matrix(n: int, dtype: Any = uint8, dst: NkiTensor | None = None) -> NkiTensor:
    """The n x n identity matrix in SBUF."""
    tensor = dst if dst is not None else ndarray((n, n), dtype, sbuf)
    tensor.array[...] = _np.eye(n, dtype=tensor.array.dtype)
    tensor.storage.mark_written(tensor.array, _BY_OTHERS)
    allocation = tensor.storage.allocation
    allocation.first = allocation.last = len(_current_run().instructions)
    return tensor


# ---- loops and programs ----------------------------------------------------------------------------------


def ds(start: int, size: int) -> _DynamicSlice:
    """The slice [start, start + size)."""
    return _DynamicSlice(start, size)


def affine_range(start: int, stop: int | None = None, step: int = 1) -> range:
    """A loop without dependencies between iterations; unrolled in order here."""
    return range(start) if stop is None else range(start, stop, step)


sequential_range = static_range = affine_range


def program_id(axis: int = 0) -> int:
    """Index of this core in the launch grid: 0, as one core is simulated."""
    return _current_run().program_id


def num_programs(axes: Any = 0) -> int:
    """Number of cores in the launch grid: 1."""
    return _current_run().num_programs


def program_ndim() -> int:
    """Dimensions of the launch grid: 0 without one."""
    return 0


def device_print(print_prefix: str, tensor: NkiTensor) -> None:
    """Print a tensor's values as the device would."""
    print(print_prefix, tensor.array)


class no_reorder:  # noqa: N801 - AWS's name
    """A block whose instructions keep their order; here they always do."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def fori_loop(lower: Any, upper: Any, body_fun: Any, step: int = 1) -> None:
    """A hardware loop: body_fun(register) for lower, lower + step, ... below upper (ints or registers)."""
    if not isinstance(step, int) or step < 1:
        raise _ConstraintError(f"nl.fori_loop: step is {step!r}, must be a positive compile-time integer")
    first, last = (bound.value if isinstance(bound, _VirtualRegister) else bound for bound in (lower, upper))
    for value in range(first, last, step):
        register = _VirtualRegister(value)
        if body_fun(register) is not None:
            raise _ConstraintError(
                "nl.fori_loop: the body returns a value", hint="carry state through SBUF or HBM"
            )


def while_loop(init: Any, body_fun: Any) -> None:
    """A hardware loop: register = body_fun(register) until it holds zero."""
    register = init
    while register.value != 0:
        register = body_fun(register)


# ---- operator tokens -------------------------------------------------------------------------------------


_NOT_SIMULATED = frozenset(
    {
        "abs_max",
        "abs_min",
        "all",
        "ceil",
        "cos",
        "dropout",
        "dynamic_range",
        "float4_e2m1fn_x4",
        "float8_e4m3fn_x4",
        "float8_e5m2_x4",
        "floor",
        "gather_flattened",
        "logical_not",
        "rand",
        "random_seed",
        "tan",
        "trunc",
        "var",
    }
)


def __getattr__(name: str) -> Any:
    operator = _OPERATORS.get(name)
    if operator is not None and (operator.alu or operator.activation or name not in _NOT_SIMULATED):
        return operator
    if name in _NOT_SIMULATED:
        raise _UnsupportedError(f"nki.language.{name} is not simulated", hint="use nisa instructions")
    raise AttributeError(f"nki.language has no `{name}`")


__all__ = [
    "MemoryRegion", "NKIObject", "NkiTensor", "affine_range", "bfloat16", "bool_", "broadcast_to",
    "device_print", "ds", "empty_like", "expand_dims", "float16", "float32", "float8_e4m3", "float8_e4m3fn",
    "float8_e5m2", "float8_e8m0fnu", "fori_loop", "full", "hbm", "int16", "int32", "int8", "is_hbm",
    "is_on_chip", "is_psum", "is_sbuf", "load", "load_transpose2d", "matmul", "max", "mean", "min",
    "ndarray", "negative", "no_reorder", "num_programs", "ones", "private_hbm", "prod", "program_id",
    "program_ndim", "psum", "rms_norm", "sbuf", "sequential_range", "shared_constant", "shared_hbm",
    "shared_identity_matrix", "softmax", "static_range", "store", "sum", "tfloat32", "tile_size",
    "transpose", "uint16", "uint32", "uint8", "where", "while_loop", "zeros", "zeros_like",
]  # fmt: skip
