"""TensorE: matrix multiplication into PSUM, and transposition by the same array.

Accumulation is tracked by element: only what a matmul wrote last may be added to (NeuronCore-v2 and v3).
"""

from __future__ import annotations

from enum import Enum
from typing import Any, NoReturn

import numpy as np

from neuron_port.simulator.checks import (
    PSUM,
    SBUF,
    check_destination,
    check_generation,
    check_memory,
    check_source,
    check_tensors,
)
from neuron_port.simulator.context import Run, context, current_run, record
from neuron_port.simulator.dtypes import bfloat16, float8_e4m3, float8_e5m2, float16, float32, tfloat32
from neuron_port.simulator.errors import AccumulationError, ConstraintError, UnsupportedError
from neuron_port.simulator.memory import BY_MATMUL, BY_OTHERS, MIXED, UNWRITTEN
from neuron_port.simulator.target import Target
from neuron_port.simulator.tensor import NkiTensor
from neuron_port.simulator.trace import NkiInstruction, engine
from neuron_port.simulator.values import write, write_raw


class matmul_perf_mode(Enum):  # noqa: N801 - AWS's name
    """Performance modes of nc_matmul."""

    none = "none"
    double_row = "double_row"


WIDE = (float32, tfloat32)
MATMUL_DTYPES = (float32, bfloat16, float16, tfloat32, float8_e4m3, float8_e5m2)
SCRATCH_ROWS, SCRATCH_COLUMNS = 128, 512


def nc_matmul(
    dst: NkiTensor,
    stationary: NkiTensor,
    moving: NkiTensor,
    is_stationary_onezero: bool = False,
    is_moving_onezero: bool = False,
    is_transpose: bool = False,
    accumulate: bool | None = None,
    tile_position: tuple[int, ...] = (),
    tile_size: tuple[int, ...] = (),
    perf_mode: Any = matmul_perf_mode.none,
    name: str | None = None,
) -> NkiInstruction:
    """dst [M, N] (+)= stationary [K, M] transposed @ moving [K, N], in float32.

    stationary and moving in SBUF with K <= 128 partitions; M <= 128; N <= 512; dst in one bank of PSUM.
    accumulate: False overwrites, True adds, None overwrites what was never written and adds elsewhere.

    Raises:
        ConstraintError: memory, size, dtype mixture, tiling or performance mode.
        AccumulationError: adding onto PSUM that no matmul wrote.
    """
    run = context.run or current_run()
    try:
        k, m, n = _matmul_sizes(run, dst, stationary, moving)
    except AttributeError:
        check_tensors("nc_matmul", ("dst", "stationary", "moving"), dst, stationary, moving)
        raise
    if tile_position or tile_size:
        _check_tiling(run, k, m, tuple(tile_position), tuple(tile_size))
    if perf_mode is not matmul_perf_mode.none and perf_mode != "none":
        raise UnsupportedError(
            f"nc_matmul: perf_mode {perf_mode} is not simulated",
            hint="leave perf_mode out: the result is the same, at half the fp8 rate",
        )
    if is_transpose:
        _check_transpose_mode(run, dst, stationary, moving)
    elif dst.dtype is not float32:
        raise ConstraintError(
            f"nc_matmul: dst {dst!r} has dtype {dst.dtype}, must be float32",
            hint="accumulate in float32 and convert with nisa.tensor_copy",
        )
    left = stationary.array
    right = moving.array
    if left.ndim != 2:
        left = left.reshape(k, m)
    if right.ndim != 2:
        right = right.reshape(k, n)
    out = dst.array
    overwrite = _overwrites(dst, accumulate)
    if is_transpose:
        write(dst, _product(run, left.T, right, m, n), BY_MATMUL)
    elif overwrite is True:
        if out.ndim == 2 and out.flags.writeable:
            np.matmul(left.T, right, out=out)
        else:
            out[...] = np.matmul(left.T, right).reshape(out.shape)
        dst.storage.mark_written(dst, BY_MATMUL)
    else:
        product = _product(run, left.T, right, m, n)
        if out.ndim != 2:
            product = product.reshape(out.shape)
        if overwrite is False:
            out += product
        else:
            np.add(product, out, out=product, where=~overwrite)
            out[...] = product
            dst.storage.mark_written(dst, BY_MATMUL)
    macs = k * m * n
    run.macs += macs
    if overwrite is True and not (is_transpose or is_stationary_onezero or is_moving_onezero or tile_size):
        return record("nc_matmul", engine.tensor, (dst, stationary, moving), name, macs=macs)
    return record(
        "nc_matmul",
        engine.tensor,
        (dst, stationary, moving),
        name,
        macs=macs,
        accumulates=overwrite is not True,
        is_transpose=is_transpose,
        onezero=bool(is_stationary_onezero or is_moving_onezero),
        tile_position=tuple(tile_position),
        tile_size=tuple(tile_size),
    )


def nc_transpose(
    dst: NkiTensor, data: NkiTensor, engine: engine = engine.unknown, name: str | None = None
) -> NkiInstruction:
    """dst [F, P] = data [P, F] transposed; the free dimensions of data count as one; dtypes are equal.

    TensorE: SBUF to PSUM, up to [128, 128]; on NeuronCore-v2 NaN and infinities spread over their row.
    VectorE: up to [32, 32], any of SBUF and PSUM. With the engine left out, dst's memory and the size decide.
    """
    from neuron_port.simulator.instructions.vector_engine import vector_transpose

    run = current_run()
    check_tensors("nc_transpose", ("dst", "data"), dst, data)
    partitions = data.array.shape[0]
    free = data.size // partitions
    if dst.array.shape[0] != free or dst.size != data.size:
        raise ConstraintError(
            f"nc_transpose: dst {dst!r} must have {free} partitions of {partitions} elements, "
            f"the transpose of data {data!r}"
        )
    if dst.dtype is not data.dtype:
        raise ConstraintError(
            f"nc_transpose: dst {dst!r} and data {data!r} must have the same dtype",
            hint="allocate dst with dtype=data.dtype and convert afterwards",
        )
    check_source("nc_transpose", "data", data)
    check_destination("nc_transpose", "dst", dst)
    chosen = engine
    if chosen is Engine.unknown:
        on_tensor = dst.buffer is PSUM and data.buffer is SBUF
        chosen = Engine.tensor if on_tensor and not (partitions <= 32 and free <= 32) else Engine.vector
        if chosen is Engine.vector and (partitions > 32 or free > 32):
            chosen = Engine.tensor
    if chosen is Engine.vector:
        return vector_transpose(dst, data, name)
    if chosen is not Engine.tensor:
        raise ConstraintError(
            f"nc_transpose: engine {chosen} cannot run it", hint="use nisa.engine.tensor or vector"
        )
    why = " for a transpose on TensorE (VectorE handles up to [32, 32] between any of SBUF and PSUM)"
    check_memory("nc_transpose", "data", data, SBUF, why)
    check_memory("nc_transpose", "dst", dst, PSUM, why)
    if partitions > 128 or free > 128:
        raise ConstraintError(
            f"nc_transpose: data {data!r} exceeds [128, 128]", hint="transpose it in blocks"
        )
    if dst.dtype.is_integer:
        raise UnsupportedError(
            f"nc_transpose: integer data {data!r} on TensorE is not simulated",
            hint="view the bits as a float dtype of the same size, or use nisa.dma_transpose",
        )
    values = data.array.reshape(partitions, free)
    if run.target.generation == 2 and not np.isfinite(values).all():
        run.warn(
            f"nc_transpose: data {data!r} contains NaN or infinity; TensorE of NeuronCore-v2 multiplies by "
            "an identity matrix, which spreads NaN over the row"
        )
        values = values @ np.eye(free, dtype=np.float32)
    write_raw(dst, values.T, BY_MATMUL)
    return record("nc_transpose", Engine.tensor, (dst, data), name)


Engine = engine


def _product(run: Run, left: np.ndarray, right: np.ndarray, m: int, n: int) -> np.ndarray:
    """left @ right in the run's scratch memory, which saves allocating a result for each matmul."""
    if run.scratch is None:
        run.scratch = np.empty((SCRATCH_ROWS, SCRATCH_COLUMNS), dtype=np.float32)
    return np.matmul(left, right, out=run.scratch[:m, :n])


def _matmul_sizes(run: Run, dst: NkiTensor, stationary: NkiTensor, moving: NkiTensor) -> tuple[int, int, int]:
    """K, M, N after all checks of memory, sizes and dtypes."""
    now = len(run.instructions)
    for operand in (stationary, moving):
        storage = operand.storage
        if storage.buffer is not SBUF or operand.start or storage.state <= 0:
            label = "stationary" if operand is stationary else "moving"
            check_memory("nc_matmul", label, operand, SBUF)
            check_source("nc_matmul", label, operand)
        storage.allocation.last = now
    storage = dst.storage
    if storage.buffer is not PSUM or dst.start:
        check_memory("nc_matmul", "dst", dst, PSUM)
        check_destination("nc_matmul", "dst", dst)
    allocation = storage.allocation
    allocation.last = now
    if allocation.first < 0:
        allocation.first = now
    left, right, out = stationary.array, moving.array, dst.array
    k = left.shape[0]
    m, n = left.size // k, right.size // right.shape[0]
    target = run.target
    if right.shape[0] != k or m > target.stationary_free_max or n > target.moving_free_max:
        _refuse_matmul_sizes(target, stationary, moving)
    if out.shape[0] != m or out.size != m * n:
        raise ConstraintError(
            f"nc_matmul: dst {dst!r} must be [M, N] = [{m}, {n}] for stationary {stationary!r} and "
            f"moving {moving!r}"
        )
    if stationary.dtype is not moving.dtype or stationary.dtype not in MATMUL_DTYPES:
        _check_matmul_dtypes(stationary, moving)
    if allocation.bytes_per_partition > target.psum_bank_bytes:
        _check_one_bank(target.psum_bank_bytes, dst)
    return k, m, n


def _refuse_matmul_sizes(target: Target, stationary: NkiTensor, moving: NkiTensor) -> NoReturn:
    k, moving_k = stationary.array.shape[0], moving.array.shape[0]
    if moving_k != k:
        raise ConstraintError(
            f"nc_matmul: stationary {stationary!r} has {k} partitions and moving {moving!r} {moving_k}; "
            "both are the contraction dimension K",
            hint="stationary is [K, M]: transpose the left matrix first",
        )
    if stationary.size // k > target.stationary_free_max:
        raise ConstraintError(
            f"nc_matmul: stationary {stationary!r} has {stationary.size // k} columns, at most 128",
            hint="loop over tiles of 128 columns (nl.tile_size.gemm_stationary_fmax)",
        )
    raise ConstraintError(
        f"nc_matmul: moving {moving!r} has {moving.size // k} columns, at most {target.moving_free_max}",
        hint="loop over tiles of 512 columns (nl.tile_size.gemm_moving_fmax)",
    )


def _check_matmul_dtypes(stationary: NkiTensor, moving: NkiTensor) -> None:
    for name, operand in (("stationary", stationary), ("moving", moving)):
        if operand.dtype not in MATMUL_DTYPES:
            raise ConstraintError(
                f"nc_matmul: {name} {operand!r} has dtype {operand.dtype}, must be "
                f"{' or '.join(MATMUL_DTYPES)}",
                hint="convert with nisa.tensor_copy first; float8_e4m3fn multiplies from NeuronCore-v4 on",
            )
    if (stationary.dtype in WIDE) != (moving.dtype in WIDE):
        raise ConstraintError(
            f"nc_matmul: stationary {stationary!r} and moving {moving!r} mix a 32-bit with a narrower float",
            hint="float32 multiplies only with float32 or tfloat32: convert one with nisa.tensor_copy",
        )


def _check_one_bank(bank_bytes: int, dst: NkiTensor) -> None:
    """The bytes that dst covers in a partition lie in one bank."""
    out, storage = dst.array, dst.storage
    partition_bytes = storage.array.strides[0]
    scale = storage.allocation.dtype.itemsize / storage.array.itemsize  # 16-bit tiles are held in float32
    begin = dst.offset_bytes % partition_bytes
    last = begin + out.itemsize - 1
    for size, stride in zip(out.shape[1:], out.strides[1:], strict=True):
        last += (size - 1) * stride
    first_byte, last_byte = int(begin * scale), int(last * scale)
    if first_byte // bank_bytes != last_byte // bank_bytes:
        raise ConstraintError(
            f"nc_matmul: dst {dst!r} covers bytes {first_byte} to {last_byte} of a partition and crosses a "
            f"PSUM bank of {bank_bytes} bytes",
            hint="one matmul writes into one bank: 512 float32 columns",
        )


def _check_transpose_mode(run: Run, dst: NkiTensor, stationary: NkiTensor, moving: NkiTensor) -> None:
    if dst.dtype is not float32 and (run.target.generation < 3 or dst.dtype is not stationary.dtype):
        raise ConstraintError(
            f"nc_matmul: dst {dst!r} of a transpose must be float32 (or, from NeuronCore-v3 on, have "
            f"the dtype of stationary {stationary!r})"
        )


def _check_tiling(run: Run, k: int, m: int, position: tuple[int, ...], size: tuple[int, ...]) -> None:
    """A part of the 128x128 array: rows in tiles of 32 (NeuronCore-v3), 64 or 128."""
    if len(position) != 2 or len(size) != 2:
        raise ConstraintError(
            f"nc_matmul: tile_position {position} and tile_size {size} must both be given as pairs"
        )
    (start_row, start_column), (rows, columns) = position, size
    if rows not in (32, 64, 128) or columns not in (32, 64, 128):
        raise ConstraintError(f"nc_matmul: tile_size {size} must be made of 32, 64 and 128")
    if 32 in size:
        check_generation("nc_matmul", 3, "a tile of 32 rows or columns")
    if start_row % rows or start_row >= 128 or start_column % columns or start_column >= 128:
        raise ConstraintError(
            f"nc_matmul: tile_position {position} must be a multiple of tile_size {size} below 128"
        )
    if k > rows or m > columns:
        raise ConstraintError(
            f"nc_matmul: stationary of {k} rows and {m} columns exceeds tile_size {size}",
            hint="tile_size bounds the stationary matrix",
        )


def _overwrites(dst: NkiTensor, accumulate: bool | None) -> Any:
    """True: overwrite all of dst; False: add to all of it; an array: overwrite where it is true."""
    storage = dst.storage
    state = storage.state
    if accumulate is False:
        return True
    if state == BY_MATMUL:
        return False
    if state == UNWRITTEN:
        if accumulate is None:
            return True
        raise AccumulationError(
            f"nc_matmul: accumulate=True, but dst {dst!r} was never written",
            hint="start with accumulate=False (accumulate=(i > 0) in a loop), or leave accumulate out",
        )
    states = storage.mask_of(dst) if state == MIXED else np.full(1, state, dtype=np.uint8)
    if (states == BY_OTHERS).any():
        raise AccumulationError(
            f"nc_matmul: dst {dst!r} was last written by an instruction that is no matmul; adding to it is "
            "undefined on NeuronCore-v2 and v3",
            hint="drop the memset: the first matmul overwrites PSUM by itself (or pass accumulate=False)",
        )
    fresh = states == UNWRITTEN
    if not fresh.any():
        return False
    if accumulate:
        raise AccumulationError(
            f"nc_matmul: accumulate=True, but part of dst {dst!r} was never written",
            hint="write all of it with accumulate=False first",
        )
    return True if fresh.all() else fresh
