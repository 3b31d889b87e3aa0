"""What a GGUF file says of itself: its metadata, and how many bytes it must have.

Read here, not with the gguf package, because that needs seconds for a large vocabulary, and a truncated
file fails there with a message about array shapes. Layout, from the format's specification (little endian):
magic, version, tensor count, metadata count; metadata; per tensor name, sizes, type, offset; aligned data.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from neuron_port.errors import CheckpointError

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT_BYTES = 32
STRING, ARRAY = 8, 9
# Value type -> struct format; 7 is bool.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True, kw_only=True)
class GgufHeader:
    """Metadata without arrays (`general.architecture`, `general.license`), and the number of weights."""

    metadata: dict[str, Any]
    parameter_count: int


def read_gguf_header(file: Path) -> GgufHeader:
    """The header of `file`. Raises CheckpointError if it is not GGUF, or shorter than its header promises."""
    size_bytes = file.stat().st_size
    with file.open("rb") as stream:
        if stream.read(4) != MAGIC:
            raise CheckpointError(f"{file} is not a GGUF file: it does not start so.", hint="Check the path.")
        try:
            _, tensor_count, metadata_count = _unpack(stream, "IQQ")
            metadata = {_string(stream): _value(stream) for _ in range(metadata_count)}
            tensors = [_tensor(stream) for _ in range(tensor_count)]
        except (struct.error, UnicodeDecodeError, KeyError, MemoryError, OverflowError) as error:
            raise CheckpointError(
                f"{file} is truncated or damaged: its header does not end within its {size_bytes} bytes.",
                hint="Download or copy the file again.",
            ) from error
        header_bytes = stream.tell()
    alignment_bytes = metadata.get("general.alignment", DEFAULT_ALIGNMENT_BYTES)
    start = -(-header_bytes // alignment_bytes) * alignment_bytes
    ends = [offset + _data_bytes(file, count, kind) for count, kind, offset in tensors]
    expected_bytes = start + max(ends, default=0)
    if size_bytes < expected_bytes:
        raise CheckpointError(
            f"{file} is truncated: {expected_bytes} bytes expected, {size_bytes} there.",
            hint="Download or copy the file again.",
        )
    return GgufHeader(metadata=metadata, parameter_count=sum(count for count, _, _ in tensors))


def _unpack(stream: BinaryIO, format: str) -> tuple[Any, ...]:
    layout = struct.Struct("<" + format)
    return layout.unpack(stream.read(layout.size))


def _string(stream: BinaryIO) -> str:
    (length,) = _unpack(stream, "Q")
    data = stream.read(length)
    if len(data) < length:
        raise struct.error("end of file inside a string")
    return data.decode()


def _value(stream: BinaryIO, kind: int | None = None) -> Any:
    """The next value; arrays (vocabulary, merges) are read over and come back as None."""
    kind = _unpack(stream, "I")[0] if kind is None else kind
    if kind == STRING:
        return _string(stream)
    if kind != ARRAY:
        return _unpack(stream, SCALARS[kind])[0]
    item_kind, count = _unpack(stream, "IQ")
    if item_kind in SCALARS:
        stream.seek(count * struct.calcsize(SCALARS[item_kind]), 1)
        return None
    for _ in range(count):
        _value(stream, item_kind)
    return None


def _tensor(stream: BinaryIO) -> tuple[int, int, int]:
    """Element count, quantization type and data offset of the next tensor."""
    _string(stream)
    (dimensions,) = _unpack(stream, "I")
    shape = _unpack(stream, f"{dimensions}Q")
    kind, offset = _unpack(stream, "IQ")
    return math.prod(shape), kind, offset


def _data_bytes(file: Path, count: int, kind: int) -> int:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block_size, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"{file} has a tensor of the unknown quantization type {kind}.", hint="Update the gguf package."
        ) from error
    return count // block_size * block_bytes
