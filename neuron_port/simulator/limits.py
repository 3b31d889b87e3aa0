"""What a run may use: instructions, time, memory, allocations, recursion. Beyond it the kernel ends in an error.

A kernel is a Python program, and a hostile or a mistaken one may loop, allocate or recurse without end. Counting
is free of cost where instructions are recorded and tensors allocated. The clock, which watches the process's memory
as well, needs a second thread, so it runs only when a time limit is set. Two things no limit inside the process can
stop: one single call into Python's own C code that takes for ever (10 ** 10 ** 9), and a kernel that catches every
exception and goes on; run code that nobody has read in a process of its own.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from neuron_port.simulator.errors import PACKAGE, LimitError, location_of

if TYPE_CHECKING:
    from neuron_port.simulator.memory import Allocation
    from neuron_port.simulator.target import Target

MIB = 1024**2
FIRST_HOST_CHECK_BYTES = 256 * MIB  # below this no run looks at the machine's memory
HOST_RESERVE_BYTES = 256 * MIB  # left to the rest of the machine
WATCH_SECONDS = 0.05  # between two looks at the memory while a clock runs


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one call of a kernel; each core of a logical core, and each rank, has them to itself."""

    instructions: int = 5_000_000  # the longest public kernels execute some hundred thousand
    seconds: float | None = None  # wall time of the whole call; None: no clock
    allocations: int = 1_000_000  # tensors, on chip and in HBM
    hbm_bytes: int | None = None  # inputs and tensors in HBM, in their own dtypes; None: what the target has
    # Memory of the whole process, looked at for every 256 MiB of tensors; None: what the machine has available.
    host_bytes: int | None = None
    recursion: int | None = None  # Python calls within each other; None: Python's own limit

    def __post_init__(self) -> None:
        if self.host_bytes is not None and not resident_host_bytes():
            raise LimitError(
                f"host_bytes={self.host_bytes:,} cannot be watched: this system does not tell a process its memory",
                hint="leave host_bytes out (--memory-limit on the command line)",
            )


DEFAULT_LIMITS = Limits()


def hbm_capacity_bytes(target: Target) -> int:
    """HBM that one logical core owns: its share of the chip (24 GiB on NeuronCore-v3)."""
    return target.hbm_bytes_per_chip * max(target.logical_core_sizes) // target.cores_per_chip


def refuse_instructions(limit: int) -> NoReturn:
    """The kernel has executed as many instructions as it may."""
    raise LimitError(
        f"the kernel executes more than {limit} instructions",
        hint="is there a loop without an end? Otherwise raise Limits(instructions=...)",
    )


def refuse_allocations(limit: int) -> NoReturn:
    """The kernel has allocated as many tensors as it may."""
    raise LimitError(
        f"the kernel allocates more than {limit} tensors",
        hint="is there a loop without an end? Otherwise raise Limits(allocations=...)",
    )


def refuse_hbm(allocation: Allocation, total_bytes: int, limit: int, given: bool) -> NoReturn:
    """The tensors in HBM exceed what there is."""
    raise LimitError(
        f"{allocation!r} brings the tensors in HBM to {total_bytes:,} bytes; "
        + (f"the limit is {limit:,}" if given else f"one logical core of the target owns {limit:,}"),
        hint="allocate less at once" + (", or raise Limits(hbm_bytes=...)" if given else ""),
    )


def check_host_memory(more_bytes: int, limit: int | None, what: object) -> None:
    """Refuse to allocate `more_bytes` for `what` if the limit, or else the machine, does not have them.

    Raises:
        LimitError: the process would exceed `limit`, or the machine would have to swap.
    """
    if limit is not None:
        held = resident_host_bytes()
        if held + more_bytes > limit:
            raise LimitError(
                f"{what!r} brings the process to {held + more_bytes:,} bytes of host memory; the limit is "
                f"{limit:,}",
                hint="allocate less at once, or raise Limits(host_bytes=...)",
            )
    available = available_host_bytes()
    if available is not None and more_bytes > available - HOST_RESERVE_BYTES:
        raise LimitError(
            f"{what!r} needs {more_bytes:,} bytes of host memory; the machine has {available:,} left",
            hint="simulate a smaller problem, or on a machine with more memory",
        )


def resident_host_bytes() -> int:
    """Memory that this process takes now; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def available_host_bytes() -> int | None:
    """Memory that can be taken without swapping, or None where the system does not tell."""
    try:
        with Path("/proc/meminfo").open(encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None


def line_of(error: BaseException) -> str | None:
    """`file:line` of the innermost kernel frame that an exception passed through."""
    found = None
    step: TracebackType | None = error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        if not code.co_filename.startswith(PACKAGE):
            found = location_of(code, step.tb_lineno)
        step = step.tb_next
    return found


def refuse_recursion(error: RecursionError) -> NoReturn:
    """The kernel's functions call each other too deeply."""
    raise LimitError(
        f"the kernel's calls are nested too deeply ({error})",
        location=line_of(error),
        hint="turn the recursion into a loop",
    ) from None


def refuse_memory(error: MemoryError) -> NoReturn:
    """The machine's memory is used up."""
    raise LimitError(
        f"the simulation ran out of host memory ({str(error) or 'Python could not allocate'})",
        location=line_of(error),
        hint="simulate a smaller problem, or on a machine with more memory",
    ) from None


class TimeUp(BaseException):
    """Put into the kernel's thread by the clock; no `except Exception` of a kernel catches it."""


def interrupt(thread_id: int) -> None:
    """Raise TimeUp in a thread, as soon as it executes Python code again."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), ctypes.py_object(TimeUp))


class Clock:
    """Ends the thread that `running` names with TimeUp when its time or memory is up, and again until it has ended.

    Memory is watched here too, because a kernel can hoard Python objects that no allocation of a tensor shows.
    """

    def __init__(self, limits: Limits, running: Callable[[], int]) -> None:
        assert limits.seconds is not None
        self.seconds = limits.seconds
        self._host_bytes = limits.host_bytes
        self._running = running
        self._why = ""
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="time and memory limit")

    def __enter__(self) -> Clock:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """From here on nothing is interrupted any more."""
        with self._lock:
            self._stopped.set()
        self._thread.join()

    def refuse(self, error: TimeUp) -> NoReturn:
        """The error for the caller, at the line that was running."""
        raise LimitError(
            self._why,
            location=line_of(error),
            hint="is there a loop without an end? Otherwise raise Limits(seconds=...) or Limits(host_bytes=...)",
        ) from None

    def _watch(self) -> None:
        end = time.monotonic() + self.seconds
        while not self._stopped.wait(min(WATCH_SECONDS, max(0.0, end - time.monotonic()))):
            why = self._excess(time.monotonic() >= end)
            if why:
                self._why = self._why or why
                break
        while not self._stopped.is_set():
            with self._lock:
                if not self._stopped.is_set():
                    interrupt(self._running())
            self._stopped.wait(0.25)

    def _excess(self, time_is_up: bool) -> str:
        """What the kernel has too much of; empty if nothing."""
        if time_is_up:
            return f"the kernel runs longer than {self.seconds:g} seconds"
        if self._host_bytes is not None and (held := resident_host_bytes()) > self._host_bytes:
            return f"the kernel brings the process to {held:,} bytes of host memory; the limit is {self._host_bytes:,}"
        available = available_host_bytes()
        if available is not None and available < HOST_RESERVE_BYTES:
            return f"the kernel leaves the machine with {available:,} bytes of memory"
        return ""


class RecursionLimit:
    """Python's recursion limit, lowered or raised to `depth` calls from here for the length of a block."""

    def __init__(self, depth: int) -> None:
        self.depth = depth

    def __enter__(self) -> None:
        self._before = sys.getrecursionlimit()
        frame, here = sys._getframe(), 0
        while frame is not None:
            frame, here = frame.f_back, here + 1  # type: ignore[assignment]
        sys.setrecursionlimit(here + self.depth)

    def __exit__(self, *_: object) -> None:
        sys.setrecursionlimit(self._before)
