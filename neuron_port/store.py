"""The content-addressed store: one folder per stage and key, complete or absent.

A stage is a pure function from digested inputs to a folder. It is written beside its final place as
`<key>.partial` and renamed once everything in it, marker last, has reached the disk: a crash or Ctrl-C leaves
nothing that counts.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from neuron_port.errors import StorageError
from neuron_port.lockfile import hold, try_hold

MARKER = ".complete.json"  # the sizes of all files of the stage; written last
PARTIAL_SUFFIX = ".partial"
DISK_ERRORS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "writing is not allowed",
    errno.EPERM: "writing is not allowed",
    errno.EROFS: "the file system is read-only",
    errno.ENOTDIR: "there is a file where a folder should be",
}
SPACE_ERRORS = (errno.ENOSPC, errno.EDQUOT)


class Store:
    """Results of stages under one root: `$NEURON_PORT_HOME`, or `~/.cache/neuron-port`."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = Path(root or os.environ.get("NEURON_PORT_HOME") or Path.home() / ".cache" / "neuron-port")

    def path(self, stage: str, key: str) -> Path:
        """The folder of a stage's result, whether or not it exists."""
        return self.root / stage / key

    def has(self, stage: str, key: str) -> bool:
        """Whether the result is there and whole: every file that was written, with its size."""
        return _is_complete(self.path(stage, key))

    def build(
        self,
        stage: str,
        key: str,
        write: Callable[[Path], None],
        *,
        on_wait: Callable[[str], None] | None = None,
        needed_bytes: int | None = None,
    ) -> tuple[Path, bool]:
        """Return the folder of (stage, key) and whether it was reused; if absent, call `write(empty folder)`.

        One process writes a key at a time; `on_wait` hears a sentence when another one is at it. Whatever
        `write` raises is raised here, after the half-written folder is removed.
        Raises StorageError for a full disk (up front if `needed_bytes` is given), a used-up quota, a refused
        write.
        """
        final = self.path(stage, key)
        with self.writing(final, needed_bytes):
            if _is_complete(final):
                return final, True
            with hold(self._lock(stage, key), on_wait=on_wait):
                if _is_complete(final):  # another process finished it while this one waited
                    return final, True
                self._remove_leftovers(stage, key)
                if needed_bytes is not None:
                    self.require_space(needed_bytes)
                self._write_aside(final, write)
        return final, False

    def require_space(self, needed_bytes: int) -> None:
        """Raise StorageError unless the store's disk has `needed_bytes` free: before the work, not after."""
        if _free_bytes(self.root) < needed_bytes:
            raise _storage_error(errno.ENOSPC, self.root, needed_bytes)

    def read_json(self, stage: str, key: str, name: str) -> Any:
        """The parsed JSON file `name` of a finished stage."""
        return json.loads((self.path(stage, key) / name).read_text(encoding="utf-8"))

    @staticmethod
    def _write_aside(final: Path, write: Callable[[Path], None]) -> None:
        """Write and seal `<key>.partial`, then rename it; whatever happens, no partial folder stays."""
        partial = final.with_name(final.name + PARTIAL_SUFFIX)
        try:
            partial.mkdir(parents=True)
            write(partial)
            _seal(partial)
            _remove(final)  # there only if it was damaged after it was built
            partial.rename(final)
            _sync(final.parent)
        finally:
            _remove(partial)

    @contextmanager
    def writing(self, path: Path, needed_bytes: int | None = None) -> Iterator[None]:
        """Turn a full disk or a refused write inside the body into a StorageError naming `path`."""
        try:
            yield
        except Exception as error:
            number = _disk_error_number(error, self.root)
            if number is None:
                raise
            raise _storage_error(number, path, needed_bytes) from error

    def _lock(self, stage: str, key: str) -> Path:
        return self.root / "locks" / f"{stage}-{key}.lock"

    def _remove_leftovers(self, stage: str, key: str) -> None:
        """Remove what dead processes left half-written in this stage; the living hold their key's lock."""
        for partial in self.path(stage, key).parent.glob("*" + PARTIAL_SUFFIX):
            other = partial.name.removesuffix(PARTIAL_SUFFIX)
            if other == key:
                _remove(partial)
                continue
            with try_hold(self._lock(stage, other)) as free:
                if free:
                    _remove(partial)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, so that equal values give equal bytes."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _disk_error_number(error: BaseException | None, root: Path) -> int | None:
    """The errno of a disk problem of the store in `error` or its causes, or None.

    Libraries written in Rust (safetensors, tokenizers) raise classes of their own: "... (os error 28)".
    A file outside the store that may not be read is not the store's problem.
    """
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        if number is None and (match := re.search(r"\(os error (\d+)\)", str(error))):
            number = int(match.group(1))
        filename = getattr(error, "filename", None)
        elsewhere = isinstance(filename, str) and not Path(filename).is_relative_to(root)
        if number in DISK_ERRORS and (number in SPACE_ERRORS or not elsewhere):
            return number
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def _storage_error(number: int, path: Path, needed_bytes: int | None) -> StorageError:
    needed = "" if needed_bytes is None else f", {_readable(needed_bytes)} needed"
    free = f"{_readable(_free_bytes(path))} free now{needed}"
    if number in SPACE_ERRORS:
        cure = "Free some space, or point NEURON_PORT_HOME at a larger disk; finished stages are kept."
    else:
        cure = "Give yourself write access there, or point NEURON_PORT_HOME at a folder of your own."
    return StorageError(f"Cannot write {path}: {DISK_ERRORS[number]} ({free}).", hint=cure)


def _free_bytes(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _readable(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.2f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.1f} MiB"


def _seal(folder: Path) -> None:
    """Bring every file of `folder` to the disk, then the marker that lists them."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    for file in files:
        _sync(file)
    sizes = {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}
    write_json(folder / MARKER, {"files": sizes})
    _sync(folder / MARKER)
    _sync(folder)


def _is_complete(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / MARKER).read_bytes())["files"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (FileNotFoundError, NotADirectoryError):
        return False


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
