"""The wire between the sandbox's parent and its child: one frame is a header, a JSON object and raw arrays.

Nothing on it can run code: no pickle, every length is bounded by the reader, every array's dtype comes from a table.
The nonce in each header is drawn by the parent for this process; a frame without it ends the process.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import ml_dtypes
import numpy as np

HEADER = struct.Struct("<4s16sBIQ")  # magic, nonce, kind, bytes of JSON, bytes of arrays
MAGIC = b"nkSB"
NONCE_BYTES = 16
MAXIMUM_JSON_BYTES = 1 << 20
MAXIMUM_ARRAYS = 64
MAXIMUM_DIMENSIONS = 16

_PLAIN = (
    "float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool",
)  # fmt: skip
_SMALL = ("bfloat16", "float8_e4m3", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu")
DTYPES: dict[str, np.dtype[Any]] = {name: np.dtype(name) for name in _PLAIN} | {
    name: np.dtype(getattr(ml_dtypes, name)) for name in _SMALL
}
ABSENT = 0  # in a call, instead of the number of an array that the child holds: the argument is None
_TUPLE = "tuple of"  # JSON has no tuples; kernels may compare a shape with one


class Kind(IntEnum):
    """What a frame says. The first row goes to the child, the second comes from it."""

    start, call, hold, stop = 1, 2, 3, 4
    ready, result, held, failed = 17, 18, 19, 20


class ProtocolError(Exception):
    """Bytes that are no frame of ours, or one that exceeds its bounds."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One message and its arrays."""

    kind: Kind
    body: Mapping[str, Any]
    arrays: tuple[np.ndarray, ...] = ()


def to_wire(value: Any) -> Any:
    """An attribute as JSON: numbers, text, None, lists and tuples of them.

    Raises:
        TypeError: anything else.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple):
        return {_TUPLE: [to_wire(item) for item in value]}
    if isinstance(value, list):
        return [to_wire(item) for item in value]
    raise TypeError(
        f"a kernel's attribute is {type(value).__name__} {value!r:.80}; it must be a number or text"
    )


def from_wire(value: Any) -> Any:
    """What `to_wire` was given."""
    if isinstance(value, dict):
        return tuple(from_wire(item) for item in value[_TUPLE])
    return [from_wire(item) for item in value] if isinstance(value, list) else value


def pack(nonce: bytes, kind: Kind, body: Mapping[str, Any], arrays: Sequence[np.ndarray] = ()) -> list[Any]:
    """The buffers of one frame, in order; arrays are not copied where they are contiguous."""
    described = [[array.dtype.name, list(array.shape)] for array in arrays]
    text = json.dumps({**body, "arrays": described}).encode()
    raw = [np.ascontiguousarray(array).reshape(-1).view(np.uint8).data for array in arrays]
    size = sum(part.nbytes for part in raw)
    return [HEADER.pack(MAGIC, nonce, kind, len(text), size) + text, *raw]


def unpack_header(header: bytes, nonce: bytes | None, maximum_array_bytes: int) -> tuple[Kind, int, int]:
    """(kind, bytes of JSON, bytes of arrays) of a header; without `nonce` any is taken.

    Raises:
        ProtocolError: it is not ours, or announces more than may come.
    """
    magic, sent, kind, json_bytes, array_bytes = HEADER.unpack(header)
    if magic != MAGIC or (nonce is not None and sent != nonce):
        raise ProtocolError("bytes that are no frame of this process")
    if kind not in Kind._value2member_map_:
        raise ProtocolError(f"a frame of the unknown kind {kind}")
    if json_bytes > MAXIMUM_JSON_BYTES:
        raise ProtocolError(f"a frame with {json_bytes:,} bytes of JSON, at most {MAXIMUM_JSON_BYTES:,}")
    if array_bytes > maximum_array_bytes:
        raise ProtocolError(f"{array_bytes:,} bytes of arrays, at most {maximum_array_bytes:,}")
    return Kind(kind), json_bytes, array_bytes


def unpack_body(text: bytes, array_bytes: int) -> tuple[dict[str, Any], list[tuple[Any, tuple[int, ...]]]]:
    """The JSON object, and dtype and shape of each array that follows; their sizes add up to `array_bytes`.

    Raises:
        ProtocolError: it does not.
    """
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"JSON that cannot be read: {error}") from error
    described = body.pop("arrays", None) if isinstance(body, dict) else None
    if not isinstance(described, list) or len(described) > MAXIMUM_ARRAYS:
        raise ProtocolError("a frame that does not describe its arrays")
    specs = [_spec(entry) for entry in described]
    total = 0
    for dtype, shape in specs:
        size = dtype.itemsize
        for length in shape:
            size *= length
        total += size
    if total != array_bytes:
        raise ProtocolError(f"arrays of {total:,} bytes are announced, and {array_bytes:,} bytes")
    return body, specs


def _spec(entry: Any) -> tuple[np.dtype[Any], tuple[int, ...]]:
    if not isinstance(entry, list) or len(entry) != 2:
        raise ProtocolError("an array without dtype and shape")
    name, shape = entry
    if not isinstance(name, str) or name not in DTYPES:
        raise ProtocolError(f"an array of the unknown dtype {name!r:.40}")
    if not isinstance(shape, list) or len(shape) > MAXIMUM_DIMENSIONS:
        raise ProtocolError(f"an array of shape {shape!r:.80}")
    if not all(type(length) is int and 0 <= length < 2**48 for length in shape):
        raise ProtocolError(f"an array of shape {shape!r:.80}")
    return DTYPES[name], tuple(shape)
