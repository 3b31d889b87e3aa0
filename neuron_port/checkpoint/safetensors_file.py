"""Tensor specs from safetensors headers; truncated, corrupted and missing files are refused before use.

Only headers are read (kilobytes of a gigabyte file). Layout, from the format's documentation: eight bytes
with the header's length (little endian), the header as JSON `{name: {dtype, shape, data_offsets}}`, the data.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuron_port.errors import CheckpointError
from neuron_port.types import TensorSpec

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
LENGTH_BYTES = 8
HEADER_LIMIT_BYTES = 100_000_000  # the format's own limit
DTYPES = {
    "F32": "float32", "BF16": "bfloat16", "F16": "float16", "I64": "int64", "I32": "int32", "I16": "int16",
    "I8": "int8", "U8": "uint8", "BOOL": "bool", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
DOWNLOAD_AGAIN = "Download or copy the file again."


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor in a file: which file, and its shape and dtype there."""

    file: Path
    spec: TensorSpec


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files that make up the checkpoint: the shards of its index, or the single file.

    Raises CheckpointError when there is none, or when a shard that the index names is missing.
    """
    index = directory / INDEX_FILE
    if not index.is_file():
        if (directory / SINGLE_FILE).is_file():
            return [directory / SINGLE_FILE]
        raise _no_weights(directory)
    try:
        shards = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} is not a safetensors index.", hint=DOWNLOAD_AGAIN) from error
    missing = [shard for shard in shards if not (directory / shard).is_file()]
    if missing:
        raise CheckpointError(
            f"{directory} lacks {len(missing)} of the {len(shards)} weight files that {INDEX_FILE} names, "
            f"the first is {missing[0]}.",
            hint="Download or copy the missing files.",
        )
    return [directory / shard for shard in shards]


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint by the name that the files give it."""
    tensors: dict[str, StoredTensor] = {}
    for file in weight_files(directory):
        for name, spec in read_header(file).items():
            tensors[name] = StoredTensor(file=file, spec=spec)
    return tensors


def read_header(file: Path) -> dict[str, TensorSpec]:
    """Names and specs of a file's tensors. Raises CheckpointError if size or header is wrong."""
    size_bytes = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(LENGTH_BYTES)
        if prefix + stream.read(12) == b"version https://git-":
            raise CheckpointError(
                f"{file} is a Git LFS pointer, not the weights.", hint="Run `git lfs pull` there."
            )
        header_bytes = int.from_bytes(prefix, "little")
        if len(prefix) < LENGTH_BYTES or header_bytes > HEADER_LIMIT_BYTES:
            raise _corrupted(file, f"its first {LENGTH_BYTES} bytes are not a header length")
        if LENGTH_BYTES + header_bytes > size_bytes:
            raise _truncated(file, LENGTH_BYTES + header_bytes, size_bytes, at_least=True)
        stream.seek(LENGTH_BYTES)
        header = _parse(file, stream.read(header_bytes))
    specs = {}
    data_end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        specs[name], data_end = _check_entry(file, name, entry, data_end)
    expected_bytes = LENGTH_BYTES + header_bytes + data_end
    if size_bytes < expected_bytes:
        raise _truncated(file, expected_bytes, size_bytes)
    if size_bytes > expected_bytes:
        raise _corrupted(file, f"its header accounts for {expected_bytes} of its {size_bytes} bytes")
    return specs


def _parse(file: Path, text: bytes) -> dict[str, dict[str, Any]]:
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        for entry in header.values():
            entry["dtype"], tuple(entry["shape"]), tuple(entry["data_offsets"])
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise _corrupted(file, "its header cannot be read") from error
    return header


def _check_entry(file: Path, name: str, entry: dict[str, Any], expected_start: int) -> tuple[TensorSpec, int]:
    """The spec of one header entry and where its data ends; entries follow each other without a gap."""
    if entry["dtype"] not in DTYPES:
        raise CheckpointError(
            f"Tensor `{name}` in {file} has dtype {entry['dtype']}, which is not supported.",
            hint=f"Supported: {', '.join(DTYPES)}.",
        )
    spec = TensorSpec(shape=tuple(entry["shape"]), dtype=DTYPES[entry["dtype"]])
    start, end = entry["data_offsets"]
    if start != expected_start or end - start != spec.size_bytes or math.prod(spec.shape) < 0:
        raise _corrupted(file, f"tensor `{name}` {spec} lies at bytes {start} to {end}, which does not fit")
    return spec, end


def _no_weights(directory: Path) -> CheckpointError:
    files = [file.name for file in directory.iterdir()]
    pickled = sorted(file for file in files if file.endswith((".bin", ".pt", ".pth")))
    stray = sorted(file for file in files if file.endswith(".safetensors"))
    if stray:
        return CheckpointError(
            f"{directory} has {stray[0]} but neither {SINGLE_FILE} nor {INDEX_FILE}.",
            hint=f"Rename the file to {SINGLE_FILE}, or save the model with transformers' save_pretrained.",
        )
    if pickled:
        return CheckpointError(
            f"{directory} has its weights only as {pickled[0]}, a pickle, which runs code when it is read.",
            hint="Safetensors files are required: convert with transformers' save_pretrained.",
        )
    return CheckpointError(
        f"{directory} has a configuration but no weights.",
        hint="Use --random-weights to go on with random ones, or add the safetensors files.",
    )


def _truncated(
    file: Path, expected_bytes: int, actual_bytes: int, *, at_least: bool = False
) -> CheckpointError:
    expected = f"at least {expected_bytes}" if at_least else f"{expected_bytes}"
    return CheckpointError(
        f"{file} is truncated: {expected} bytes expected, {actual_bytes} there.", hint=DOWNLOAD_AGAIN
    )


def _corrupted(file: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{file} is not a valid safetensors file: {what}.", hint=DOWNLOAD_AGAIN)
