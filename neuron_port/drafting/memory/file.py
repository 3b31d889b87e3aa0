"""The SQLite file of the memory: its tables, its version, and one sentence for everything that can be wrong with it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from neuron_port.drafting.keeping.files import make_folder
from neuron_port.errors import StorageError
from neuron_port.store import Store

APPLICATION_ID = 0x4E504D31  # "NPM1": tells our files from other programs'
SCHEMA_VERSION = 1
BUSY_TIMEOUT_SECONDS = 20.0
SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS lessons (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- an id that was forgotten is not given again
    identity TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL, dialect TEXT NOT NULL, family TEXT NOT NULL, primitives TEXT NOT NULL,
    error_class TEXT NOT NULL, note TEXT NOT NULL, before TEXT NOT NULL, after TEXT NOT NULL,
    source TEXT NOT NULL, metric TEXT NOT NULL, task TEXT NOT NULL, target TEXT NOT NULL,
    verifier_version TEXT NOT NULL, created REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS trials (
    lesson INTEGER NOT NULL, run TEXT NOT NULL, purpose TEXT NOT NULL, task TEXT NOT NULL, helped INTEGER NOT NULL,
    PRIMARY KEY (lesson, run, purpose)
);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""


def open_file(path: Path | None) -> sqlite3.Connection:
    """A connection to the memory at `path`, which is created if it is not there; None: to an empty one in RAM."""
    if path is not None:
        with Store(path.parent).writing(path):
            make_folder(path.parent)
    with speaking_of(path):
        connection = _connect(str(path) if path is not None else ":memory:")
        try:
            if _is_empty(connection):
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(SCHEMA)
            _check(connection, path)
            connection.execute("PRAGMA synchronous = FULL")
        except BaseException:
            connection.close()
            raise
        return connection


def reading_frozen(path: Path | None) -> sqlite3.Connection:
    """A copy, in RAM, of the memory at `path` as it is now."""
    if path is None:
        return open_file(None)
    if not path.is_file():
        raise StorageError(
            f"There is no memory at {path} to be read frozen.", hint="Leave the memory out, or name its file."
        )
    with speaking_of(path):
        # Without a log beside it the file is whole, and may lie where nothing can be written.
        mode = "mode=ro" if path.with_name(path.name + "-wal").exists() else "immutable=1"
        with closing(_connect(f"{path.absolute().as_uri()}?{mode}", uri=True)) as source:
            _check(source, path)
            copy = _connect(":memory:")
            source.backup(copy)
            return copy


@contextmanager
def speaking_of(path: Path | None) -> Iterator[None]:
    """Turn SQLite's errors inside the body into a StorageError that names the file and the cure."""
    try:
        yield
    except sqlite3.Error as error:
        code = error.sqlite_errorcode & 0xFF if hasattr(error, "sqlite_errorcode") else None
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            raise _damaged(path, str(error)) from error
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise StorageError(
                f"The memory {path} was held by another process for {BUSY_TIMEOUT_SECONDS:g} s.",
                hint="Run the same command again; what was paid for is kept.",
            ) from error
        if code in (
            sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR,
            sqlite3.SQLITE_PERM,
        ):  # fmt: skip
            raise StorageError(
                f"The memory {path} cannot be used: {error}.",
                hint="Check the disk's space and your rights there, or point NEURON_PORT_HOME elsewhere.",
            ) from error
        raise


def _connect(name: str, *, uri: bool = False) -> sqlite3.Connection:
    connection = sqlite3.connect(
        name, uri=uri, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
    )
    connection.row_factory = sqlite3.Row
    return connection


def _is_empty(connection: sqlite3.Connection) -> bool:
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return not tables and _pragma(connection, "application_id") == 0


def _check(connection: sqlite3.Connection, path: Path | None) -> None:
    if _pragma(connection, "application_id") != APPLICATION_ID:
        raise StorageError(
            f"{path} is a database of another program.", hint="Name another file for the memory."
        )
    version = _pragma(connection, "user_version")
    if version != SCHEMA_VERSION:
        raise StorageError(
            f"The memory {path} has version {version}; this program reads version {SCHEMA_VERSION}.",
            hint="Update neuron-port, or move the file away to start a new memory.",
        )
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise _damaged(path, str(found).splitlines()[0])


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)


def _damaged(path: Path | None, reason: str) -> StorageError:
    return StorageError(
        f"The memory {path} is damaged ({reason}).",
        hint="Move the file away to start a new memory, or restore it from a backup; kernels do not depend on it.",
    )
