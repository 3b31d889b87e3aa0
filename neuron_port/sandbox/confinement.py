"""Taking away from this process what a kernel does not need: files, network, processes, privileges, memory, time.

Layers are independent: where one is not to be had (another system, a container that forbids it) the others stand,
and the report says "without ...". Order matters: what needs privileges comes first, the system call filter last.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import math
import os
import resource
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from neuron_port.sandbox import seccomp

PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP = 4, 38, 24
CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWNET = 0x08000000, 0x10000000, 0x40000000
F_SETSIG = 10  # Linux: which signal announces that a pipe has news
NOBODY = 65534
ALARM_GRACE_SECONDS = 5  # the parent ends a process first; this is for a parent that is gone


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """What is left to the process."""

    cpu_seconds: float  # from now on
    wall_seconds: float
    memory_bytes: int  # besides what it holds now
    result_fd: int  # the only one that it may write
    lifeline_fd: int  # a pipe whose other end the parent holds as long as it lives


class CpuTimeUp(BaseException):
    """Raised in the kernel's code when its CPU time is up."""


def confine(allowance: Allowance) -> tuple[str, ...]:
    """Confine this process for good; returns the layers in force, and "without ..." for those that are not to be had.

    The working directory must be an empty folder: it becomes the root of the file system where that is permitted.
    """
    report: list[str] = []
    mapped_bytes = _mapped_bytes()  # while /proc can be read
    _note(report, "ends with its parent", _die_with_parent(allowance.lifeline_fd))
    library = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "linux":
        _note(report, "network namespace", _leave_network(library))
        _note(report, "empty root", _empty_root())
        _note(report, "unprivileged user", _become_nobody())
        _note(report, "not dumpable", _prctl(library, PR_SET_DUMPABLE, 0))
    _limit_resources(allowance, mapped_bytes)
    report.append("rlimits")
    if sys.platform == "linux":
        _note(report, "no new privileges", _prctl(library, PR_SET_NO_NEW_PRIVS, 1))
    _start_clocks(allowance)
    _note(report, "seccomp", seccomp.install(library, allowance.result_fd))
    return tuple(report)


def _note(report: list[str], layer: str, trouble: str) -> None:
    report.append(f"without {layer} ({trouble})" if trouble else layer)


def _prctl(library: ctypes.CDLL, option: int, value: int) -> str:
    return os.strerror(ctypes.get_errno()) if library.prctl(option, value, 0, 0, 0) != 0 else ""


def _die_with_parent(lifeline_fd: int) -> str:
    """SIGKILL as soon as the parent's end of the pipe closes, however the parent ended.

    PR_SET_PDEATHSIG would kill when the parent's *thread* ends, and setuid clears it.
    """
    if sys.platform != "linux":
        return "only an alarm on this system"
    fcntl.fcntl(lifeline_fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline_fd, F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(
        lifeline_fd, fcntl.F_SETFL, fcntl.fcntl(lifeline_fd, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK
    )
    with contextlib.suppress(BlockingIOError):
        if os.read(lifeline_fd, 1) == b"":  # it ended before we listened
            os._exit(1)
    return ""


def _leave_network(library: ctypes.CDLL) -> str:
    """A network namespace without any interface; without privileges, inside a user namespace of our own."""
    for flags in (CLONE_NEWNET | CLONE_NEWIPC, CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWIPC):
        if library.unshare(flags) == 0:
            return ""
    return os.strerror(ctypes.get_errno())


def _empty_root() -> str:
    try:
        os.chroot(".")
        os.chdir("/")
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _become_nobody() -> str:
    """Give up root; where the process is not root there is nothing to give up."""
    if os.geteuid() != 0:
        return "" if os.getuid() != 0 else "real user is root"
    try:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _limit_resources(allowance: Allowance, mapped_bytes: int) -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu_seconds = math.ceil(usage.ru_utime + usage.ru_stime + allowance.cpu_seconds) + 1
    limits = {
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_AS: mapped_bytes + allowance.memory_bytes,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_NOFILE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for which, limit in limits.items():
        hard = resource.getrlimit(which)[1]
        ceiling = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(which, (ceiling, ceiling))


def _mapped_bytes() -> int:
    """Address space that the interpreter and its libraries take; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except OSError:
        return 0
    return pages * resource.getpagesize()


def _start_clocks(allowance: Allowance) -> None:
    """CPU time raises CpuTimeUp, again and again; RLIMIT_CPU ends what does not listen."""

    def time_is_up(*_: object) -> None:
        raise CpuTimeUp

    signal.signal(signal.SIGPROF, time_is_up)
    signal.setitimer(signal.ITIMER_PROF, allowance.cpu_seconds, 0.5)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, allowance.wall_seconds + ALARM_GRACE_SECONDS)
