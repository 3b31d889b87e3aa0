"""TensorE: matrix multiplication into PSUM, and transposition by the same array.

Accumulation is tracked by element: only what a matmul wrote last may be added to (NeuronCore-v2 and v3).
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import numpy as np

from neuron_port.simulator.checks import (
    PSUM,
    SBUF,
    check_destination,
    check_memory,
    check_source,
    check_tensors,
)
from neuron_port.simulator.context import Run, context, current_run, record
from neuron_port.simulator.dtypes import float32
from neuron_port.simulator.errors import ConstraintError
from neuron_port.simulator.instructions.indirect_operands import TENSOR_GROUP, takes_indirection
from neuron_port.simulator.instructions.matmul_rules import (
    check_double_row,
    check_onezero,
    check_product_dtype,
    check_tiling,
    check_transpose_mode,
    matmul_sizes,
    overwrites,
)
from neuron_port.simulator.memory import BY_MATMUL
from neuron_port.simulator.tensor import NkiTensor
from neuron_port.simulator.trace import NkiInstruction, engine
from neuron_port.simulator.values import write, write_raw


class matmul_perf_mode(Enum):  # noqa: N801 - AWS's name
    """Performance modes of nc_matmul."""

    none = "none"
    double_row = "double_row"


SCRATCH_ROWS, SCRATCH_COLUMNS = 128, 512


@takes_indirection("dst", "stationary", "moving", group=TENSOR_GROUP)
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

    stationary and moving in SBUF with K <= 128 partitions; M <= 128; N <= 512; dst in one bank of PSUM, float32.
    From NeuronCore-v4 on N <= 4096, or 8192 into bfloat16, over several banks.
    accumulate: False overwrites, True adds, None overwrites what was never written and adds elsewhere.
    perf_mode double_row: 8-bit floats [K / 2, 2, M] and [K / 2, 2, N], K <= 256; from NeuronCore-v3 on.
    is_transpose: moving is the identity, dst = stationary transposed, bit by bit from NeuronCore-v3 on;
    it overwrites dst unless accumulate is True.

    Raises:
        ConstraintError: memory, size, dtype mixture, tiling or performance mode.
        AccumulationError: adding onto PSUM that no matmul wrote.
    """
    run = context.run or current_run()
    double_row = perf_mode is not matmul_perf_mode.none and _is_double_row(perf_mode)
    try:
        out, left, right = dst.array, stationary.readable, moving.readable
        if double_row:
            check_double_row(stationary, moving, tile_size, is_transpose)
        sizes = matmul_sizes(run, (dst, stationary, moving), (out, left, right), 2 if double_row else 1)
    except AttributeError:
        check_tensors("nc_matmul", ("dst", "stationary", "moving"), dst, stationary, moving)
        raise
    k, m, n = sizes
    if tile_position or tile_size:
        check_tiling(run, "nc_matmul", left.shape[0], m, tuple(tile_position), tuple(tile_size))
    if is_stationary_onezero:
        check_onezero("stationary", stationary)
    if is_moving_onezero:
        check_onezero("moving", moving)
    if is_transpose:
        check_transpose_mode(run, dst, stationary)
    elif dst.dtype is not float32:
        check_product_dtype(run.target, dst)
    if left.ndim != 2:
        left = left.reshape(k, m)
    if right.ndim != 2:
        right = right.reshape(k, n)
    overwrite = True if is_transpose and not accumulate else overwrites(run.target, dst, accumulate)
    if is_transpose and overwrite is True:
        write(dst, _transposed(run, left, right, m, n), BY_MATMUL)
    else:
        _multiply(run, dst, left, right, overwrite)
    macs = k * m * n
    run.macs += macs
    tiles = (dst, stationary, moving)
    if not (is_transpose or is_stationary_onezero or is_moving_onezero or tile_size or double_row):
        if overwrite is True:
            return record("nc_matmul", engine.tensor, tiles, name, macs=macs)
        if overwrite is False:
            return record("nc_matmul", engine.tensor, tiles, name, macs=macs, accumulates=True)
    return record(
        "nc_matmul",
        engine.tensor,
        tiles,
        name,
        macs=macs,
        accumulates=overwrite is not True,
        overwrites_part=overwrite is not True and overwrite is not False,
        is_transpose=is_transpose,
        onezero=bool(is_stationary_onezero or is_moving_onezero),
        tile_position=tuple(tile_position),
        tile_size=tuple(tile_size),
        perf_mode="double_row" if double_row else "none",
    )


def _multiply(run: Run, dst: NkiTensor, left: np.ndarray, right: np.ndarray, overwrite: Any) -> None:
    """dst = or += left [K, M] transposed @ right [K, N]; `overwrite` as `overwrites` gives it."""
    out = dst.array
    if dst.dtype is not float32 or not out.flags.writeable:
        accumulate_rounded(dst, np.matmul(left.T, right), overwrite)
        return
    if overwrite is True and out.ndim == 2:
        np.matmul(left.T, right, out=out)
    else:
        product = _product(run, left.T, right, left.shape[1], right.shape[1]).reshape(out.shape)
        if overwrite is True:
            out[...] = product
        elif overwrite is False:
            out += product
        else:
            np.add(product, out, out=product, where=~overwrite)
            out[...] = product
    dst.storage.mark_written(dst, BY_MATMUL)


def _is_double_row(perf_mode: Any) -> bool:
    """Whether the mode, an enum or its name, is double_row."""
    try:
        return matmul_perf_mode(perf_mode) is matmul_perf_mode.double_row
    except ValueError:
        raise ConstraintError(
            f"nc_matmul: perf_mode is {perf_mode!r}",
            hint="use nisa.matmul_perf_mode.none or nisa.matmul_perf_mode.double_row",
        ) from None


def accumulate_rounded(dst: NkiTensor, product: np.ndarray, overwrite: Any) -> None:
    """Add in float32 and round each sum to dst's dtype (bfloat16 of NeuronCore-v4, or an indirect dst)."""
    old = dst.array
    product = product.reshape(old.shape)
    if overwrite is not True:
        product = product + (old if overwrite is False else np.where(overwrite, 0, old))
    write(dst, product, BY_MATMUL)


def _transposed(run: Run, left: np.ndarray, right: np.ndarray, m: int, n: int) -> np.ndarray:
    """left.T @ right; exact, whatever left holds, where right is the identity and the hardware has the mode."""
    k = left.shape[0]
    if run.target.generation >= 3 and n == k and np.array_equal(right, np.eye(k, dtype=right.dtype)):
        return left.T
    return _product(run, left.T, right, m, n)


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
    values = data.array.reshape(partitions, free)
    if not dst.dtype.is_float:
        _check_integer_transpose(run, data)
    elif run.target.generation == 2 and not np.isfinite(values).all():
        run.warn(
            f"nc_transpose: data {data!r} contains NaN or infinity; TensorE of NeuronCore-v2 multiplies by "
            "an identity matrix, which spreads NaN over the row"
        )
        values = values @ np.eye(free, dtype=np.float32)
    write_raw(dst, values.T, BY_MATMUL)
    return record("nc_transpose", Engine.tensor, (dst, data), name)


Engine = engine


def _check_integer_transpose(run: Run, data: NkiTensor) -> None:
    """From NeuronCore-v3 on TensorE moves bits; before, it multiplies, and integers it cannot."""
    if run.target.generation < 3:
        raise ConstraintError(
            f"nc_transpose: data {data!r} is no float; TensorE of NeuronCore-v2 transposes by multiplying floats",
            hint="convert with nisa.tensor_copy, or transpose blocks of 32 x 32 with engine=nisa.engine.vector",
        )
    run.warn(
        f"nc_transpose: data {data!r} on TensorE: its documentation allows any dtype, that of nc_matmul, which "
        "carries it out, floats only"
    )


def _product(run: Run, left: np.ndarray, right: np.ndarray, m: int, n: int) -> np.ndarray:
    """left @ right in the run's scratch memory, which saves allocating a result for each matmul."""
    if n > SCRATCH_COLUMNS:
        return np.matmul(left, right)
    if run.scratch is None:
        run.scratch = np.empty((SCRATCH_ROWS, SCRATCH_COLUMNS), dtype=np.float32)
    return np.matmul(left, right, out=run.scratch[:m, :n])
