"""How MX matrices of NeuronCore-v4 lie in SBUF: packed elements, and scales in four partitions of each quadrant.

An MX matrix is a tile of packed elements, four along the contraction in one, and a tile of scales: one power of two
for each group of 8 partitions x 4 elements. The scales of a quadrant of 32 partitions lie in four partitions of the
same quadrant, which start at its partition 0, 4, 8 or 12, so that one tile can hold the scales of four matrices
(trainium3_arch.rst, mxfp-matmul.rst).
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from neuron_port.simulator.checks import SBUF, check_dtype, check_memory, require_written
from neuron_port.simulator.dtypes import (
    FLOAT32,
    DType,
    float4_e2m1fn_x4,
    float8_e4m3fn_x4,
    float8_e5m2_x4,
    float8_e8m0fnu,
    uint8,
)
from neuron_port.simulator.errors import ConstraintError
from neuron_port.simulator.tensor import NkiTensor

QUADRANT = 32  # partitions that share their scale partitions
GROUP_PARTITIONS, GROUP_ELEMENTS = 8, 4  # 32 values share a scale
SCALES_PER_QUADRANT = QUADRANT // GROUP_PARTITIONS
SCALE_OFFSETS = (0, 4, 8, 12)  # where the scales may start in a quadrant (mxfp-matmul.rst)
SCALE_BIAS = 127  # of float8_e8m0fnu: the byte b means 2 ** (b - 127), and 255 NaN
SCALE_NAN = 255

# The type of one element, and the exponent of its largest value (OCP MX 1.0).
ELEMENTS: dict[DType, tuple[Any, int]] = {
    float8_e5m2_x4: (ml_dtypes.float8_e5m2, 15),
    float8_e4m3fn_x4: (ml_dtypes.float8_e4m3fn, 8),
    float4_e2m1fn_x4: (ml_dtypes.float4_e2m1fn, 2),
}
# The float32 value of every byte (of every 4 bits for float4), which makes unpacking a look-up.
DECODED = {
    packed: np.arange(16 if packed is float4_e2m1fn_x4 else 256, dtype=np.uint8).view(element).astype(FLOAT32)
    for packed, (element, _) in ELEMENTS.items()
}


def unpacked(bits: np.ndarray, dtype: DType) -> np.ndarray:
    """The float32 values [P, 4, N] of packed elements [P, N]; the first of the four is in the lowest bits."""
    values = np.empty((bits.shape[0], GROUP_ELEMENTS, bits.shape[1]), FLOAT32)
    table = DECODED[dtype]
    if dtype is float4_e2m1fn_x4:
        for position in range(GROUP_ELEMENTS):
            np.take(
                table, (bits >> np.uint16(4 * position)) & np.uint16(15), out=values[:, position], mode="clip"
            )
    else:
        codes = np.ascontiguousarray(bits).view(np.uint8).reshape(*bits.shape, GROUP_ELEMENTS)
        for position in range(GROUP_ELEMENTS):
            np.take(table, codes[..., position], out=values[:, position], mode="clip")
    return values


def packed(values: np.ndarray, dtype: DType) -> np.ndarray:
    """Float32 values [*, 4] rounded to nearest even and packed into elements [*]."""
    codes = np.ascontiguousarray(values.astype(ELEMENTS[dtype][0])).view(np.uint8)
    if dtype is float4_e2m1fn_x4:
        shifted = codes.astype(np.uint16) << np.arange(0, 16, 4, dtype=np.uint16)
        return np.bitwise_or.reduce(shifted, axis=-1)
    return codes.view(np.uint32)[..., 0]


def scales_of(codes: np.ndarray, dtype: DType) -> np.ndarray:
    """Scale bytes as a tile of `dtype` holds them: themselves, or the power of two as a float."""
    return codes if dtype is uint8 else codes.view(ml_dtypes.float8_e8m0fnu).astype(FLOAT32)


def rows_and_columns(opcode: str, label: str, tile: NkiTensor) -> tuple[int, int]:
    """(partitions, elements per partition), after the rule of whole quadrants."""
    partitions = tile.shape[0]
    if partitions % QUADRANT or partitions > 128:
        raise ConstraintError(
            f"{opcode}: {label} {tile!r} has {partitions} partitions, must be 32, 64, 96 or 128",
            hint="pad the contraction with zeros to a multiple of 32 partitions",
        )
    return partitions, tile.size // partitions


def scale_rows(
    opcode: str, label: str, scale: NkiTensor, data: NkiTensor, columns: int
) -> tuple[NkiTensor, ...]:
    """The four partitions [4, columns] of `scale` that hold the scales of each quadrant of `data`."""
    check_memory(opcode, label, scale, SBUF)
    check_dtype(opcode, label, scale, (uint8, float8_e8m0fnu))
    if scale.start % QUADRANT not in SCALE_OFFSETS:
        raise ConstraintError(
            f"{opcode}: {label} {scale!r} starts at partition {scale.start % QUADRANT} of its quadrant, must be "
            "0, 4, 8 or 12",
            hint="slice the scale tile at [0:], [4:], [8:] or [12:]",
        )
    if scale.start // QUADRANT != data.start // QUADRANT:
        raise ConstraintError(
            f"{opcode}: {label} {scale!r} starts at partition {scale.start}, in another quadrant than its data "
            f"{data!r} at partition {data.start}",
            hint="scales lie in the quadrant of 32 partitions that their data lies in",
        )
    quadrants = data.shape[0] // QUADRANT
    least = (quadrants - 1) * QUADRANT + SCALES_PER_QUADRANT
    if scale.shape[0] < least or scale.size != scale.shape[0] * columns:
        shapes = f"({SCALES_PER_QUADRANT}, {columns}) or " if quadrants == 1 else ""
        raise ConstraintError(
            f"{opcode}: {label} {scale!r} must have shape {shapes}({data.shape[0]}, {columns}): four partitions "
            "in every quadrant of 32, one value for each group of 8 partitions x 4 elements",
            hint="a part of a packed tile may end after the last four partitions that it uses",
        )
    return tuple(
        scale[first : first + SCALES_PER_QUADRANT] for first in range(0, quadrants * QUADRANT, QUADRANT)
    )


def dequantized(tile: NkiTensor, rows: tuple[NkiTensor, ...], label: str) -> np.ndarray:
    """The float32 matrix [4 P, columns] that packed elements [P, columns] and their scales mean."""
    partitions = tile.shape[0]
    values = unpacked(tile.array.reshape(partitions, -1), tile.dtype)
    columns = values.shape[2]
    factors = np.empty((partitions // GROUP_PARTITIONS, columns), FLOAT32)
    for quadrant, row in enumerate(rows):
        require_written("nc_matmul_mx", label, row, deciding=True)
        scales = row.array.reshape(SCALES_PER_QUADRANT, columns)
        if row.dtype is uint8:
            scales = np.ascontiguousarray(scales).view(ml_dtypes.float8_e8m0fnu).astype(FLOAT32)
        factors[quadrant * SCALES_PER_QUADRANT : (quadrant + 1) * SCALES_PER_QUADRANT] = scales
    groups = values.reshape(-1, GROUP_PARTITIONS, GROUP_ELEMENTS, columns)
    groups *= factors[:, None, None, :]
    return values.reshape(partitions * GROUP_ELEMENTS, columns)
