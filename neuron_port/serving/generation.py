"""One sequence that is being generated, and what its client hears of it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from neuron_port.serving.detokenizer import Detokenizer, StopStrings
from neuron_port.serving.errors import ApiError
from neuron_port.serving.sampling import Chosen, Sampling, generator_of

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one choice has gained: text, the tokens behind it, and at the end the reason for ending."""

    choice: int
    text: str
    tokens: tuple[Chosen, ...]
    finish_reason: FinishReason | None = None


Event = Piece | ApiError


class Stream:
    """Events of one request, from the engine's thread to the event loop.

    The engine never waits for a client: a stream whose client leaves more than `limit` events unread is `full`,
    and the engine gives its sequences up.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: int) -> None:
        self.loop = loop
        self.cancelled = False
        self._limit = limit
        self._events: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._posted = 0
        self._taken = 0

    @property
    def full(self) -> bool:
        return self._posted - self._taken >= self._limit

    def posted(self) -> None:
        """Count one event as on its way (the engine's thread)."""
        self._posted += 1

    def deliver(self, event: Event) -> None:
        """Put an event where the reader finds it (the event loop)."""
        self._events.append(event)
        self._arrived.set()

    def cancel(self) -> None:
        """The client is gone: the engine frees the rows at its next step."""
        self.cancelled = True

    async def events(self, choices: int) -> AsyncIterator[Piece]:
        """Pieces until all choices have ended. Raises ApiError when the engine failed the request."""
        open_choices = choices
        while open_choices:
            while not self._events:
                self._arrived.clear()
                await self._arrived.wait()
            event = self._events.popleft()
            self._taken += 1
            if isinstance(event, ApiError):
                raise event
            open_choices -= event.finish_reason is not None
            yield event


class Generation:
    """A sequence: the prompt, what was produced, how far the backend has it, and when it ends.

    `length` counts the tokens that the backend's row holds. The row is fed `tokens[length]` until it holds them all;
    then the next token is chosen. So prompts longer than a bucket need no case of their own.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        *,
        stream: Stream,
        sampling: Sampling,
        max_tokens: int,
        stops: Sequence[str],
        end_tokens: frozenset[int],
        decode: Callable[[list[int]], str],
        choice: int = 0,
        timeout_seconds: float,
    ) -> None:
        self.prompt = prompt
        self.tokens = list(prompt)
        self.prompt_length = len(self.tokens)
        self.length = 0
        self.stream = stream
        self.choice = choice
        self.sampling = sampling
        self.timeout_seconds = timeout_seconds
        self.arrived_at = time.monotonic()
        self.last_token_at: float | None = None
        self.random = generator_of(sampling, choice)
        self._max_tokens = max_tokens
        self._end_tokens = end_tokens
        self._detokenizer = Detokenizer(decode, prompt)
        self._stops = StopStrings(stops)
        self._untold: list[Chosen] = []

    @property
    def produced(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.prompt_length

    @property
    def wants_token(self) -> bool:
        """Whether the row holds everything that is known, so that the next logits choose a token."""
        return self.length == len(self.tokens)

    def overdue(self, now: float) -> bool:
        return now - self.arrived_at > self.timeout_seconds

    def accept(self, chosen: Chosen, context: int) -> Piece | None:
        """Append a token; what the client is to hear of it, if anything. `context` is what a row can hold."""
        self.tokens.append(chosen.token)
        if chosen.token in self._end_tokens:
            return self._end(*self._stops.push(self._detokenizer.flush()), reason="stop")
        self._untold.append(chosen)
        text, stopped = self._stops.push(self._detokenizer.push(chosen.token))
        if stopped:
            return self._end(text, True, reason="stop")
        if self.produced >= self._max_tokens or len(self.tokens) > context:
            more, stopped = self._stops.push(self._detokenizer.flush())
            return self._end(text + more, stopped, reason="stop" if stopped else "length")
        return self._piece(text) if text else None

    def _end(self, text: str, stopped: bool, *, reason: FinishReason) -> Piece:
        return self._piece(text if stopped else text + self._stops.flush(), reason)

    def _piece(self, text: str, reason: FinishReason | None = None) -> Piece:
        told, self._untold = tuple(self._untold), []
        return Piece(choice=self.choice, text=text, tokens=told, finish_reason=reason)
