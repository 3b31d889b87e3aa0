"""What TensorE refuses: sizes, dtypes, banks, tiles of the array, modes, and where it may accumulate."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from neuron_port.simulator.checks import (
    PSUM,
    SBUF,
    check_destination,
    check_generation,
    check_memory,
    check_source,
)
from neuron_port.simulator.context import Run, current_run
from neuron_port.simulator.dtypes import (
    bfloat16,
    float8_e4m3,
    float8_e4m3fn,
    float8_e5m2,
    float16,
    float32,
    tfloat32,
)
from neuron_port.simulator.errors import AccumulationError, ConstraintError
from neuron_port.simulator.memory import BY_MATMUL, BY_OTHERS, MIXED, UNDEFINED, UNWRITTEN, WRITERS
from neuron_port.simulator.target import Target
from neuron_port.simulator.tensor import NkiTensor
from neuron_port.simulator.undefined import note_accumulated

WIDE = (float32, tfloat32)
MATMUL_DTYPES = (float32, bfloat16, float16, tfloat32, float8_e4m3, float8_e5m2)
EIGHT_BIT = (float8_e4m3, float8_e5m2)
ARRAY_SIDE = 128


def matmul_sizes(
    run: Run,
    operands: tuple[NkiTensor, NkiTensor, NkiTensor],
    arrays: tuple[np.ndarray, np.ndarray, np.ndarray],
    rows_per_partition: int,
) -> tuple[int, int, int]:
    """K, M, N after all checks of memory, sizes and dtypes of dst, stationary, moving and their arrays.

    Each partition holds one row of K, or two (double_row).
    """
    dst, stationary, moving = operands
    out, left, right = arrays
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
    partitions, moving_partitions = left.shape[0], right.shape[0]
    k = partitions * rows_per_partition
    m, n = left.size // k, right.size // (moving_partitions * rows_per_partition)
    target = run.target
    most = target.moving_free_max_into(bfloat16=dst.dtype is bfloat16) or target.moving_free_max
    if moving_partitions != partitions or m > target.stationary_free_max or n > most:
        _refuse_sizes(target, stationary, moving, m, n, most)
    if out.shape[0] != m or out.size != m * n:
        raise ConstraintError(
            f"nc_matmul: dst {dst!r} must be [M, N] = [{m}, {n}] for stationary {stationary!r} and "
            f"moving {moving!r}"
        )
    if stationary.dtype is not moving.dtype or stationary.dtype not in MATMUL_DTYPES:
        _check_dtypes(target, stationary, moving)
    if allocation.bytes_per_partition > target.psum_bank_bytes and target.generation < 4:
        check_one_bank(target.psum_bank_bytes, dst)
    return k, m, n


def _refuse_sizes(
    target: Target, stationary: NkiTensor, moving: NkiTensor, m: int, n: int, most: int
) -> NoReturn:
    partitions, moving_partitions = stationary.shape[0], moving.shape[0]
    if moving_partitions != partitions:
        raise ConstraintError(
            f"nc_matmul: stationary {stationary!r} has {partitions} partitions and moving {moving!r} "
            f"{moving_partitions}; both are the contraction dimension K",
            hint="stationary is [K, M]: transpose the left matrix first",
        )
    if m > target.stationary_free_max:
        raise ConstraintError(
            f"nc_matmul: stationary {stationary!r} has {m} columns, at most {target.stationary_free_max}",
            hint="loop over tiles of 128 columns (nl.tile_size.gemm_stationary_fmax)",
        )
    raise ConstraintError(
        f"nc_matmul: moving {moving!r} has {n} columns, at most {most}",
        hint="loop over tiles of 512 columns (nl.tile_size.gemm_moving_fmax)",
    )


def _check_dtypes(target: Target, stationary: NkiTensor, moving: NkiTensor) -> None:
    allowed = MATMUL_DTYPES if target.generation < 4 else (*MATMUL_DTYPES, float8_e4m3fn)
    for name, operand in (("stationary", stationary), ("moving", moving)):
        if operand.dtype not in allowed:
            raise ConstraintError(
                f"nc_matmul: {name} {operand!r} has dtype {operand.dtype}, must be {' or '.join(allowed)}",
                hint="convert with nisa.tensor_copy first; float8_e4m3fn multiplies from NeuronCore-v4 on",
            )
    if (stationary.dtype in WIDE) != (moving.dtype in WIDE):
        raise ConstraintError(
            f"nc_matmul: stationary {stationary!r} and moving {moving!r} mix a 32-bit with a narrower float",
            hint="float32 multiplies only with float32 or tfloat32: convert one with nisa.tensor_copy",
        )
    if {stationary.dtype, moving.dtype} == {float8_e4m3, float8_e4m3fn}:
        raise ConstraintError(
            f"nc_matmul: stationary {stationary!r} and moving {moving!r} mix float8_e4m3 with float8_e4m3fn",
            hint="convert one of them with nisa.tensor_copy",
        )


def check_one_bank(bank_bytes: int, dst: NkiTensor) -> None:
    """The bytes that dst covers in a partition lie in one bank."""
    storage = dst.storage
    partition_bytes = storage.array.strides[0]
    scale = storage.allocation.dtype.itemsize / storage.array.itemsize  # 16-bit tiles are held in float32
    out = dst.array
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


def check_double_row(stationary: NkiTensor, moving: NkiTensor, tile_size: Any, is_transpose: bool) -> None:
    """fp8 operands [K / 2, 2, M] and [K / 2, 2, N], from NeuronCore-v3 on, without column tiles or transposes."""
    check_generation("nc_matmul", 3, "perf_mode double_row")
    for label, operand in (("stationary", stationary), ("moving", moving)):
        if operand.dtype not in EIGHT_BIT and operand.dtype is not float8_e4m3fn:
            raise ConstraintError(
                f"nc_matmul: double_row takes 8-bit floats; {label} {operand!r} is {operand.dtype}",
                hint="convert with nisa.tensor_copy, or leave perf_mode out",
            )
        if operand.ndim < 3 or operand.shape[1] != 2:
            raise ConstraintError(
                f"nc_matmul: double_row needs {label} {operand!r} as [K / 2, 2, columns]: two rows of the "
                "contraction on each partition",
                hint="pad an odd contraction with zeros",
            )
    if is_transpose:
        raise ConstraintError("nc_matmul: double_row cannot be combined with is_transpose")
    if tile_size and tuple(tile_size)[1] != ARRAY_SIDE:
        raise ConstraintError(
            f"nc_matmul: double_row cannot be combined with column tiles, tile_size is {tuple(tile_size)}",
            hint="use tile_size=(rows, 128)",
        )


def check_tiling(
    run: Run, opcode: str, k: int, m: int, position: tuple[int, ...], size: tuple[int, ...]
) -> None:
    """A part of the 128 x 128 array: rows and columns in tiles of 32 (NeuronCore-v3), 64 or 128."""
    if len(position) != 2 or len(size) != 2:
        raise ConstraintError(
            f"{opcode}: tile_position {position} and tile_size {size} must both be given as pairs"
        )
    (start_row, start_column), (rows, columns) = position, size
    if rows not in (32, 64, 128) or columns not in (32, 64, 128):
        raise ConstraintError(f"{opcode}: tile_size {size} must be made of 32, 64 and 128")
    if 32 in size:
        check_generation(opcode, 3, "a tile of 32 rows or columns")
    beyond = start_row + rows > ARRAY_SIDE or start_column + columns > ARRAY_SIDE
    if start_row % rows or start_column % columns or beyond or start_row < 0 or start_column < 0:
        raise ConstraintError(
            f"{opcode}: tile_position {position} must be a multiple of tile_size {size} below 128"
        )
    if k > rows or m > columns:
        raise ConstraintError(
            f"{opcode}: stationary of {k} rows and {m} columns exceeds tile_size {size}",
            hint="tile_size bounds the stationary matrix",
        )
    if columns != ARRAY_SIDE:
        run.warn(
            f"{opcode}: column tiles, tile_size {size}: the text of the documentation allows them, but its list of "
            "parameters says that start_column must be 0 and column_size 128"
        )


def check_transpose_mode(run: Run, dst: NkiTensor, stationary: NkiTensor) -> None:
    """dst of a transpose is float32, or from NeuronCore-v3 on of the dtype that is transposed."""
    if dst.dtype is not float32 and (run.target.generation < 3 or dst.dtype is not stationary.dtype):
        raise ConstraintError(
            f"nc_matmul: dst {dst!r} of a transpose must be float32 (or, from NeuronCore-v3 on, have "
            f"the dtype of stationary {stationary!r})"
        )


def check_product_dtype(target: Target, dst: NkiTensor) -> None:
    """dst is float32; from NeuronCore-v4 on bfloat16 too."""
    if dst.dtype is float32 or (dst.dtype is bfloat16 and target.bf16_accumulation):
        return
    raise ConstraintError(
        f"nc_matmul: dst {dst!r} has dtype {dst.dtype}, must be float32"
        + (" or bfloat16" if target.bf16_accumulation else ""),
        hint="accumulate in float32 and convert with nisa.tensor_copy",
    )


def check_onezero(label: str, operand: NkiTensor) -> None:
    """What is promised to hold ones and zeros does so; only 32-bit operands are multiplied differently for it."""
    values = operand.array
    if operand.dtype in WIDE and not ((values == 0) | (values == 1)).all():
        raise ConstraintError(
            f"nc_matmul: is_{label}_onezero promises ones and zeros, but {label} {operand!r} holds "
            f"{float(values[(values != 0) & (values != 1)][0])!r}",
            hint=f"leave is_{label}_onezero out",
        )


def overwrites(target: Target, dst: NkiTensor, accumulate: bool | None) -> Any:
    """True: overwrite all of dst; False: add to all of it; an array: overwrite where it is true.

    Raises:
        AccumulationError: adding onto what was never written or, on NeuronCore-v2 and v3, onto what another
            instruction than a matmul wrote last.
    """
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
    states = dst.states() if state == MIXED else np.full(1, state, dtype=np.uint8)
    if states.max() >= UNDEFINED:
        note_accumulated(dst, states >= UNDEFINED)
        states = states & WRITERS
    others = None if target.accumulates_on_any_writer else states == BY_OTHERS
    if others is not None and others.any():
        written = dst.stored.array
        if accumulate is None and not written[np.broadcast_to(others, written.shape)].any():
            # AWS's depthwise_conv1d clears PSUM so. Adding to zero and overwriting give the same.
            current_run().warn(
                f"nc_matmul: dst {dst!r} was cleared by another instruction than a matmul; what a matmul then does "
                "is undefined on NeuronCore-v2 and v3"
            )
            states = np.where(others, np.uint8(UNWRITTEN), states)
        else:
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
