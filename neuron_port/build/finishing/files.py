"""The vocabulary of finishing: exit codes, messages to the user, files written whole."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

MANIFEST = "neuron_port.json"
SCHEMA_VERSION = 1
OK, USAGE, ENVIRONMENT, COMPILATION, PARITY, INTERRUPTED = 0, 2, 3, 4, 5, 130
GIB = 1 << 30
FINISH = Path(__file__).resolve().parent.parent / "finish.py"


class Stop(Exception):  # noqa: N818  (not an error of the program: an ordered end with an exit code)
    """Ends the run with one sentence, its cure and an exit code."""

    def __init__(self, exit_code: int, sentence: str, cure: str = "") -> None:
        super().__init__(sentence)
        self.exit_code, self.sentence, self.cure = exit_code, sentence, cure


def say(text: str) -> None:
    """Tell the user something, at once, on standard error."""
    print(text, file=sys.stderr, flush=True)


def gib(size_bytes: float) -> str:
    return f"{size_bytes / GIB:.1f} GiB"


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write aside and rename, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(
        json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    aside.replace(path)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
