"""What was paid for or computed once: replies of language models and verdicts on candidates, by their content's key.

Entries are shared by all runs of a home folder. Each is one JSON file, written aside and renamed once it is on the
disk. A file that is damaged counts as absent, and that is said.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import pydantic

from neuron_port.drafting.keeping.files import make_folder, replace_file
from neuron_port.grading.verdict import Verdict
from neuron_port.llm.messages import Reply
from neuron_port.lockfile import hold
from neuron_port.store import Store
from neuron_port.types import digest, from_json, to_json

Record = TypeVar("Record")


class RecordCache(Generic[Record]):
    """Records of one class by key, below `folder`. `say` hears of damaged entries."""

    def __init__(
        self, folder: Path, record: type[Record], *, say: Callable[[str], None] | None = None
    ) -> None:
        self.folder = folder
        self._record = record
        self._say = say

    def get(self, key: str) -> Record | None:
        """The record kept under `key`; None when there is none, or when its file is damaged (which is said)."""
        path = self.path(key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            entry = json.loads(content)
            if entry["key"] != key or entry["sha256"] != _sha256(entry["record"]):
                raise ValueError("its checksum differs")
            return from_json(self._record, entry["record"])
        except (ValueError, KeyError, TypeError, pydantic.ValidationError):
            if self._say is not None:
                self._say(f"{path} is damaged and counts as absent.")
            return None

    def keep(self, key: str, record: Record) -> None:
        """Put `record` under `key`; it is on the disk when this returns. Raises StorageError if the disk refuses."""
        path = self.path(key)
        value = to_json(record)
        entry = {"key": key, "sha256": _sha256(value), "record": value}
        with Store(self.folder).writing(path):
            make_folder(path.parent)
            replace_file(path, (json.dumps(entry) + "\n").encode())

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"

    @contextmanager
    def alone(self, key: str) -> Iterator[None]:
        """Be the only thread and process at `key`: of two that want the same reply, one pays and the other reads."""
        locks = self.folder / "locks"
        with Store(self.folder).writing(locks):
            make_folder(locks)
        with hold(locks / f"{key}.lock"):
            yield


def open_replies(home: Path, *, say: Callable[[str], None] | None = None) -> RecordCache[Reply]:
    """Replies by `Request.key`, below $NEURON_PORT_HOME."""
    return RecordCache(home / "replies", Reply, say=say)


def open_verdicts(home: Path, *, say: Callable[[str], None] | None = None) -> RecordCache[Verdict]:
    """Verdicts by `verdict_key`, below $NEURON_PORT_HOME."""
    return RecordCache(home / "verdicts", Verdict, say=say)


def verdict_key(source: str, *, oracle_key: str, check: str, tier: str, verifier_version: str) -> str:
    """What a verdict depends on: the candidate's code, the frozen oracle, what was asked, and who judged."""
    sha256 = hashlib.sha256(source.encode()).hexdigest()
    return digest(sha256, oracle_key, check, tier, verifier_version)


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
