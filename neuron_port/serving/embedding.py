"""Embeddings: texts wait in a queue and go through the encoder as many at a time as its graph has rows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from time import perf_counter

from neuron_port.serving.backends import Embedder, Floats
from neuron_port.serving.errors import ApiError, failed, timed_out
from neuron_port.serving.metrics import Metrics
from neuron_port.serving.worker import Worker, now


class EmbeddingJob:
    """One text on its way through the encoder; it is its own stream, with one event."""

    def __init__(self, ids: Sequence[int], *, timeout_seconds: float) -> None:
        self.ids = ids
        self.loop = asyncio.get_running_loop()
        self.result: asyncio.Future[Floats] = self.loop.create_future()
        self.cancelled = False
        self.timeout_seconds = timeout_seconds
        self.arrived_at = time.monotonic()

    def posted(self) -> None:
        """A job has one event: there is nothing to count."""

    def deliver(self, event: Floats | ApiError) -> None:
        """Settle the result (the event loop)."""
        if self.result.done():
            return
        if isinstance(event, ApiError):
            self.result.set_exception(event)
        else:
            self.result.set_result(event)

    def cancel(self) -> None:
        """The client is gone."""
        self.cancelled = True
        self.result.cancel()


class EmbeddingEngine(Worker[EmbeddingJob]):
    """Embeds what is submitted.

    Args:
        load: makes the backend; called in the engine's thread, which alone uses it.
    """

    def __init__(self, load: Callable[[], Embedder], *, max_queue: int, metrics: Metrics) -> None:
        super().__init__(max_queue=max_queue, metrics=metrics)
        self._make = load
        self._embedder: Embedder | None = None
        self._running: list[EmbeddingJob] = []

    @property
    def context(self) -> int:
        """Tokens of the longest text."""
        assert self._embedder is not None, "the engine is not loaded"
        return self._embedder.context

    def _load(self) -> None:
        self._embedder = self._make()
        self.metrics.rows.set(self._embedder.rows)

    def _busy(self) -> bool:
        return bool(self._running)

    def _places(self) -> int:
        return 0 if self._embedder is None else self._embedder.rows

    def _free_places(self) -> int:
        return 0 if self._running else self._places()

    def _turn(self) -> None:
        assert self._embedder is not None
        with self._changed:
            while self._waiting and len(self._running) < self._embedder.rows:
                self._running.append(self._waiting.popleft())
            self.metrics.waiting.set(len(self._waiting))
        self._running = [job for job in self._running if not self._is_lost(job)]
        if not self._running:
            return
        started = perf_counter()
        vectors = self._embedder.embed([job.ids for job in self._running])
        self.metrics.embed_seconds.observe(perf_counter() - started)
        for job, vector_H in zip(self._running, vectors, strict=True):
            self._finish(job, vector_H)
        self._running = []

    def _is_lost(self, job: EmbeddingJob) -> bool:
        if not job.cancelled and now() - job.arrived_at > job.timeout_seconds:
            self._send(job, timed_out(job.timeout_seconds))
            return True
        return job.cancelled

    def _finish(self, job: EmbeddingJob, vector_H: Floats) -> None:
        self.metrics.prompt_tokens.inc(len(job.ids))
        finite = bool((abs(vector_H) < float("inf")).all())
        self._send(job, vector_H if finite else failed("The embedding has values that are not finite."))
        self.metrics.finished.labels(reason="stop" if finite else "error").inc()

    def _recover(self, error: ApiError) -> None:
        for job in self._running:
            self._send(job, error)
        self._running = []

    def _abandon(self, error: ApiError) -> None:
        with self._changed:
            self._running += self._waiting
            self._waiting.clear()
        self._recover(error)
