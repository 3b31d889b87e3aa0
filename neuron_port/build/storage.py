"""Writes folders whole or not at all, and turns a full disk into one sentence."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neuron_port.build.finishing.files import MANIFEST
from neuron_port.errors import StorageError, UsageError
from neuron_port.types import to_json

SAFETENSORS_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8",
    "bool": "BOOL",
}  # fmt: skip

# EFBIG: a file larger than the process may write (ulimit -f) is the same trouble to a user as a full disk.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def replacing(destination: Path, marker: str = MANIFEST, kind: str = "neuron bundle") -> Iterator[Path]:
    """A folder beside `destination` that takes its place when the block ends well, and vanishes otherwise.

    A bundle that stands at `destination` is kept until the new one is whole. `marker` is the file by which a folder
    is known to be one (of another `kind`: to be that).

    Raises: UsageError when something else stands there; StorageError when it cannot be written.
    """
    previous = destination.with_name(f".{destination.name}.previous")
    with _storage_errors(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        if previous.exists() and not destination.exists():
            previous.rename(destination)  # an earlier run ended between the two renames below
        _refuse_strangers(destination, marker, kind)
        aside = Path(tempfile.mkdtemp(prefix=f".{destination.name}.partial-", dir=destination.parent))
        try:
            yield aside
            aside.chmod(0o755)
            shutil.rmtree(previous, ignore_errors=True)
            if destination.exists():
                destination.rename(previous)
            try:
                aside.rename(destination)
            except OSError:
                if previous.exists():
                    previous.rename(destination)
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(previous, ignore_errors=True)


def _refuse_strangers(destination: Path, marker: str, kind: str) -> None:
    if destination.is_symlink() or (destination.exists() and not destination.is_dir()):
        found = "a link" if destination.is_symlink() else "a file"
        raise UsageError(f"`{destination}` is {found}, not a {kind}", hint="Choose another destination.")
    if destination.is_dir() and any(destination.iterdir()) and not (destination / marker).is_file():
        raise UsageError(
            f"`{destination}` is not empty and no {kind}: it is not replaced",
            hint="Choose another destination, or remove it yourself.",
        )


@contextlib.contextmanager
def _storage_errors(destination: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise StorageError(
                f"No space left for the bundle `{destination}`: {error.strerror}",
                hint="Free some space, or use --weights link or reference. Nothing was left behind.",
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise StorageError(
                f"`{error.filename or destination}` cannot be accessed: {error.strerror}",
                hint="Choose a destination that you may write.",
            ) from error
        raise


def finite(value: Any) -> Any:
    """JSON values of a record; numbers that JSON has no form for become "inf", "-inf" or "nan"."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    plain = to_json(value)
    return plain if plain is value else finite(plain)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with a stable key order of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays (bfloat16 included) as one safetensors file.

    The format is an eight-byte length, a JSON header and the raw values. Written here because a full disk
    must reach us as an OSError, which the library's own writer turns into something else.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    header: dict[str, Any] = {}
    end = 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        dtype = SAFETENSORS_DTYPES[array.dtype.name]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # values start aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).tobytes())


def keep_neffs(old: Path, new: Path) -> None:
    """Bring compiled NEFFs along: finishing takes those whose key is still right, and compiles the others."""
    if (old / "neff").is_dir():
        shutil.copytree(old / "neff", new / "neff", copy_function=os.link)
