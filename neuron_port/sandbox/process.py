"""The parent's side of one sandboxed process: start it, talk to it within bounds of time and size, end it.

Nothing that the child sends is believed beyond its form: a wrong nonce, an unknown dtype, a length beyond its bound or
silence beyond the deadline ends the process group, and what it was is said in a `Failure`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from types import TracebackType
from typing import Any

import ml_dtypes
import numpy as np

import neuron_port
from neuron_port.errors import NeuronPortError
from neuron_port.sandbox.facts import check_failure
from neuron_port.sandbox.frames import (
    HEADER,
    NONCE_BYTES,
    Frame,
    Kind,
    ProtocolError,
    pack,
    unpack_body,
    unpack_header,
)
from neuron_port.sandbox.job import Failure, SandboxLimits

# The package is loaded from where it is loaded here, so that a checkout and a wheel work alike and no folder with other
# modules comes before the standard library.
_BOOT = """
import importlib.util, sys
package, libraries, fds = sys.argv[1], sys.argv[2].split(chr(0x1F)), map(int, sys.argv[3].split(","))
sys.path += [folder for folder in libraries if folder not in sys.path]
spec = importlib.util.spec_from_file_location(
    "neuron_port", package + "/__init__.py", submodule_search_locations=[package]
)
module = sys.modules["neuron_port"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from neuron_port.sandbox.child import main
main(*fds)
"""
START_SECONDS = 60.0  # for the imports; 0.2 when the machine is idle
PIPE_BYTES = 1 << 20
_KEPT_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")  # where numpy's own libraries may be
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class SandboxError(NeuronPortError):
    """The sandbox itself does not work; says nothing about the candidate."""


class ProcessFailedError(Exception):
    """The process is gone, or was ended, with the reason that goes into the outcome."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class SandboxProcess:
    """One candidate's process. A context manager: at its end nothing of it is left.

    With `lifetime_seconds` the process may live and compute that long; then `limits` count for each call, from `renew`.
    """

    def __init__(
        self,
        source: str,
        entry_point: str,
        target: str,
        limits: SandboxLimits,
        *,
        advise: bool = False,
        lifetime_seconds: float | None = None,
    ) -> None:
        self.limits = limits
        self.cpu_seconds = 0.0
        self.isolation: tuple[str, ...] = ()
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._output_bytes_left = limits.output_bytes
        self.pid = 0
        self._ended = False
        self._cancelled = False
        self._lock = threading.Lock()  # between killing and reaping: a pid may be used again after it
        self._folder = tempfile.mkdtemp(prefix="neuron-port-sandbox-")
        self._fds: list[int] = []
        try:
            self._spawn()
            start = {
                "source": source, "entry_point": entry_point, "target": target, "advise": advise,
                "cpu_seconds": lifetime_seconds or limits.cpu_seconds,
                "wall_seconds": lifetime_seconds or limits.wall_seconds,
                "memory_bytes": limits.memory_bytes, "instructions": limits.instructions,
                "output_bytes": limits.output_bytes,
            }  # fmt: skip
            self._await_start(start)
            # It is the process's root now and needs no name: nothing is left even if this process is killed.
            shutil.rmtree(self._folder, ignore_errors=True)
        except BaseException:
            self.close()
            raise
        self.renew()

    def renew(self) -> None:
        """Count wall time and output bytes from here."""
        self.deadline = time.monotonic() + self.limits.wall_seconds
        self._output_bytes_left = self.limits.output_bytes

    def __enter__(self) -> SandboxProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, kind: Kind, body: Mapping[str, Any], arrays: Sequence[np.ndarray] = ()) -> Frame:
        """Send one frame and return the answer.

        Raises:
            ProcessFailedError: there is no answer, or none that may be read; the process is ended.
        """
        try:
            with contextlib.suppress(BrokenPipeError):  # its last words, or how it ended, say more
                for part in pack(self._nonce, kind, body, arrays):
                    self._write(part, self.deadline)
            answer = self._receive(self.deadline)
        except ProtocolError as error:
            self.close()
            failure = Failure(
                kind="protocol",
                error_class="output size" if "of arrays, at most" in str(error) else "forged output",
                message=f"the process sent {error}",
            )
            raise ProcessFailedError(failure) from error
        except TimeoutError:
            self.close()
            raise ProcessFailedError(
                Failure(
                    kind="time",
                    error_class="wall time",
                    message=f"the kernel runs longer than {self.limits.wall_seconds:g} seconds",
                    hint="is there a loop without an end?",
                )
            ) from None
        except EOFError:
            failure = self._how_it_ended()
            if self._cancelled:
                raise CancelledError("the job was cancelled") from None
            raise ProcessFailedError(failure) from None
        if answer.kind is Kind.failed:
            try:
                said = check_failure(answer.body.get("failure"))
            except ProtocolError as error:
                said = Failure(
                    kind="protocol", error_class="forged output", message=f"the process sent {error}"
                )
            self.close()
            raise ProcessFailedError(
                said
                or Failure(
                    kind="protocol", error_class="forged output", message="the process failed without words"
                )
            )
        return answer

    def cancel(self) -> None:
        """End the process from another thread: whoever waits for its answer gets a CancelledError."""
        with self._lock:
            self._cancelled = True
            if self._process.returncode is None and not self._reap(os.WNOHANG):
                os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """End the process group and everything that was made for it. May be called again."""
        if self._ended:
            return
        self._ended = True
        try:
            if self.pid:
                self._end()
        finally:
            for fd in self._fds:
                os.close(fd)
            self._fds = []
            shutil.rmtree(self._folder, ignore_errors=True)

    # ---- start and end ------------------------------------------------------------------------------------

    def _spawn(self) -> None:
        job_read, self._job_fd = os.pipe()
        self._result_fd, result_write = os.pipe()
        lifeline_read, lifeline_write = os.pipe()
        theirs = [job_read, result_write, lifeline_read]
        self._fds = [self._job_fd, self._result_fd, lifeline_write]
        libraries = dict.fromkeys(str(Path(module.__file__ or "").parents[1]) for module in (np, ml_dtypes))
        package = str(Path(neuron_port.__file__).parent)
        options = ["-I", "-S"] + ["-B"] * sys.dont_write_bytecode
        with tempfile.TemporaryFile() as complaints:
            try:
                for fd in (job_read, self._result_fd):
                    _widen(fd)
                process = subprocess.Popen(
                    [
                        sys.executable,
                        *options,
                        "-c",
                        _BOOT,
                        package,
                        "\x1f".join(libraries),
                        ",".join(map(str, theirs)),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=complaints,
                    cwd=self._folder,
                    env=_ONE_THREAD
                    | {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ},
                    pass_fds=theirs,
                    start_new_session=True,
                )
            finally:
                for fd in theirs:
                    os.close(fd)
            self.pid, self._process = process.pid, process
            self._complaints = os.dup(complaints.fileno())
            self._fds.append(self._complaints)
        os.set_blocking(self._job_fd, False)
        os.set_blocking(self._result_fd, False)

    def _await_start(self, start: dict[str, Any]) -> None:
        deadline = time.monotonic() + START_SECONDS
        try:
            for part in pack(self._nonce, Kind.start, start):
                self._write(part, deadline)
            answer = self._receive(deadline)
        except (EOFError, BrokenPipeError, TimeoutError, ProtocolError) as error:
            self._end()
            said = os.pread(self._complaints, 1 << 16, 0).decode(errors="replace").strip().splitlines()
            raise SandboxError(
                f"the sandbox process does not start: {said[-1] if said else type(error).__name__}",
                hint="kernels that nobody has read run only in it; `python -X importtime -c 'import neuron_port.sandbox."
                "child'` shows whether its imports work",
            ) from error
        isolation = answer.body.get("isolation")
        assert isinstance(isolation, list)
        self.isolation = tuple(map(str, isolation))

    def _end(self) -> None:
        """Kill the whole group and wait; notes the CPU time."""
        with self._lock:
            if self._process.returncode is None and not self._reap(os.WNOHANG):
                os.killpg(self.pid, signal.SIGKILL)
                self._reap(0)

    def _reap(self, options: int) -> bool:
        """Take the exit status as Popen counts it, and the CPU time; whether the process has ended."""
        pid, status, usage = os.wait4(self.pid, options)
        if pid:
            self.cpu_seconds = usage.ru_utime + usage.ru_stime
            self._process.returncode = os.waitstatus_to_exitcode(status)
        return pid != 0

    def _how_it_ended(self) -> Failure:
        """After its pipe has closed: wait a moment for its exit status, and put it into words."""
        end = time.monotonic() + 1.0
        ended = False
        while not ended and time.monotonic() < end:
            with self._lock:
                ended = self._reap(os.WNOHANG)
            if not ended:
                time.sleep(0.001)
        self.close()
        if not ended:
            return Failure(
                kind="protocol", error_class="closed pipe", message="the process closed its pipe and went on"
            )
        status = self._process.returncode
        if status >= 0:
            return Failure(
                kind="crash",
                error_class="early exit",
                message=f"the process ended itself with exit status {status} before the kernel returned",
            )
        name = _signal_name(-status)
        if -status in (signal.SIGXCPU, signal.SIGKILL) and self.cpu_seconds >= self.limits.cpu_seconds:
            return Failure(
                kind="time",
                error_class="cpu time",
                message=f"one call into Python uses more than {self.limits.cpu_seconds:g} seconds of CPU time",
                hint="is there a power or a factorial of a huge number?",
            )
        if -status == signal.SIGSYS:
            return Failure(
                kind="crash",
                error_class="forbidden system call",
                message="the process was ended (SIGSYS) for a system call that no kernel needs",
            )
        return Failure(
            kind="crash",
            error_class=name,
            message=f"the process was ended by {name}",
            hint="has the machine run out of memory?" if -status == signal.SIGKILL else None,
        )

    # ---- bytes --------------------------------------------------------------------------------------------

    def _write(self, part: Any, deadline: float) -> None:
        view = memoryview(part)
        while view.nbytes:
            try:
                view = view[os.write(self._job_fd, view) :]
            except BlockingIOError:
                _wait_for(self._job_fd, select.POLLOUT, deadline)

    def _receive(self, deadline: float) -> Frame:
        header = bytes(self._read(HEADER.size, deadline))
        kind, json_bytes, array_bytes = unpack_header(header, self._nonce, self._output_bytes_left)
        self._output_bytes_left -= array_bytes
        if kind < Kind.ready:
            raise ProtocolError(f"a frame `{kind.name}`, which only the parent sends")
        body, specs = unpack_body(bytes(self._read(json_bytes, deadline)), array_bytes)
        arrays = []
        for dtype, shape in specs:
            raw = self._read(dtype.itemsize * int(np.prod(shape, dtype=np.int64)), deadline)
            arrays.append(raw.view(dtype).reshape(shape))
        return Frame(kind=kind, body=body, arrays=tuple(arrays))

    def _read(self, size: int, deadline: float) -> np.ndarray:
        """Exactly `size` bytes; the buffer is full of NaN until they come."""
        buffer = np.full(size, 0xFF, np.uint8)
        done = 0
        while done < size:
            try:
                count = os.readv(self._result_fd, [buffer[done:].data])
            except BlockingIOError:
                _wait_for(self._result_fd, select.POLLIN, deadline)
                continue
            if count == 0:
                raise EOFError
            done += count
            if time.monotonic() > deadline:
                raise TimeoutError
        return buffer


def _wait_for(fd: int, event: int, deadline: float) -> None:
    left = deadline - time.monotonic()
    poll = select.poll()
    poll.register(fd, event)
    if left <= 0 or not poll.poll(left * 1000):
        raise TimeoutError


def _widen(fd: int) -> None:
    """A larger pipe, where the system has such: fewer turns for large arrays."""
    if sys.platform == "linux":
        import fcntl

        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
