"""A thread that owns a backend: loads it, serves what is submitted, drains, and says how it is.

Everything here is shared by the two engines (engine.py, embedding.py). Requests come from the event loop, answers go
back to it once per turn, so that neither side waits for the other.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Generic, Literal, TypeVar

from neuron_port.errors import NeuronPortError
from neuron_port.serving.errors import ApiError, failed, too_busy, unavailable
from neuron_port.serving.metrics import Metrics

State = Literal["loading", "ready", "draining", "failed", "stopped"]
Job = TypeVar("Job")
# A step that fails once may have met one bad request; so many in a row say that the device or the graph is broken.
FAILURES_UNTIL_UNREADY = 3
log = logging.getLogger("neuron_port.serving")


class Worker(Generic[Job]):
    """A queue, a thread and its state. Subclasses say how to load, whether there is work, and what a turn is."""

    def __init__(self, *, max_queue: int, metrics: Metrics) -> None:
        self.metrics = metrics
        self.problem: str | None = None  # why the state is "failed"
        self.failure: Exception | None = None  # the exception behind it
        self._max_queue = max_queue
        self._state: State = "loading"
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._failures = 0
        self._outbox: list[tuple[Any, Any]] = []
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)

    # -- the event loop's side ------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        return self._state

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        with self._changed:
            return not self._waiting and not self._busy()

    @property
    def capacity(self) -> int:
        """Jobs that can be here at once, waiting and running."""
        return self._max_queue + self._places()

    def start(self) -> None:
        """Begin loading; `state` tells when it is done."""
        self._thread.start()

    def check_ready(self) -> None:
        """Raise ApiError (503) unless requests can be taken."""
        if self._state == "loading":
            raise unavailable("The model is still being loaded.", code="loading")
        if self._state == "failed":
            raise unavailable(
                f"The model cannot be served: {self.problem}", code="failed", retry_after_seconds=60
            )
        if self._state in ("draining", "stopped"):
            raise unavailable("The server is shutting down.", code="draining")

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs, all of them or none. Raises ApiError: 503 when not ready, 429 when the queue is full."""
        with self._changed:
            self.check_ready()
            free = self._max_queue + self._free_places() - len(self._waiting)
            if len(jobs) > free:
                self.metrics.refused.inc()
                raise too_busy(self._max_queue)
            self._waiting.extend(jobs)
            self._changed.notify()

    def drain(self) -> None:
        """Take no more requests; what waits and runs goes on."""
        self._set_state("draining", only_from=("loading", "ready"))

    def stop(self) -> None:
        """End the thread after its turn, and fail what is still there."""
        with self._changed:
            self._state = "stopped"
            self.metrics.ready.set(0)
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    # -- the engine's thread --------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            self._load()
        except NeuronPortError as error:
            self._fail(error.message, error)
            return
        except Exception as error:
            log.exception("The backend could not be loaded")
            self._fail(f"{type(error).__name__}: {error}", error)
            return
        self._set_state("ready", only_from=("loading",))
        while True:
            with self._changed:
                while self._state != "stopped" and self.idle:
                    self._changed.wait()
                if self._state == "stopped":
                    break
            self._guarded_turn()
            self._deliver()
        self._abandon(unavailable("The server is shutting down.", code="draining"))
        self._deliver()

    def _guarded_turn(self) -> None:
        """One turn; an exception in it fails the requests concerned, and several in a row the server."""
        try:
            self._turn()
        except Exception as error:
            log.exception("A step failed")
            self._failures += 1
            self.metrics.failed_steps.inc()
            reason = f"{type(error).__name__}: {error}"
            if self._failures >= FAILURES_UNTIL_UNREADY:
                self._fail(f"{self._failures} steps in a row failed, the last with {reason}", error)
                return
            try:
                self._recover(failed("A step of the model failed."))
            except Exception as second:
                log.exception("The backend could not be reset")
                self._fail(f"a step failed with {reason}, and the reset after it with {second}", second)
        else:
            self._failures = 0

    def _fail(self, problem: str, failure: Exception) -> None:
        self.problem, self.failure = problem, failure
        self._set_state("failed", only_from=("loading", "ready", "draining"))
        self._abandon(
            unavailable(f"The model cannot be served: {problem}", code="failed", retry_after_seconds=60)
        )

    def _set_state(self, state: State, *, only_from: Sequence[State]) -> None:
        """Change the state unless it is another: both threads do, and none may undo what the other said."""
        with self._changed:
            if self._state in only_from:
                self._state = state
                self.metrics.ready.set(state == "ready")

    def _send(self, stream: Any, event: Any) -> None:
        """Have `stream.deliver(event)` called in the event loop at the end of this turn."""
        stream.posted()
        self._outbox.append((stream, event))

    def _deliver(self) -> None:
        """Hand the turn's events to the event loop, all in one call: waking it costs more than an event."""
        outbox, self._outbox = self._outbox, []
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Any, Any]]] = {}
        for stream, event in outbox:
            by_loop.setdefault(stream.loop, []).append((stream, event))
        for loop, events in by_loop.items():
            try:
                loop.call_soon_threadsafe(_deliver_all, events)
            except RuntimeError:  # the loop has ended: nobody is left to hear
                log.debug("%d events came after the end of the server", len(events))

    # -- what an engine is ----------------------------------------------------------------------------------

    def _load(self) -> None:
        """Load the backend."""
        raise NotImplementedError

    def _busy(self) -> bool:
        """Whether anything runs."""
        raise NotImplementedError

    def _places(self) -> int:
        """How many jobs can run at once."""
        raise NotImplementedError

    def _free_places(self) -> int:
        """How many of these places are free."""
        raise NotImplementedError

    def _turn(self) -> None:
        """Some work: one step of everything that runs."""
        raise NotImplementedError

    def _recover(self, error: ApiError) -> None:
        """Fail what the last turn was about, and make the backend usable again."""
        raise NotImplementedError

    def _abandon(self, error: ApiError) -> None:
        """Fail everything that waits or runs."""
        raise NotImplementedError


def _deliver_all(events: Sequence[tuple[Any, Any]]) -> None:
    for stream, event in events:
        stream.deliver(event)


def now() -> float:
    """Seconds on a clock that only goes forward."""
    return time.monotonic()
