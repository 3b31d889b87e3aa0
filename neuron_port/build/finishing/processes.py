"""Runs the programs that finishing calls: ended with us, ended when they take too long, and heard of meanwhile."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from .files import say

PROGRESS_SECONDS = 60.0
TIMED_OUT = -1000  # no signal has this number
_PID = "running.pid"


class Processes:
    """The programs that run, so that an interrupt can end all of them.

    Args:
        limit_seconds: a program that runs longer is ended; None: no limit.
        progress_seconds: how often a program that is named to `run` is spoken of.
    """

    def __init__(
        self, limit_seconds: float | None = None, progress_seconds: float = PROGRESS_SECONDS
    ) -> None:
        self.limit_seconds, self.progress_seconds = limit_seconds, progress_seconds
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self.stopped = False

    def run(
        self, argv: Sequence[str], *, cwd: Path, environment: Mapping[str, str], log: Path, name: str = ""
    ) -> int:
        """Run a command in its own process group, its output appended to `log`; return its status.

        A negative status is the signal that ended it; TIMED_OUT says that we did. With a `name`, a line tells
        now and then that it still runs.
        """
        with log.open("ab") as file:
            with self._lock:
                if self.stopped:
                    return -signal.SIGTERM
                process = subprocess.Popen(
                    argv, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                    start_new_session=True,
                )  # fmt: skip
                self._running.add(process)
            (cwd / _PID).write_text(str(process.pid), encoding="utf-8")
            try:
                return self._wait(process, name, log)
            finally:
                with self._lock:
                    self._running.discard(process)
                (cwd / _PID).unlink(missing_ok=True)

    def _wait(self, process: subprocess.Popen[bytes], name: str, log: Path) -> int:
        started = time.monotonic()
        while True:
            passed = time.monotonic() - started
            left = float("inf") if self.limit_seconds is None else self.limit_seconds - passed
            if left <= 0:
                _end(process.pid)
                process.wait()
                return TIMED_OUT
            try:
                return process.wait(timeout=min(self.progress_seconds, left))
            except subprocess.TimeoutExpired:
                passed = time.monotonic() - started
                if name and (self.limit_seconds is None or passed < self.limit_seconds):
                    say(f"{name}: at work for {_duration(passed)}{_last_line(log)}")

    def stop(self) -> None:
        """End everything that runs, with its children."""
        with self._lock:
            self.stopped = True
            for process in self._running:
                _end(process.pid)


def _end(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


def _last_line(log: Path) -> str:
    """What a program said last, for people who wait."""
    with contextlib.suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if lines:
            return f" ({lines[-1].strip()[:100]})"
    return ""


def end_left_behind(work: Path) -> int:
    """End programs that an earlier run left running in `work` when it was killed; return how many.

    Only a process group whose leader still works in the very folder is ours: numbers are used again.
    """
    ended = 0
    for file in work.rglob(_PID):
        with contextlib.suppress(OSError, ValueError):
            leader = int(file.read_text(encoding="utf-8"))
            if Path(f"/proc/{leader}/cwd").resolve() == file.parent.resolve() and leader != os.getpid():
                _end(leader)
                ended += 1
        file.unlink(missing_ok=True)
    return ended


def fresh(folder: Path) -> Path:
    """The folder, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
