"""Reads tensors of safetensors files with NumPy alone: the nrtpy environment need not have more."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Weights:
    """Reads tensors of safetensors files as raw NumPy arrays; bfloat16 is kept as its 16 bits (uint16)."""

    # safetensors' name of a dtype -> (its raw bits in NumPy, our name)
    DTYPES = {
        "F64": ("<f8", "float64"), "F32": ("<f4", "float32"), "F16": ("<f2", "float16"),
        "BF16": ("<u2", "bfloat16"),
        "I64": ("<i8", "int64"), "I32": ("<i4", "int32"), "I16": ("<i2", "int16"), "I8": ("i1", "int8"),
        "U8": ("u1", "uint8"), "BOOL": ("?", "bool"),
    }  # fmt: skip

    def __init__(self, files: Sequence[Path]) -> None:
        self._where: dict[str, tuple[Path, int, dict[str, Any]]] = {}
        for path in files:
            with path.open("rb") as file:
                (size,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(size))
            for name, entry in header.items():
                if name != "__metadata__":
                    self._where[name] = (path, 8 + size, entry)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def names(self) -> list[str]:
        return list(self._where)

    def raw(self, name: str) -> tuple[Any, str]:
        """(array, dtype name) of one tensor."""
        import numpy

        path, start, entry = self._where[name]
        first, last = entry["data_offsets"]
        bits, dtype = self.DTYPES[entry["dtype"]]
        with path.open("rb") as file:
            file.seek(start + first)
            data = file.read(last - first)
        return numpy.frombuffer(data, dtype=bits).reshape(entry["shape"]), dtype

    def float32(self, name: str) -> Any:
        return widen(*self.raw(name))

    def cast(self, name: str, dtype: str) -> Any:
        """One tensor in `dtype`, raw."""
        array, found = self.raw(name)
        return array if found == dtype else narrow(widen(array, found), dtype)


def widen(array: Any, dtype: str) -> Any:
    """Raw values as float32 (integers stay integers)."""
    import numpy

    if dtype == "bfloat16":
        return (array.astype(numpy.uint32) << 16).view(numpy.float32)
    return array.astype(numpy.float32) if dtype.startswith("float") else array


def narrow(array: Any, dtype: str) -> Any:
    """float32 or integer values in `dtype`, raw; bfloat16 rounds to nearest even."""
    import numpy

    if dtype != "bfloat16":
        return array.astype(dtype)
    bits = numpy.ascontiguousarray(array, dtype=numpy.float32).view(numpy.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return numpy.where(numpy.isnan(array), 0x7FC0, rounded).astype(numpy.uint16)
