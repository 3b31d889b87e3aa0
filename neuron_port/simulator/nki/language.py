"""`nki.language`: dtypes, allocation, loops and operator tokens under AWS's names."""

from __future__ import annotations

from typing import Any

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
from neuron_port.simulator.errors import ConstraintError as _ConstraintError
from neuron_port.simulator.errors import UnsupportedError as _UnsupportedError
from neuron_port.simulator.instructions.operators import OPERATORS as _OPERATORS
from neuron_port.simulator.memory import MemoryRegion
from neuron_port.simulator.nki.allocation import (
    empty_like,
    full,
    ndarray,
    ones,
    shared_constant,
    shared_identity_matrix,
    zeros,
    zeros_like,
)
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
