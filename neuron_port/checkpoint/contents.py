"""Digests of file contents, computed once: gigabytes are read again only if size or time changed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from neuron_port.store import Store, write_json
from neuron_port.types import digest


def file_sha256(file: Path, store: Store | None = None) -> str:
    """The SHA-256 of the file's bytes, remembered in `store` by path, size and modification time."""
    if store is None:
        return _read_sha256(file)
    file = file.resolve()
    status = file.stat()
    identity = {"path": str(file), "size_bytes": status.st_size, "modified_ns": status.st_mtime_ns}
    record = store.root / "digests" / f"{digest(str(file))}.json"
    known = json.loads(record.read_bytes()) if record.is_file() else {}
    if {name: known.get(name) for name in identity} == identity:
        return str(known["sha256"])
    sha256 = _read_sha256(file)
    with store.writing(record):
        record.parent.mkdir(parents=True, exist_ok=True)
        aside = record.with_suffix(f".{os.getpid()}")
        write_json(aside, {**identity, "sha256": sha256})
        aside.replace(record)
    return sha256


def _read_sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
