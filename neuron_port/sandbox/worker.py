"""A confined process that stays: for kernels that nobody has read, called hundreds of times for every token.

It is confined like a job's process. Weights are sent once and named by what `hold` returned; the limits count for each
call. It ends when it is closed, when nothing refers to it any more, and with the process that started it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from neuron_port.sandbox.frames import ABSENT, Frame, Kind
from neuron_port.sandbox.gate import inspect_source
from neuron_port.sandbox.job import GIB, Failure, SandboxLimits
from neuron_port.sandbox.process import ProcessFailedError, SandboxProcess
from neuron_port.sandbox.run import call_body, call_outcome
from neuron_port.simulator import SimulatorError
from neuron_port.simulator import errors as simulator_errors

WORKER_LIMITS = SandboxLimits(
    wall_seconds=600.0, memory_bytes=16 * GIB
)  # wall time of one call; weights included
_ERRORS: dict[str, type[SimulatorError]] = {
    name: value
    for name, value in vars(simulator_errors).items()
    if isinstance(value, type) and issubclass(value, SimulatorError)
}
LIFETIME_SECONDS = 30 * 24 * 3600.0


@dataclass(frozen=True)
class HeldArray:
    """An array that the worker keeps."""

    number: int


def _place_of(array: np.ndarray | HeldArray | None) -> int | None:
    if array is None:
        return ABSENT
    return array.number if isinstance(array, HeldArray) else None


class SandboxWorker:
    """One kernel in a process of its own. A context manager.

    Args:
        source: the kernel's file; it goes through the gate first.
        entry_point: its function.
        target: under whose rules it runs.
        name: how errors call the file.

    Raises:
        SimulatorError: the gate refuses the file.
        SandboxError: the sandbox does not work here.
    """

    def __init__(
        self,
        source: str,
        entry_point: str,
        target: str = "trn2",
        *,
        limits: SandboxLimits = WORKER_LIMITS,
        name: str = "kernel.py",
    ) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._count = 0
        self._failure = inspect_source(source, entry_point)
        if self._failure is not None:
            self._raise(self._failure)
        self._process = SandboxProcess(source, entry_point, target, limits, lifetime_seconds=LIFETIME_SECONDS)
        self.isolation = self._process.isolation
        self.pid = self._process.pid
        self._finalizer = weakref.finalize(self, self._process.close)

    def __enter__(self) -> SandboxWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def hold(self, array: np.ndarray) -> HeldArray:
        """Send an array once; what is returned stands for it in calls, as long as the worker lives.

        Raises:
            SimulatorError: the process has ended.
        """
        with self._lock:
            self._count += 1
            self._ask(Kind.hold, {"id": self._count}, (array,))
            return HeldArray(self._count)

    def call(
        self, arrays: Sequence[np.ndarray | HeldArray | None], attributes: Mapping[str, Any]
    ) -> tuple[np.ndarray, ...]:
        """Run the kernel once; an optional tensor that is not there is None.

        Raises:
            SimulatorError: of the class and in the words that the kernel's line caused. After the end of the process
                (time, memory, a crash) every further call raises the same.
        """
        body = call_body([_place_of(array) for array in arrays], attributes)
        sent = tuple(array for array in arrays if isinstance(array, np.ndarray))
        with self._lock:
            answer = self._ask(Kind.call, body, sent)
            try:
                outcome = call_outcome(answer)
            except ProcessFailedError as error:
                self._end(error.failure)
        if outcome.failure is not None:
            self._raise(outcome.failure)
        return outcome.outputs

    def _ask(self, kind: Kind, body: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> Frame:
        if self._failure is not None:
            self._raise(self._failure)
        if not self._finalizer.alive:
            raise SimulatorError(f"the worker of {self._name} is closed", location="")
        self._process.renew()
        try:
            return self._process.ask(kind, body, arrays)
        except ProcessFailedError as error:
            self._end(error.failure)
        except (
            BaseException
        ):  # interrupted between question and answer: the next answer would be the wrong one
            self.close()
            raise

    def _end(self, failure: Failure) -> NoReturn:
        self._failure = failure
        self.close()
        self._raise(failure)

    def _raise(self, failure: Failure) -> NoReturn:
        """The failure as the error that the simulator raised in the other process, or the closest to it."""
        known = failure.kind == "simulator" and failure.error_class in _ERRORS
        location = f"{self._name}:{failure.line}" if failure.line is not None else self._name
        words = failure.message if known else f"{failure.error_class}: {failure.message}"
        raise _ERRORS.get(failure.error_class if known else "", SimulatorError)(
            words, hint=failure.hint, location=location
        )

    def close(self) -> None:
        """End the process. May be called again."""
        self._finalizer()
