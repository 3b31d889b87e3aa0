"""Confinement stands alone: kernels that have climbed over the gate find nothing to take, and end within their limits."""

from __future__ import annotations

import ast
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from neuron_port.sandbox.job import SandboxLimits
from neuron_port.sandbox.run import run_inspected
from neuron_port.sandbox.seccomp import ALLOWED, FLAGRANT, make_filter
from tests.sandbox.kernels import X, climbed, escape, job

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have rlimits only")


def test_a_climbed_kernel_that_does_nothing_is_answered() -> None:
    """What refuses the escapes below is the confinement, not the way in which they are written."""
    outcome = escape("pass")
    assert outcome.failure is None
    np.testing.assert_array_equal(outcome.calls[0].outputs[0], 2 * X)


def test_the_layers_in_force_are_reported() -> None:
    """rlimits always hold; the others are named, or named as missing with the reason."""
    isolation = escape("pass").isolation
    assert "rlimits" in isolation
    for layer in ("seccomp", "network namespace", "empty root", "unprivileged user", "no new privileges"):
        assert any(entry == layer or entry.startswith(f"without {layer} (") for entry in isolation)


def raised(*lines: str) -> str:
    """The Python error that the kernel got for its attempt; it goes on living."""
    outcome = escape(*lines)
    assert outcome.failure is None
    failure = outcome.calls[0].failure
    assert failure is not None
    assert failure.kind == "python"
    return failure.error_class


def test_no_file_is_read(tmp_path: Path) -> None:
    """Neither a file that everybody may read, nor the environment of a process, nor its own memory map."""
    secret = tmp_path / "secret"
    secret.write_text("answer")
    os.chmod(secret, 0o644)  # noqa: PTH101
    for path in (
        str(secret),
        "/etc/passwd",
        "/proc/1/environ",
        "/proc/self/maps",
        f"/proc/{os.getpid()}/environ",
    ):
        assert raised(f'everything()["open"]({path!r}).read()') in ("PermissionError", "FileNotFoundError")


def test_no_file_is_written() -> None:
    """Not in /tmp, and not in its own folder."""
    target = Path(f"/tmp/neuron-port-written-{os.getpid()}")
    for path in (str(target), "here"):
        assert raised(f'everything()["open"]({path!r}, "w").write("x")') in (
            "PermissionError",
            "FileNotFoundError",
        )
    assert not target.exists()


def test_its_environment_holds_nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys in our environment do not reach the process."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    outcome = escape('assert "OPENAI_API_KEY" not in os.environ and "HOME" not in os.environ')
    assert outcome.calls[0].failure is None


def test_it_writes_to_no_pipe_but_its_own() -> None:
    """Standard output, and every number that a pipe of ours could have, refuse its words."""
    outcome = escape(
        "written = 0",
        "for fd in range(64):",
        "    try:",
        '        written += os.write(fd, b"")+ 1',
        '    except everything()["OSError"]: pass',
        "assert written == 1, written",
    )
    assert outcome.calls[0].failure is None


FORBIDDEN = {
    "fork": ["os.fork()"],
    "exec": ['os.execv("/bin/true", ["true"])'],
    "shell": ['os.system("true")'],
    "kill the parent": ["os.kill(os.getppid(), 9)"],
    "kill everybody": ["os.kill(-1, 9)"],
    "unlink": ['os.unlink("/x")'],
    "rename": ['os.rename("/x", "/y")'],
    "socket by ctypes": ['module("ctypes").CDLL(None).socket(2, 1, 0)'],
    "ptrace by ctypes": ['module("ctypes").CDLL(None).ptrace(16, 1, 0, 0)'],
    "mount by ctypes": ['module("ctypes").CDLL(None).mount(b"/", b"/", None, 4096, None)'],
    "thread": ['module("_thread").start_new_thread(everything, ())'],
}


@pytest.mark.parametrize("lines", FORBIDDEN.values(), ids=FORBIDDEN.keys())
def test_flagrant_system_calls_end_it(lines: list[str]) -> None:
    """A call that no kernel needs is the process's last, and is named as that."""
    outcome = escape(*lines)
    assert outcome.failure is not None
    assert outcome.failure.kind == "crash"
    assert outcome.failure.error_class == "forbidden system call"
    assert outcome.calls == ()


def test_no_connection_reaches_a_listener_here() -> None:
    """Even a server on this machine hears nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        address = struct.pack("=H", socket.AF_INET) + struct.pack("!H", server.getsockname()[1])
        address += socket.inet_aton("127.0.0.1") + b"\0" * 8
        outcome = escape(
            'library = module("ctypes").CDLL(None)',
            "fd = library.socket(2, 1, 0)",
            f"library.connect(fd, {address!r}, 16)",
        )
        assert outcome.failure is not None
        with pytest.raises(TimeoutError):
            server.accept()


def test_limits_cannot_be_raised() -> None:
    """Hard limits are lowered too, and its timers cannot be stopped."""
    assert raised('module("resource").setrlimit(0, (100, 100))') in (
        "ValueError",
        "PermissionError",
        "OSError",
    )
    assert raised('module("signal").setitimer(2, 0)') in ("PermissionError", "itimer_error")


ENDLESS = {
    "loop": ["while True: pass"],
    "loop that swallows": [
        "while True:",
        "    try:",
        "        while True: math.sqrt(2.0)",
        '    except everything()["BaseException"]: pass',
    ],
    "factorial": ["math.factorial(10**8)"],
    "power": ["pow(7, 10**9)"],
    "sum in C": ["sum(range(10**13))"],
    "recursion in turns": [
        "def f(n):",
        "    return f(n) if n else 0",
        "while True:",
        "    sorted(range(1000))",
    ],
}


@pytest.mark.parametrize("lines", ENDLESS.values(), ids=ENDLESS.keys())
def test_endless_work_ends_when_its_cpu_time_is_up(lines: list[str]) -> None:
    """In Python or in one call of C; what does not listen gets up to two seconds more."""
    outcome = escape(*lines, limits=SandboxLimits(cpu_seconds=0.3))
    assert outcome.failure is not None
    assert (outcome.failure.kind, outcome.failure.error_class) == ("time", "cpu time")
    assert 0.3 <= outcome.cpu_seconds < 4


def test_the_line_of_an_endless_loop_is_named() -> None:
    """Whoever repairs it wants to know where."""
    source = climbed("while True: pass")
    failure = run_inspected(job(source, limits=SandboxLimits(cpu_seconds=0.3))).failure
    assert failure is not None
    assert failure.line == source.splitlines().index("    while True: pass") + 1


def test_sleeping_ends_with_the_wall_time() -> None:
    """Waiting takes no CPU time; the parent's clock ends it."""
    outcome = escape('module("time").sleep(1000)', limits=SandboxLimits(cpu_seconds=1, wall_seconds=0.5))
    assert outcome.failure is not None
    assert (outcome.failure.kind, outcome.failure.error_class) == ("time", "wall time")


MEMORY = {
    "one list": ["hoard = [0] * 10**12"],
    "many buffers": ["hoard = []", "while True: hoard.append(everything()['bytearray'](10**7))"],
    "a number": ["hoard = 1 << 10**11"],
    "a text": ["hoard = '%1000000000000d' % 1"],
    "an array": ["hoard = module('numpy').ones(10**11)"],
}


@pytest.mark.parametrize("lines", MEMORY.values(), ids=MEMORY.keys())
def test_memory_ends_at_its_limit(lines: list[str]) -> None:
    """Whatever it is that grows, it stops at the limit and is called memory."""
    outcome = escape(*lines, limits=SandboxLimits(memory_bytes=1 << 28))
    failure = outcome.failure or outcome.calls[0].failure
    assert failure is not None
    assert failure.kind == "memory"


CRASHES = {
    "exit": (["os._exit(0)"], "early exit"),
    "exit by exception": (["raise everything()['SystemExit'](0)"], "SystemExit"),
    "segmentation fault": (['module("ctypes").string_at(0)'], "SIGSEGV"),
    "abort": (["os.abort()"], "SIGABRT"),
}


@pytest.mark.parametrize(("lines", "error_class"), CRASHES.values(), ids=CRASHES.keys())
def test_ending_itself_is_no_success(lines: list[str], error_class: str) -> None:
    """A process that ends before it answers has failed, whatever its exit status."""
    outcome = escape(*lines)
    assert outcome.failure is not None
    assert outcome.failure.error_class == error_class
    assert outcome.calls == ()


@pytest.mark.parametrize("line", ["pass", "os.kill(os.getppid(), 9)", "os._exit(0)", "while True: pass"])
def test_nothing_is_left_behind(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder and no process remains, whatever the kernel did."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    pids = []
    hostile = job(climbed(line), limits=SandboxLimits(cpu_seconds=0.2))
    run_inspected(hostile, watch=lambda process, runs: pids.append(process.pid))
    assert list(tmp_path.iterdir()) == []
    assert pids
    assert not Path(f"/proc/{pids[0]}").exists()


PARENT = """
import sys
from neuron_port.sandbox import run
from tests.sandbox.kernels import SandboxLimits, climbed, job
def watch(process, runs):
    if runs:
        print(process.pid, flush=True)
run.run_inspected(job(climbed('while True: pass'), limits=SandboxLimits(cpu_seconds=60)), watch=watch)
"""


@pytest.mark.parametrize("how", ["interrupt", "kill"])
def test_it_ends_with_its_parent(how: str, tmp_path: Path) -> None:
    """An interrupted or killed parent leaves no process and no folder behind."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert parent.stdout is not None
    with parent.stdout:
        child = int(parent.stdout.readline())
        time.sleep(0.2)
        assert running(child)
        parent.send_signal(2 if how == "interrupt" else 9)
        parent.wait(timeout=10)
    end = time.monotonic() + 10
    while running(child) and time.monotonic() < end:
        time.sleep(0.01)
    assert not running(child)
    assert list(tmp_path.iterdir()) == []


def running(pid: int) -> bool:
    """Whether the process still computes; a zombie that its new parent has not reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


UNPRIVILEGED = """
import encodings.ascii, os, tempfile  # read later; a user may not reach the interpreter's folder
from neuron_port.sandbox.confinement import Allowance, confine
os.chdir(tempfile.mkdtemp())
os.chmod(".", 0o777)
if os.geteuid() == 0:
    os.setgroups([]); os.setresgid(4321, 4321, 4321); os.setresuid(4321, 4321, 4321)
lifeline, ours = os.pipe()
result_fd = os.dup(1)
report = confine(Allowance(
    cpu_seconds=5, wall_seconds=20, memory_bytes=1 << 30, result_fd=result_fd, lifeline_fd=lifeline))
refused = []
for name, attempt in (
    ("open", lambda: open("/etc/passwd")),
    ("make", lambda: open("here", "w")),
    ("listen", lambda: os.listdir("/")),
):
    try:
        attempt()
    except OSError:
        refused.append(name)
os.write(result_fd, repr((report, refused)).encode())
os._exit(0)
"""


def test_it_confines_without_privileges() -> None:
    """A user who is not root gets the same protection: what needs privileges comes through a user namespace or is
    named as missing, and the filter stands in any case."""
    done = subprocess.run([sys.executable, "-c", UNPRIVILEGED], capture_output=True, text=True, check=True)
    report, refused = ast.literal_eval(done.stdout)
    assert {"rlimits", "unprivileged user", "no new privileges"} <= set(report)
    assert refused == ["open", "make", "listen"]


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_is_made_for_both_machines(machine: str) -> None:
    """Every instruction is eight bytes, and no number stands in two lists."""
    column = 0 if machine == "x86_64" else 1
    assert len(make_filter(machine, 7, 1)) % 8 == 0
    allowed = [numbers[column] for numbers in ALLOWED.values()]
    flagrant = [numbers[column] for numbers in FLAGRANT.values() if numbers[column] is not None]
    assert len({*allowed, *flagrant}) == len(allowed) + len(flagrant)
