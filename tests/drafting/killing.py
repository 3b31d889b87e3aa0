"""Kills a program at a chosen moment and starts it again, as often as wanted, without paying for its imports each time.

A template process imports the program once, then forks a fresh process for each session; a session is killed with
SIGKILL after some seconds, or by itself in the middle of a write. A program is a module in a file with a function
`main(*arguments: str) -> None`.

    with Sessions(Path("loop_program.py")) as sessions:
        while sessions.run(str(home), server.url, kill_after_seconds=chance.uniform(0, 1)) == KILLED: ...
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

REPOSITORY = Path(__file__).parents[2]
KILLED = -signal.SIGKILL


class Sessions:
    """Runs `main(*arguments)` of the program in `file`, one process after the other."""

    def __init__(self, file: Path) -> None:
        self._template = subprocess.Popen(
            [sys.executable, __file__, str(file)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
        self._answer()

    def run(
        self,
        *arguments: str,
        kill_after_seconds: float | None = None,
        kill_in_write: tuple[str, int] | None = None,
    ) -> int:
        """Run one session to its end, and return its exit status: 0, `KILLED`, or 1 after an error (on stderr).

        Args:
            arguments: of the program's `main`.
            kill_after_seconds: SIGKILL it then, if it still runs.
            kill_in_write: it kills itself in the n-th call, from 1, of "write" (half of the bytes are written),
                "fsync" or "rename" (neither is done).
        """
        self._tell({"arguments": arguments, "kill_in_write": kill_in_write})
        pid = self._answer()["pid"]
        if kill_after_seconds is not None:
            time.sleep(kill_after_seconds)
            os.kill(pid, signal.SIGKILL)  # until the template has waited for it, the number is still its own
        self._tell({})
        return int(self._answer()["status"])

    def __enter__(self) -> Sessions:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._template.stdin is not None
        assert self._template.stdout is not None
        self._template.stdin.close()
        self._template.wait(timeout=30)
        self._template.stdout.close()

    def _tell(self, message: dict[str, Any]) -> None:
        assert self._template.stdin is not None
        self._template.stdin.write(json.dumps(message) + "\n")
        self._template.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self._template.stdout is not None
        line = self._template.stdout.readline()
        assert line, "the template process died; see stderr"
        answer: dict[str, Any] = json.loads(line)
        return answer


def serve(file: str) -> None:
    """The template process: fork a session for each message, and report how it ended."""
    spec = importlib.util.spec_from_file_location("program", file)
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    sys.modules["program"] = program
    spec.loader.exec_module(program)
    print(json.dumps({"ready": True}), flush=True)
    while line := sys.stdin.readline():
        pid = os.fork()
        if pid == 0:
            _session(program.main, **json.loads(line))
        print(json.dumps({"pid": pid}), flush=True)
        sys.stdin.readline()
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), flush=True)


def _session(
    main: Callable[..., None], arguments: Sequence[str], kill_in_write: tuple[str, int] | None
) -> None:
    """In the forked process: run the program, and never come back to the template's loop."""
    status = 1
    try:
        if kill_in_write is not None:
            _die_in(*kill_in_write)
        main(*arguments)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _die_in(name: str, number: int) -> None:
    """Replace `os.<name>` by one that ends the process in its `number`-th call."""
    real = getattr(os, name)
    calls = 0

    def counting(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            if name == "write":
                real(arguments[0], arguments[1][: len(arguments[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **named)

    setattr(os, name, counting)


if __name__ == "__main__":
    serve(sys.argv[1])
