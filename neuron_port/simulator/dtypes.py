"""The data types of NKI, how each is stored here, and how float32 results are rounded to it.

16- and 8-bit floats are *held* in float32 arrays that contain only representable values: rounding happens
once, on write, and reads cost nothing. Integers and float32 are held as they are. The packed types of
NeuronCore-v4 hold four small floats in one element, as unsigned integers: they move, but do not compute.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from neuron_port.simulator.errors import ConstraintError, UnsupportedError

FLOAT32 = np.dtype(np.float32)


class DType(str):
    """An NKI dtype: its name as a string (as AWS declares it), with sizes and rounding attached."""

    native: np.dtype[Any]
    held: np.dtype[Any]
    itemsize: int
    is_float: bool
    is_integer: bool
    is_packed: bool  # four elements in one; neither float nor integer
    rounded: Callable[[np.ndarray], np.ndarray]

    def __repr__(self) -> str:
        return str(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are the one record of the name: dtypes are compared by identity."""
        return resolve, (str(self),)


def _round_float(native: np.dtype[Any]) -> Callable[[np.ndarray], np.ndarray]:
    def rounded(values: np.ndarray) -> np.ndarray:
        return values.astype(native).astype(FLOAT32)

    return rounded


def _round_tfloat32(values: np.ndarray) -> np.ndarray:
    """Round the 23-bit mantissa to 10 bits, to nearest even; infinities and NaN pass."""
    values = np.ascontiguousarray(values, dtype=FLOAT32)
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(values), rounded.view(FLOAT32), values)


def _round_float32(values: np.ndarray) -> np.ndarray:
    return values if values.dtype == FLOAT32 else values.astype(FLOAT32)


def _round_integer(native: np.dtype[Any]) -> Callable[[np.ndarray], np.ndarray]:
    """Round to nearest even and saturate (NKI 0.6); NaN becomes 0, which the documents leave open."""
    limits = np.iinfo(native)

    def rounded(values: np.ndarray) -> np.ndarray:
        if values.dtype == native:
            return values
        if values.dtype.kind == "f":
            wide = np.nan_to_num(
                np.rint(values.astype(np.float64)), nan=0.0, posinf=limits.max, neginf=limits.min
            )
        else:
            wide = values.astype(np.int64)
        return np.clip(wide, limits.min, limits.max).astype(native)

    return rounded


def _make(name: str, native: Any, rounded: Callable[[np.ndarray], np.ndarray] | None = None) -> DType:
    dtype = DType(name)
    dtype.native = np.dtype(native)
    dtype.itemsize = dtype.native.itemsize
    dtype.is_packed = name.endswith("_x4")
    dtype.is_integer = dtype.native.kind in "iu" and not dtype.is_packed
    dtype.is_float = not (dtype.is_integer or dtype.is_packed)
    dtype.held = FLOAT32 if dtype.is_float else dtype.native
    dtype.rounded = rounded or (_round_integer if dtype.is_integer else _round_float)(dtype.native)
    return dtype


def _make_packed(name: str, native: Any) -> DType:
    """Four small floats in one unsigned integer, the first of them in the lowest bits."""

    def rounded(values: np.ndarray) -> np.ndarray:
        if np.any(values):
            raise ConstraintError(
                f"values are written into a tile of the packed dtype {name}, which holds four elements in one",
                hint="fill it by nisa.quantize_mx, nisa.dma_copy from the same dtype, or nisa.memset with 0; "
                "to write single elements, view it as the dtype of one element",
            )
        return np.zeros(values.shape, native)

    return _make(name, native, rounded)


bool_ = _make("bool", np.uint8)
int8 = _make("int8", np.int8)
int16 = _make("int16", np.int16)
int32 = _make("int32", np.int32)
uint8 = _make("uint8", np.uint8)
uint16 = _make("uint16", np.uint16)
uint32 = _make("uint32", np.uint32)
float32 = _make("float32", np.float32, _round_float32)
tfloat32 = _make("tfloat32", np.float32, _round_tfloat32)
float16 = _make("float16", np.float16)
bfloat16 = _make("bfloat16", ml_dtypes.bfloat16)
float8_e4m3 = _make("float8_e4m3", ml_dtypes.float8_e4m3)
float8_e4m3fn = _make("float8_e4m3fn", ml_dtypes.float8_e4m3fn)
float8_e5m2 = _make("float8_e5m2", ml_dtypes.float8_e5m2)
float8_e8m0fnu = _make("float8_e8m0fnu", ml_dtypes.float8_e8m0fnu)
# NeuronCore-v4's matrix formats (nki.api.shared.rst): 4, 4 and 2 bytes for four elements.
float8_e5m2_x4 = _make_packed("float8_e5m2_x4", np.uint32)
float8_e4m3fn_x4 = _make_packed("float8_e4m3fn_x4", np.uint32)
float4_e2m1fn_x4 = _make_packed("float4_e2m1fn_x4", np.uint16)

ALL: tuple[DType, ...] = (
    bool_,
    int8,
    int16,
    int32,
    uint8,
    uint16,
    uint32,
    float32,
    tfloat32,
    float16,
    bfloat16,
    float8_e4m3,
    float8_e4m3fn,
    float8_e5m2,
    float8_e8m0fnu,
    float8_e5m2_x4,
    float8_e4m3fn_x4,
    float4_e2m1fn_x4,
)
PACKED = (float8_e5m2_x4, float8_e4m3fn_x4, float4_e2m1fn_x4)
FLOAT8 = (float8_e4m3, float8_e4m3fn, float8_e5m2)

_by_name: dict[str, DType] = {str(dtype): dtype for dtype in ALL} | {"bool_": bool_}
_by_native: dict[np.dtype[Any], DType] = {
    dtype.native: dtype for dtype in reversed(ALL) if dtype is not tfloat32 and not dtype.is_packed
}
_by_native[np.dtype(np.uint8)] = uint8
_by_native[np.dtype(np.bool_)] = bool_


def resolve(dtype: Any) -> DType:
    """The NKI dtype for a name, an NKI dtype, or a numpy dtype.

    Raises:
        UnsupportedError: 64-bit types, complex.
    """
    if type(dtype) is DType:
        return dtype
    if isinstance(dtype, str) and dtype in _by_name:
        return _by_name[dtype]
    try:
        return _by_native[np.dtype(dtype)]
    except (TypeError, KeyError):
        raise UnsupportedError(
            f"dtype `{dtype}` is not one that this simulator holds",
            hint=f"NKI has no 64-bit types; use one of {', '.join(_by_name)}",
        ) from None
