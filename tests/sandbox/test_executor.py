"""Executors: the same outcomes wherever a job runs, side by side, and a clean end."""

from __future__ import annotations

import time
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest

from neuron_port.errors import UsageError
from neuron_port.sandbox.executor import LocalExecutor, RayExecutor, make_executor
from neuron_port.sandbox.job import SandboxLimits
from tests.sandbox.kernels import KERNEL, X, job, with_lines

ENDLESS = job(with_lines("while True: pass"), limits=SandboxLimits(cpu_seconds=60))


def test_jobs_run_side_by_side() -> None:
    """Each future holds the outcome of its own job, failures included."""
    with make_executor("local", 2) as executor:
        futures = [executor.submit(job(source)) for source in (KERNEL, with_lines("n = 1 // 0"), "no kernel")]
        good, bad, refused = (future.result(timeout=60) for future in futures)
    np.testing.assert_array_equal(good.calls[0].outputs[0], 2 * X)
    assert bad.calls[0].failure is not None
    assert bad.calls[0].failure.error_class == "ZeroDivisionError"
    assert refused.failure is not None
    assert refused.failure.kind == "refused"


def test_closing_ends_what_runs_and_cancels_what_waits() -> None:
    """An interrupt leaves the block: no job goes on, no process remains, and no future hangs."""
    executor = LocalExecutor(1)
    running, waiting = executor.submit(ENDLESS), executor.submit(ENDLESS)
    pids: list[int] = []
    with pytest.raises(KeyboardInterrupt), executor:
        interrupt_once_it_runs(executor, pids)
    for future in (running, waiting):
        with pytest.raises(CancelledError):
            future.result(timeout=0)
    assert not Path(f"/proc/{pids[0]}").exists()


def interrupt_once_it_runs(executor: LocalExecutor, pids: list[int]) -> None:
    while not executor._running:
        time.sleep(0.01)
    pids += [process.pid for process in executor._running]
    raise KeyboardInterrupt


def test_an_unknown_executor_is_named() -> None:
    """A misspelt name gets the list of those that exist."""
    with pytest.raises(UsageError, match="slurm"):
        make_executor("slurm")


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning"
)  # Ray leaves sockets and files to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ray_gives_the_same_outcomes() -> None:
    """On a local Ray a job's arrays and failures come back, and closing ends what runs there."""
    pytest.importorskip("ray")
    with RayExecutor(1) as executor:
        good = executor.submit(job(KERNEL)).result(timeout=120)
        np.testing.assert_array_equal(good.calls[0].outputs[0], 2 * X)
        assert "rlimits" in good.isolation
        bad = executor.submit(job(with_lines("n = 1 // 0"))).result(timeout=120)
        assert bad.calls[0].failure is not None
        assert bad.calls[0].failure.error_class == "ZeroDivisionError"
        endless = executor.submit(ENDLESS)
        while not sandboxes():
            time.sleep(0.05)
    with pytest.raises(CancelledError):
        endless.result(timeout=0)
    end = time.monotonic() + 30
    while sandboxes() and time.monotonic() < end:
        time.sleep(0.05)
    assert not sandboxes()


def sandboxes() -> list[Path]:
    """Sandboxed processes that Ray's workers have started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            command = Path(f"/proc/{parent}/cmdline").read_bytes()
        except OSError:
            continue
        if b"neuron_port.sandbox.child" in words and b"ray::" in command:
            found.append(folder)
    return found
