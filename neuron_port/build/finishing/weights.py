"""Reads tensors of safetensors files with NumPy alone: the nrtpy environment need not have more."""

from __future__ import annotations

import json
import struct
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from .files import read_json, sha256_of

# Tensors under the modules' names that the checkpoint's own files hold in another form (docs/bundle.md).
CONVERTED = "converted.safetensors"


class Weights:
    """Reads tensors of safetensors files as raw NumPy arrays: bfloat16 and float8 as their bits (uint16, uint8).

    Of two tensors of one name the one in `converted.safetensors` counts: the other is the form it was made of.
    """

    # safetensors' name of a dtype -> (its raw bits in NumPy, our name)
    DTYPES = {
        "F64": ("<f8", "float64"), "F32": ("<f4", "float32"), "F16": ("<f2", "float16"),
        "BF16": ("<u2", "bfloat16"),
        "I64": ("<i8", "int64"), "I32": ("<i4", "int32"), "I16": ("<i2", "int16"), "I8": ("i1", "int8"),
        "U8": ("u1", "uint8"), "BOOL": ("?", "bool"),
        "F8_E4M3": ("u1", "float8_e4m3fn"), "F8_E5M2": ("u1", "float8_e5m2"),
    }  # fmt: skip

    def __init__(self, files: Sequence[Path]) -> None:
        self._where: dict[str, tuple[Path, int, dict[str, Any]]] = {}
        for path in sorted(files, key=lambda path: path.name == CONVERTED):
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


# Exponent bits, mantissa bits and bias of the 8-bit floats (Open Compute Project, OFP8).
FLOAT8 = {"float8_e4m3fn": (4, 3, 7), "float8_e5m2": (5, 2, 15)}


def raw_dtype(dtype: str) -> str:
    """NumPy's name for the raw bits of `dtype`."""
    return {"bfloat16": "uint16", **dict.fromkeys(FLOAT8, "uint8")}.get(dtype, dtype)


def widen(array: Any, dtype: str) -> Any:
    """Raw values as float32 (integers stay integers)."""
    import numpy

    if dtype == "bfloat16":
        return (array.astype(numpy.uint32) << 16).view(numpy.float32)
    if dtype in FLOAT8:
        return _float8_values(dtype)[array]
    return array.astype(numpy.float32) if dtype.startswith("float") else array


def _float8_values(dtype: str) -> Any:
    """[256]: the float32 value of every bit pattern."""
    import numpy

    exponent_bits, mantissa_bits, bias = FLOAT8[dtype]
    bits = numpy.arange(256)
    exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1)
    mantissa = (bits & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    scale = numpy.exp2(numpy.maximum(exponent, 1) - bias)
    values = numpy.where(exponent == 0, mantissa, 1 + mantissa) * scale
    if dtype == "float8_e4m3fn":  # no infinities; all bits set is NaN
        values[(bits & 0x7F) == 0x7F] = numpy.nan
    else:
        values[exponent == 31] = numpy.where(mantissa[exponent == 31] == 0, numpy.inf, numpy.nan)
    return numpy.where(bits & 0x80, -values, values).astype(numpy.float32)


def narrow(array: Any, dtype: str) -> Any:
    """float32 or integer values in `dtype`, raw; bfloat16 rounds to nearest even.

    Raises: ValueError for an 8-bit float, which is only ever read as it is stored.
    """
    import numpy

    if dtype in FLOAT8:
        if array.any():
            raise ValueError(f"values are not converted to {dtype}: the bundle stores them so")
        return numpy.zeros(array.shape, numpy.uint8)
    if dtype != "bfloat16":
        return array.astype(dtype)
    bits = numpy.ascontiguousarray(array, dtype=numpy.float32).view(numpy.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return numpy.where(numpy.isnan(array), 0x7FC0, rounded).astype(numpy.uint16)


def laid_out(array: Any, transform: str) -> Any:
    """The weight in the graph's layout, as the interface's `transform` says (docs/bundle.md)."""
    if transform == "none":
        return array
    if transform == "transpose":
        return array.swapaxes(-1, -2)
    return array.transpose([int(axis) for axis in transform.removeprefix("permute:").split(",")])


def part_of(array: Any, shard: Mapping[str, Any] | None, rank: int) -> Any:
    """A rank's part of a whole state, as the interface's `shard` says: its share of each of the axis's blocks."""
    import numpy

    if shard is None or shard["axis"] is None:
        return array
    axis, blocks = shard["axis"], numpy.split(array, shard["blocks"], shard["axis"])
    copies = max(1, shard["ranks"] // shard["units"])
    share = blocks[0].shape[axis] * copies // shard["ranks"]
    start = rank // copies * share
    return numpy.concatenate([numpy.take(block, range(start, start + share), axis) for block in blocks], axis)


SHARDED = "tp{rank}_sharded_checkpoint.safetensors"


def weight_files(
    folder: Path, manifest: Mapping[str, Any], elsewhere: str | None, rank: int
) -> tuple[list[Path], str]:
    """A rank's files of weights, in the bundle and in --weights, their hashes checked; or what is wrong with one."""
    inside = sorted((folder / "weights").glob("*.safetensors")) if (folder / "weights").is_dir() else []
    outside = sorted(Path(elsewhere).glob("*.safetensors")) if elsewhere else []
    found = [*inside, *outside]
    if manifest["target"]["tp"] > 1:
        own = SHARDED.format(rank=rank)
        ours = [path for path in found if path.name == own or path.name.startswith("derived")]
        if not any(path.name == own for path in ours):
            return [], f"weights/{own} is not there: rank {rank} has no weights"
        found = ours
    expected = {entry["name"]: entry["sha256"] for entry in manifest["weights"]["files"]}
    for path in found:
        if not path.is_file():
            return (
                [],
                f"weights/{path.name} is a link to nothing; --weights DIR names the checkpoint's folder",
            )
        if path.name in expected and sha256_of(path) != expected[path.name]:
            return [], f"{path.name} is not the file that was converted: its SHA-256 differs"
    return found, ""


def open_weights(
    folder: Path, manifest: Mapping[str, Any], elsewhere: str | None, wanted: Collection[str], rank: int = 0
) -> tuple[Weights, str]:
    """A rank's weights; or why they cannot be had. `wanted`: sources that graphs read."""
    files, problem = weight_files(folder, manifest, elsewhere, rank)
    weights = Weights(files)
    if problem:
        return weights, problem
    absent = sorted(name for name in wanted if name.removeprefix("derived:") not in weights)
    if not absent:
        return weights, ""
    why = (
        "they were random and are not stored"
        if manifest["weights"]["random"]
        else "--weights DIR names their folder"
    )
    return weights, f"{len(absent)} weights are not in the bundle ({absent[0]}, ...): {why}"


def weight_sources(folder: Path, graphs: Collection[str]) -> set[str]:
    """What the graphs read, by the names of their interfaces."""
    found = set()
    for graph in graphs:
        inputs = read_json(folder / "graphs" / graph / "io.json")["inputs"]
        found |= {entry["source"] for entry in inputs if entry["role"] == "weight"}
    return found
