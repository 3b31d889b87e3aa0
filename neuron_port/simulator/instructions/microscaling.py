"""Microscaling (MX) on NeuronCore-v4: VectorE quantizes matrices, TensorE multiplies them (see mx_layout.py)."""

from __future__ import annotations

import numpy as np

from neuron_port.simulator.checks import (
    PSUM,
    SBUF,
    check_destination,
    check_dtype,
    check_generation,
    check_memory,
    check_source,
    check_tensors,
    touch,
)
from neuron_port.simulator.context import current_run, record
from neuron_port.simulator.dtypes import (
    FLOAT32,
    PACKED,
    bfloat16,
    float8_e4m3fn_x4,
    float8_e5m2_x4,
    float16,
    float32,
)
from neuron_port.simulator.errors import ConstraintError
from neuron_port.simulator.instructions.indirect_operands import TENSOR_GROUP, takes_indirection
from neuron_port.simulator.instructions.matmul_rules import overwrites
from neuron_port.simulator.instructions.mx_layout import (
    ELEMENTS,
    GROUP_ELEMENTS,
    GROUP_PARTITIONS,
    SCALE_BIAS,
    SCALE_NAN,
    SCALES_PER_QUADRANT,
    dequantized,
    packed,
    rows_and_columns,
    scale_rows,
    scales_of,
)
from neuron_port.simulator.instructions.tensor_engine import accumulate_rounded
from neuron_port.simulator.tensor import NkiTensor
from neuron_port.simulator.trace import NkiInstruction, engine
from neuron_port.simulator.values import read, write_raw


def quantize_mx(
    dst: NkiTensor, src: NkiTensor, dst_scale: NkiTensor, name: str | None = None
) -> NkiInstruction:
    """dst = src quantized to MXFP8, dst_scale = the scale of each group of 8 partitions x 4 elements.

    The scale is 2 ** (floor(log2(largest magnitude)) - (largest exponent of the element - 1)): twice that of OCP's
    sample algorithm, so nothing saturates. A group of zeros gets 2 ** -127, one with NaN or infinity NaN.

    Args:
        dst: [P, F / 4] float8_e5m2_x4 or float8_e4m3fn_x4 @ SBUF.
        src: [P, F] float16 or bfloat16 @ SBUF, P a multiple of 32, F of 4.
        dst_scale: uint8 or float8_e8m0fnu @ SBUF; [P / 8, F / 4] for P = 32, else [P, F / 4], of which four
            partitions of every quadrant are written.

    Raises:
        ConstraintError: older than NeuronCore-v4, memory, dtype or layout.
    """
    check_generation("quantize_mx", 4)
    check_tensors("quantize_mx", ("dst", "src", "dst_scale"), dst, src, dst_scale)
    for label, tile in (("dst", dst), ("src", src), ("dst_scale", dst_scale)):
        check_memory("quantize_mx", label, tile, SBUF)
    check_dtype("quantize_mx", "src", src, (float16, bfloat16))
    check_dtype("quantize_mx", "dst", dst, (float8_e5m2_x4, float8_e4m3fn_x4))
    partitions, free = rows_and_columns("quantize_mx", "src", src)
    if free % GROUP_ELEMENTS:
        raise ConstraintError(
            f"quantize_mx: src {src!r} has {free} elements per partition, must be a multiple of 4",
            hint="pad the free dimension with zeros",
        )
    columns = free // GROUP_ELEMENTS
    if dst.shape[0] != partitions or dst.size != partitions * columns:
        raise ConstraintError(
            f"quantize_mx: dst {dst!r} must have shape ({partitions}, {columns}): a packed element holds "
            f"4 of the {free} elements of src {src!r}"
        )
    rows = scale_rows("quantize_mx", "dst_scale", dst_scale, src, columns)
    check_source("quantize_mx", "src", src)
    check_destination("quantize_mx", "dst", dst)
    values = read(src).reshape(partitions // GROUP_PARTITIONS, GROUP_PARTITIONS, columns, GROUP_ELEMENTS)
    codes = _scale_codes(values, ELEMENTS[dst.dtype][1])
    if (codes == SCALE_NAN).any():
        current_run().warn(f"quantize_mx: src {src!r} contains NaN or infinity; their groups become NaN")
    exponents = SCALE_BIAS - codes.astype(np.int32)
    factors = np.ldexp(np.where(codes == SCALE_NAN, np.nan, 1.0).astype(FLOAT32), exponents)
    scaled = values * factors[:, None, :, None]  # exact: float32 times a power of two
    write_raw(dst, packed(scaled.reshape(partitions, columns, GROUP_ELEMENTS), dst.dtype))
    for quadrant, row in enumerate(rows):
        first = quadrant * SCALES_PER_QUADRANT
        write_raw(row, scales_of(codes[first : first + SCALES_PER_QUADRANT], dst_scale.dtype))
    touch(dst_scale.storage, written=True)
    return record("quantize_mx", engine.vector, (dst, *rows, src), name, writes=1 + len(rows))


def _scale_codes(values: np.ndarray, largest_exponent: int) -> np.ndarray:
    """The scale bytes [groups, columns] of values [groups, 8, columns, 4]."""
    by_column = np.abs(values).max(axis=1)  # [groups, columns, 4]: first the axis that is long in memory
    magnitude = np.maximum(
        np.maximum(by_column[..., 0], by_column[..., 1]), np.maximum(by_column[..., 2], by_column[..., 3])
    )
    finite = np.isfinite(magnitude)
    exponent = np.frexp(np.where(finite, magnitude, 1.0))[1] - 1  # floor(log2), exact
    codes = np.clip(exponent - (largest_exponent - 1) + SCALE_BIAS, 0, SCALE_NAN - 1)
    return np.where(finite, np.where(magnitude == 0, 0, codes), SCALE_NAN).astype(np.uint8)


@takes_indirection("dst", "stationary", "moving", "stationary_scale", "moving_scale", group=TENSOR_GROUP)
def nc_matmul_mx(
    dst: NkiTensor,
    stationary: NkiTensor,
    moving: NkiTensor,
    stationary_scale: NkiTensor,
    moving_scale: NkiTensor,
    tile_position: tuple[int, ...] | None = None,
    tile_size: tuple[int, ...] | None = None,
    accumulate: bool | None = None,
    name: str | None = None,
) -> NkiInstruction:
    """dst [M, N] (+)= stationary transposed @ moving, over the P partitions and the 4 values of each element.

    Args:
        dst: [M, N] float32 or bfloat16 @ PSUM.
        stationary, moving: [P, M] and [P, N] of any packed dtypes @ SBUF; P a multiple of 32; M even, at most 128;
            N at most 4096 into float32, 8192 into bfloat16.
        stationary_scale, moving_scale: uint8 or float8_e8m0fnu @ SBUF, laid out as quantize_mx writes them.
        tile_position, tile_size: rows of the array, (multiple of the size, 0) and (32, 64 or 128, 128).
        accumulate: as for nc_matmul.

    Raises:
        ConstraintError: older than NeuronCore-v4, memory, dtype, size, layout or tiling.
        AccumulationError: adding onto PSUM that was never written.
    """
    check_generation("nc_matmul_mx", 4)
    labels = ("dst", "stationary", "moving", "stationary_scale", "moving_scale")
    check_tensors("nc_matmul_mx", labels, dst, stationary, moving, stationary_scale, moving_scale)
    partitions, m, n = _matmul_sizes(dst, stationary, moving)
    if tile_position or tile_size:
        _check_row_tile(partitions, tuple(tile_position or ()), tuple(tile_size or ()))
    left_rows = scale_rows("nc_matmul_mx", "stationary_scale", stationary_scale, stationary, m)
    right_rows = scale_rows("nc_matmul_mx", "moving_scale", moving_scale, moving, n)
    left = dequantized(stationary, left_rows, "stationary_scale")
    right = dequantized(moving, right_rows, "moving_scale")
    for scale in (stationary_scale, moving_scale):
        touch(scale.storage)
    run = current_run()
    overwrite = overwrites(run.target, dst, accumulate)
    accumulate_rounded(dst, left.T @ right, overwrite)
    macs = partitions * GROUP_ELEMENTS * m * n
    run.macs += macs
    return record(
        "nc_matmul_mx",
        engine.tensor,
        (dst, stationary, moving, *left_rows, *right_rows),
        name,
        macs=macs,
        accumulates=overwrite is not True,
        tile_position=tuple(tile_position or ()),
        tile_size=tuple(tile_size or ()),
    )


def _matmul_sizes(dst: NkiTensor, stationary: NkiTensor, moving: NkiTensor) -> tuple[int, int, int]:
    """P, M, N after all checks of the data and the destination."""
    for label, tile in (("stationary", stationary), ("moving", moving)):
        check_memory("nc_matmul_mx", label, tile, SBUF)
        check_dtype("nc_matmul_mx", label, tile, PACKED)
        check_source("nc_matmul_mx", label, tile)
    check_memory("nc_matmul_mx", "dst", dst, PSUM)
    check_dtype("nc_matmul_mx", "dst", dst, (float32, bfloat16))
    check_destination("nc_matmul_mx", "dst", dst)
    partitions, m = rows_and_columns("nc_matmul_mx", "stationary", stationary)
    moving_partitions, n = rows_and_columns("nc_matmul_mx", "moving", moving)
    if moving_partitions != partitions:
        raise ConstraintError(
            f"nc_matmul_mx: stationary {stationary!r} has {partitions} partitions and moving {moving!r} "
            f"{moving_partitions}; both are the contraction dimension"
        )
    target = current_run().target
    if m % 2 or m > target.stationary_free_max:
        raise ConstraintError(
            f"nc_matmul_mx: stationary {stationary!r} has {m} columns, must be even and at most "
            f"{target.stationary_free_max}",
            hint="pad an odd number of columns with a column of zeros",
        )
    limit = target.moving_free_max_into(bfloat16=dst.dtype is bfloat16)
    if n > limit:
        raise ConstraintError(
            f"nc_matmul_mx: moving {moving!r} has {n} columns, at most {limit} into {dst.dtype}",
            hint="loop over tiles of the columns",
        )
    if dst.shape[0] != m or dst.size != m * n:
        raise ConstraintError(
            f"nc_matmul_mx: dst {dst!r} must be [M, N] = [{m}, {n}] for stationary {stationary!r} and "
            f"moving {moving!r}"
        )
    return partitions, m, n


def _check_row_tile(partitions: int, position: tuple[int, ...], size: tuple[int, ...]) -> None:
    """MX matmuls use rows of the array only: all 128 columns (nc_matmul_mx documentation)."""
    if len(position) != 2 or len(size) != 2:
        raise ConstraintError(
            f"nc_matmul_mx: tile_position {position} and tile_size {size} must both be given as pairs"
        )
    (row, column), (rows, columns) = position, size
    if column != 0 or columns != 128:
        raise ConstraintError(
            f"nc_matmul_mx: tile_position {position} and tile_size {size} divide the columns",
            hint="only rows can be divided: tile_position=(row, 0), tile_size=(rows, 128)",
        )
    if rows not in (32, 64, 128) or row % rows or not 0 <= row < 128:
        raise ConstraintError(
            f"nc_matmul_mx: row {row} must be a multiple of the tile's {rows} rows, which must be 32, 64 or 128"
        )
    if partitions > rows:
        raise ConstraintError(
            f"nc_matmul_mx: {partitions} partitions exceed tile_size {size}",
            hint="tile_size bounds the contraction",
        )
