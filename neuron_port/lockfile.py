"""A lock between processes: one builds a result, the others wait and say for whom.

The operating system drops the lock when its holder dies, however it dies, so a lock file left behind never
blocks. Lock files stay on disk: removing one while another process opens it would let both hold "the" lock.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from neuron_port.errors import StorageError

POLL_INTERVAL_SECONDS = 0.1


@contextmanager
def hold(
    path: Path, *, on_wait: Callable[[str], None] | None = None, timeout_seconds: float | None = None
) -> Iterator[None]:
    """Hold the lock at `path` for the body of the `with`; wait while another process or thread holds it.

    `on_wait` is called once, with a sentence naming the holder, when there is something to wait for.
    Raises StorageError when `timeout_seconds` pass first; by default it waits as long as it takes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _acquire(descriptor, path, on_wait, timeout_seconds)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)  # also releases the lock


@contextmanager
def try_hold(path: Path) -> Iterator[bool]:
    """Like `hold` but never waits: the body receives whether the lock was free."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        yield _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _acquire(
    descriptor: int, path: Path, on_wait: Callable[[str], None] | None, timeout_seconds: float | None
) -> None:
    started = time.monotonic()
    announced = False
    while not _try_lock(descriptor):
        if on_wait is not None and not announced:
            on_wait(f"Waiting for process {_holder(descriptor)}, which is building `{path.stem}`.")
            announced = True
        if timeout_seconds is not None and time.monotonic() - started >= timeout_seconds:
            raise StorageError(
                f"Process {_holder(descriptor)} still holds the lock {path} after {timeout_seconds:g} s.",
                hint="Wait for that process to finish, or stop it; the lock goes away with it.",
            )
        time.sleep(POLL_INTERVAL_SECONDS)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(descriptor: int) -> str:
    """The holder's process id; it is written just after locking, so it may not be there yet."""
    return os.pread(descriptor, 32, 0).decode() or "(starting)"
