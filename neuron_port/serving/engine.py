"""Continuous batching: rows of a fixed batch, each with a sequence of its own, filled as they become free.

A turn of the engine's thread:

    1. give up what was cancelled, is too slow or overdue      its row is free at once
    2. fill free rows from the queue, first come first served  one prefill each
    3. one decode step of all rows                             each row's next token, known or just chosen
    4. tell the clients                                        one call into the event loop

Between two decode steps at most `PREFILLS_PER_TURN` prompts are taken in while others are running, so that a rush of
prompts slows running streams down instead of stopping them.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from neuron_port.serving.backends import Floats, Generator
from neuron_port.serving.errors import ApiError, failed, timed_out
from neuron_port.serving.generation import Generation, Piece
from neuron_port.serving.metrics import Metrics
from neuron_port.serving.sampling import choose
from neuron_port.serving.worker import Worker, now

PREFILLS_PER_TURN = 4


class Engine(Worker[Generation]):
    """Generates the sequences that are submitted, many at a time.

    Args:
        load: makes the backend; called in the engine's thread, which alone uses it.
        max_queue: sequences that may wait beyond those that have a row.
    """

    def __init__(self, load: Callable[[], Generator], *, max_queue: int, metrics: Metrics) -> None:
        super().__init__(max_queue=max_queue, metrics=metrics)
        self._make = load
        self._rows: list[Generation | None] = []
        self._generator: Generator | None = None

    @property
    def generator(self) -> Generator:
        """The backend, once it is loaded."""
        assert self._generator is not None, "the engine is not loaded"
        return self._generator

    @property
    def context(self) -> int:
        """Tokens that a sequence can have, prompt and completion together."""
        return self.generator.context

    # -- Worker ---------------------------------------------------------------------------------------------

    def _load(self) -> None:
        self._generator = self._make()
        self._rows = [None] * self._generator.rows
        self.metrics.rows.set(self._generator.rows)

    def _busy(self) -> bool:
        return any(self._rows)

    def _places(self) -> int:
        return len(self._rows)

    def _free_places(self) -> int:
        return self._rows.count(None)

    def _turn(self) -> None:
        self._drop_lost()
        self._admit()
        if any(self._rows):
            self._step()
        self.metrics.running.set(len(self._rows) - self._rows.count(None))
        self.metrics.waiting.set(len(self._waiting))

    def _recover(self, error: ApiError) -> None:
        """The states of all rows may be gone: every running sequence fails, the waiting ones go on."""
        for row, generation in enumerate(self._rows):
            if generation is not None:
                self._fail_generation(generation, error)
                self._rows[row] = None
        self.generator.reset()

    def _abandon(self, error: ApiError) -> None:
        with self._changed:
            waiting, running = list(self._waiting), [item for item in self._rows if item is not None]
            self._waiting.clear()
            self._rows = [None] * len(self._rows)
        for generation in (*waiting, *running):
            self._fail_generation(generation, error)

    # -- a turn ---------------------------------------------------------------------------------------------

    def _drop_lost(self) -> None:
        """Free the rows, and the places in the queue, of sequences that nobody waits for any more."""
        moment = now()
        for row, generation in enumerate(self._rows):
            if generation is not None and self._is_lost(generation, moment):
                self._rows[row] = None
        with self._changed:
            kept = [generation for generation in self._waiting if not self._is_lost(generation, moment)]
            self._waiting.clear()
            self._waiting.extend(kept)

    def _is_lost(self, generation: Generation, moment: float) -> bool:
        stream = generation.stream
        if stream.cancelled:
            self.metrics.finished.labels(reason="cancelled").inc()
            return True
        if stream.full:
            stream.cancel()
            self._send(stream, ApiError(408, "The client reads too slowly.", code="slow_client"))
            self.metrics.finished.labels(reason="slow client").inc()
            return True
        if generation.overdue(moment):
            stream.cancel()
            self._send(stream, timed_out(generation.timeout_seconds))
            self.metrics.finished.labels(reason="timeout").inc()
            return True
        return False

    def _admit(self) -> None:
        """Fill free rows from the queue, in the order of arrival."""
        running = any(self._rows)
        taken = 0
        for row, occupant in enumerate(self._rows):
            if occupant is not None:
                continue
            with self._changed:
                if not self._waiting or (running and taken == PREFILLS_PER_TURN):
                    return
                generation = self._waiting.popleft()
                self._rows[row] = generation
            taken += 1
            self.metrics.queue_seconds.observe(now() - generation.arrived_at)
            self._begin(row, generation)

    def _begin(self, row: int, generation: Generation) -> None:
        """Take a prompt in, as much of it as a bucket takes."""
        busy_rows = min(len(self._rows), len(self._rows) - self._rows.count(None) + len(self._waiting))
        count = self.generator.prefill_length(generation.prompt_length, busy_rows)
        self.metrics.prompt_tokens.inc(generation.prompt_length)
        if count == 0:
            self.generator.begin_empty(row)
            return
        started = perf_counter()
        logits_V = self.generator.prefill(row, generation.tokens[:count])
        self.metrics.prefill_seconds.observe(perf_counter() - started)
        generation.length = count
        if generation.wants_token:
            self._next_token(row, generation, logits_V)
            self._deliver()  # a first token does not wait for the prompts after it

    def _step(self) -> None:
        """Feed every row its next token; rows that hold all they know choose a new one."""
        tokens, positions = [0] * len(self._rows), [0] * len(self._rows)
        for row, generation in enumerate(self._rows):
            if generation is not None:
                tokens[row], positions[row] = generation.tokens[generation.length], generation.length
        started = perf_counter()
        logits_BV = self.generator.decode(tokens, positions)
        self.metrics.decode_seconds.observe(perf_counter() - started)
        for row, generation in enumerate(self._rows):
            if generation is not None:
                generation.length += 1
                if generation.wants_token:
                    self._next_token(row, generation, logits_BV[row])

    def _next_token(self, row: int, generation: Generation, logits_V: Floats) -> None:
        """Choose a token, tell it, and free the row if it was the last one."""
        try:
            chosen = choose(logits_V, generation.sampling, generation.random)
        except ValueError as error:
            self._rows[row] = None
            self._fail_generation(generation, failed(f"The model's answer cannot be used: {error}."))
            return
        moment = now()
        if generation.last_token_at is None:
            self.metrics.first_token_seconds.observe(moment - generation.arrived_at)
        else:
            self.metrics.inter_token_seconds.observe(moment - generation.last_token_at)
        generation.last_token_at = moment
        self.metrics.generated_tokens.inc()
        piece = generation.accept(chosen, self.context)
        if piece is not None:
            self._tell(row, generation, piece)

    def _tell(self, row: int, generation: Generation, piece: Piece) -> None:
        self._send(generation.stream, piece)
        if piece.finish_reason is not None:
            self._rows[row] = None
            self.metrics.finished.labels(reason=piece.finish_reason).inc()

    def _fail_generation(self, generation: Generation, error: ApiError) -> None:
        if not generation.stream.cancelled:
            generation.stream.cancel()  # of a request with several choices the others end too
            self._send(generation.stream, error)
            self.metrics.finished.labels(reason="error").inc()
