"""`nki.language`: dtypes, allocation, loops and operator tokens under AWS's names."""

from __future__ import annotations

from typing import Any

from neuron_port.simulator.checks import require_written as _require_written
from neuron_port.simulator.context import current_run as _current_run
from neuron_port.simulator.dtypes import (
    DType,
    bfloat16,
    bool_,
    float4_e2m1fn_x4,
    float8_e4m3,
    float8_e4m3fn,
    float8_e4m3fn_x4,
    float8_e5m2,
    float8_e5m2_x4,
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
from neuron_port.simulator.nki.elementary import ceil, cos, floor, logical_not, tan, trunc
from neuron_port.simulator.nki.loops import (
    affine_range,
    dynamic_range,
    fori_loop,
    no_reorder,
    sequential_range,
    static_range,
    while_loop,
)
from neuron_port.simulator.nki.mathematics import (
    broadcast_to,
    expand_dims,
    gather_flattened,
    load,
    load_transpose2d,
    matmul,
    negative,
    rms_norm,
    softmax,
    store,
    transpose,
    where,
)
from neuron_port.simulator.nki.objects import NKIObject
from neuron_port.simulator.nki.reductions import all, max, mean, min, prod, sum, var
from neuron_port.simulator.nki.sampling import dropout, rand, random_seed
from neuron_port.simulator.tensor import DynamicSlice as _DynamicSlice
from neuron_port.simulator.tensor import NkiTensor

sbuf, psum = MemoryRegion.sbuf, MemoryRegion.psum
private_hbm, shared_hbm = MemoryRegion.private_hbm, MemoryRegion.shared_hbm
hbm = private_hbm
_ON_CHIP = (sbuf, psum)


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


def program_id(axis: int = 0) -> int:
    """Index of this core in the launch grid."""
    return _current_run().program_id


def num_programs(axes: Any = 0) -> int:
    """Number of cores in the launch grid: 1 without one."""
    return _current_run().num_programs


def program_ndim() -> int:
    """Dimensions of the launch grid: 0 without one, 1 for kernel[1] and kernel[2]."""
    return _current_run().program_ndim


def device_print(print_prefix: str, tensor: NkiTensor) -> None:
    """Print a tensor's values as the device would; in SBUF or HBM."""
    if tensor.buffer is psum:
        raise _ConstraintError(
            f"nl.device_print: {tensor!r} is in PSUM", hint="copy it to SBUF with nisa.tensor_copy"
        )
    _require_written("device_print", "tensor", tensor)
    print(print_prefix, tensor.array)


# ---- operator tokens -------------------------------------------------------------------------------------


def __getattr__(name: str) -> Any:
    operator = _OPERATORS.get(name)
    if operator is None:
        raise AttributeError(f"nki.language has no `{name}`")
    return operator


__all__ = [
    "DType", "MemoryRegion", "NKIObject", "NkiTensor", "affine_range", "all", "bfloat16", "bool_", "broadcast_to",
    "ceil", "cos", "device_print", "dropout", "ds", "dynamic_range", "empty_like", "expand_dims", "float16",
    "float32", "float4_e2m1fn_x4", "float8_e4m3", "float8_e4m3fn", "float8_e4m3fn_x4", "float8_e5m2",
    "float8_e5m2_x4", "float8_e8m0fnu", "floor", "fori_loop", "full", "gather_flattened", "hbm", "int16",
    "int32", "int8", "is_hbm", "is_on_chip", "is_psum", "is_sbuf", "load", "load_transpose2d", "logical_not",
    "matmul", "max", "mean", "min", "ndarray", "negative", "no_reorder", "num_programs", "ones",
    "private_hbm", "prod", "program_id", "program_ndim", "psum", "rand", "random_seed", "rms_norm", "sbuf",
    "sequential_range", "shared_constant", "shared_hbm", "shared_identity_matrix", "softmax", "static_range",
    "store", "sum", "tan", "tfloat32", "tile_size", "transpose", "trunc", "uint16", "uint32", "uint8", "var",
    "where", "while_loop", "zeros", "zeros_like",
]  # fmt: skip
