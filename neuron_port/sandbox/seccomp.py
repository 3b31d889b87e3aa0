"""A seccomp filter for a process that only computes: it may read and write pipes that it has, and take memory.

The list names what may be called. Everything else fails with EPERM, which Python turns into an OSError; calls that no
honest program makes after its imports (a process, a socket, a signal to another) end the process with SIGSYS.
Numbers: Linux, arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM
# Operations of classic BPF: load a word, compare, return (linux/bpf_common.h).
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCHITECTURE, FIRST_ARGUMENT, ARGUMENT_BYTES = 0, 4, 16, 8  # offsets in struct seccomp_data
PROT_EXEC = 4

AUDIT_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_MACHINES = {"x86_64": 0, "aarch64": 1}  # column of the tables below
X32_BIT = 0x40000000  # x86_64 only: the same calls under other numbers

# name: (x86_64, aarch64)
ALLOWED = {
    "read": (0, 63), "close": (3, 57), "fstat": (5, 80), "lseek": (8, 62), "munmap": (11, 215), "brk": (12, 214),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sched_yield": (24, 124), "mremap": (25, 216),
    "madvise": (28, 233), "nanosleep": (35, 101), "getpid": (39, 172), "exit": (60, 93),
    "gettimeofday": (96, 169), "getrusage": (98, 165), "times": (100, 153), "sigaltstack": (131, 132),
    "gettid": (186, 178), "futex": (202, 98), "sched_getaffinity": (204, 123), "restart_syscall": (219, 128),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "exit_group": (231, 94),
    "set_robust_list": (273, 99), "getrandom": (318, 278), "membarrier": (324, 283), "rseq": (334, 293),
}  # fmt: skip
WRITE, MMAP, MPROTECT, TGKILL = (1, 64), (9, 222), (10, 226), (234, 131)
FLAGRANT = {
    "socket": (41, 198), "connect": (42, 203), "sendto": (44, 206), "bind": (49, 200), "listen": (50, 201),
    "socketpair": (53, 199), "clone": (56, 220), "fork": (57, None), "vfork": (58, None), "clone3": (435, 435),
    "execve": (59, 221), "execveat": (322, 281), "kill": (62, 129), "tkill": (200, 130), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "unlink": (87, None), "unlinkat": (263, 35),
    "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276), "link": (86, None), "linkat": (265, 37),
    "symlink": (88, None), "symlinkat": (266, 36), "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None),
    "setuid": (105, 146), "setgid": (106, 144), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97), "setns": (308, 268), "reboot": (169, 142),
    "init_module": (175, 105), "finit_module": (313, 273), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "memfd_create": (319, 279), "keyctl": (250, 219), "io_uring_setup": (425, 425),
    "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
}  # fmt: skip


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def _step(operation: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", operation, if_true, if_false, value)


def _argument(index: int) -> bytes:
    """Load the lower half of an argument; no call judged here looks at the upper."""
    return _step(LOAD, FIRST_ARGUMENT + ARGUMENT_BYTES * index)


def make_filter(machine: str, result_fd: int, own_pid: int) -> bytes:
    """The BPF program, 8 bytes for each instruction.

    Args:
        machine: "x86_64" or "aarch64".
        result_fd: the only file descriptor that may be written.
        own_pid: the only process that may be signalled, which is what abort() does.
    """
    column = _MACHINES[machine]
    steps = [
        _step(LOAD, ARCHITECTURE),
        _step(EQUAL, AUDIT_ARCHITECTURES[machine], 1, 0),
        _step(RETURN, KILL),
        _step(LOAD, NUMBER),
    ]
    if machine == "x86_64":
        steps += [_step(AT_LEAST, X32_BIT, 0, 1), _step(RETURN, KILL)]
    for allowed in ALLOWED.values():
        steps += [_step(EQUAL, allowed[column], 0, 1), _step(RETURN, ALLOW)]
    for call, argument, test, value, hit, miss in (
        (WRITE, 0, EQUAL, result_fd, ALLOW, REFUSE),
        (TGKILL, 0, EQUAL, own_pid, ALLOW, KILL),
        (MMAP, 2, ANY_BIT, PROT_EXEC, REFUSE, ALLOW),
        (MPROTECT, 2, ANY_BIT, PROT_EXEC, REFUSE, ALLOW),
    ):
        steps += [
            _step(EQUAL, call[column], 0, 4),
            _argument(argument),
            _step(test, value, 0, 1),
            _step(RETURN, hit),
            _step(RETURN, miss),
        ]
    for flagrant in FLAGRANT.values():
        number = flagrant[column]
        if number is not None:
            steps += [_step(EQUAL, number, 0, 1), _step(RETURN, KILL)]
    steps.append(_step(RETURN, REFUSE))
    return b"".join(steps)


def install(library: ctypes.CDLL, result_fd: int) -> str:
    """Put the filter in force for this process, for good; returns "" or why it could not be done.

    PR_SET_NO_NEW_PRIVS must be set already.
    """
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _MACHINES or ctypes.sizeof(ctypes.c_void_p) != 8:
        return f"no filter for {sys.platform} on {machine}"
    code = make_filter(machine, result_fd, os.getpid())
    program = _Program(len(code) // 8, code)
    if library.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) != 0:
        return os.strerror(ctypes.get_errno())
    return ""
