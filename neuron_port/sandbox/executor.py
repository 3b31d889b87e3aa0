"""Where jobs run: on this machine, or on a Ray cluster. Every job is `run_job`; outputs come back to be judged here.

An executor is a context manager. Leaving it, by an interrupt too, cancels what waits and ends what runs.
"""

from __future__ import annotations

import logging
import os
import threading
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import neuron_port
from neuron_port.errors import UsageError
from neuron_port.sandbox.job import SandboxJob, SandboxOutcome
from neuron_port.sandbox.process import SandboxProcess
from neuron_port.sandbox.run import run_job

EXECUTORS = ("local", "ray")


class Executor(Protocol):
    """Runs jobs side by side."""

    def submit(self, job: SandboxJob) -> Future[SandboxOutcome]:
        """Queue a job. The future holds its outcome, or the SandboxError that kept it from running."""
        ...

    def close(self) -> None:
        """Cancel what waits and end what runs; their futures raise CancelledError. May be called again."""
        ...

    def __enter__(self) -> Executor: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class LocalExecutor:
    """A process for each job, on as many cores as `workers` says; each is watched by a thread that only waits."""

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or os.cpu_count() or 1
        self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="sandbox")
        self._lock = threading.Lock()
        self._running: set[SandboxProcess] = set()
        self._closed = False

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, job: SandboxJob) -> Future[SandboxOutcome]:
        """See `Executor`."""
        return self._threads.submit(run_job, job, watch=self._watch)

    def close(self) -> None:
        """See `Executor`."""
        with self._lock:
            self._closed = True
            for process in self._running:
                process.cancel()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _watch(self, process: SandboxProcess, runs: bool) -> None:
        with self._lock:
            if not runs:
                self._running.discard(process)
                return
            self._running.add(process)
            if self._closed:
                process.cancel()


class RayExecutor:
    """Tasks of a Ray cluster: the one that this process is connected to, or a local one made for the purpose.

    Arrays of an outcome are read-only views of Ray's shared memory.
    """

    def __init__(self, workers: int | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise UsageError(
                "Ray is not installed", hint="pip install ray, or use --executor local"
            ) from error
        self._ray: Any = ray
        self.workers = workers or os.cpu_count() or 1
        self._owned = not ray.is_initialized()
        if self._owned:
            root = str(Path(neuron_port.__file__).parents[1])  # a checkout is not installed
            ray.init(
                num_cpus=self.workers,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": {"PYTHONPATH": root}},
            )
        # A task that fails is not tried again: a candidate that kills its worker would kill the next one.
        self._task: Any = ray.remote(run_job).options(num_cpus=1, max_retries=0)
        self._lock = threading.Lock()
        self._waiting: dict[Any, Future[SandboxOutcome]] = {}  # by Ray's reference

    def __enter__(self) -> RayExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, job: SandboxJob) -> Future[SandboxOutcome]:
        """See `Executor`."""
        future: Future[SandboxOutcome] = Future()
        future.set_running_or_notify_cancel()
        reference = self._task.remote(job)
        with self._lock:
            self._waiting[reference] = future
        reference.future().add_done_callback(lambda done: self._pass_on(reference, done))
        return future

    def close(self) -> None:
        """See `Executor`. A sandbox ends with the worker process that started it."""
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for reference, future in waiting.items():
            self._ray.cancel(reference, force=True)
            future.set_exception(CancelledError())
        if self._owned and self._ray.is_initialized():
            self._ray.shutdown()
            self._owned = False

    def _pass_on(self, reference: Any, done: Future[SandboxOutcome]) -> None:
        with self._lock:
            future = self._waiting.pop(reference, None)
        if future is None:  # cancelled by close
            return
        error = done.exception()
        if error is None:
            future.set_result(done.result())
        else:
            # Ray wraps what the task raised.
            cause = getattr(error, "cause", None)
            future.set_exception(cause if isinstance(cause, BaseException) else error)


def make_executor(name: str, workers: int | None = None) -> Executor:
    """The executor of that name.

    Args:
        name: "local" or "ray".
        workers: jobs that run at once; as many as there are cores by default.

    Raises:
        UsageError: no executor has that name, or its package is missing.
    """
    if name == "local":
        return LocalExecutor(workers)
    if name == "ray":
        return RayExecutor(workers)
    raise UsageError(f"Unknown executor: `{name}`", hint=f"use one of {', '.join(EXECUTORS)}")
