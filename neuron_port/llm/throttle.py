"""Holds calls back: at most so many at once, and so many requests and tokens in any minute.

The limits are the user's or their provider's. A call that alone is larger than the tokens of a minute goes when the
last minute is empty: it would otherwise wait for ever.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from neuron_port.errors import UsageError

WINDOW_SECONDS = 60.0


@dataclass
class Turn:
    """One call's place. Tokens are booked as expected before it, and corrected after it."""

    started: float
    tokens: int

    def settle(self, tokens: int) -> None:
        """The tokens that the call really took."""
        self.tokens = tokens


class Throttle:
    """Thread-safe; shared by all callers of one endpoint.

    Args:
        concurrent_calls: calls at the same time.
        requests_per_minute, tokens_per_minute: None: no limit. Tokens count input and output.
        clock, sleep: replaceable in tests.
    """

    def __init__(
        self,
        *,
        concurrent_calls: int = 8,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        for name, limit in {
            "concurrent_calls": concurrent_calls,
            "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute,
        }.items():
            if limit is not None and limit < 1:
                raise UsageError(
                    f"{name} is `{limit}`, must be at least 1.", hint="Leave it out for no limit."
                )
        self.requests_per_minute = requests_per_minute
        self.tokens_per_minute = tokens_per_minute
        self._clock = clock
        self._sleep = sleep
        self._places = threading.Semaphore(concurrent_calls)
        self._lock = threading.Lock()
        self._recent: deque[Turn] = deque()  # by start, oldest first

    @contextmanager
    def turn(self, expected_tokens: int) -> Iterator[Turn]:
        """Wait until a call of so many tokens may start, and keep its place until the `with` ends."""
        with self._places:
            while True:
                with self._lock:
                    wait_seconds = self._wait_seconds(self._clock(), expected_tokens)
                    if wait_seconds <= 0:
                        turn = Turn(started=self._clock(), tokens=expected_tokens)
                        self._recent.append(turn)
                        break
                self._sleep(wait_seconds)
            yield turn

    def _wait_seconds(self, now: float, tokens: int) -> float:
        """Until enough of the last minute's calls have left it; 0: go."""
        while self._recent and self._recent[0].started + WINDOW_SECONDS <= now:
            self._recent.popleft()
        requests = len(self._recent)
        spent = sum(turn.tokens for turn in self._recent)
        wait_seconds = 0.0
        for leaving in self._recent:  # the oldest leaves first
            if self._fits(requests, spent + tokens):
                break
            wait_seconds = leaving.started + WINDOW_SECONDS - now
            requests -= 1
            spent -= leaving.tokens
        return wait_seconds

    def _fits(self, requests: int, tokens: int) -> bool:
        enough_requests = self.requests_per_minute is None or requests < self.requests_per_minute
        enough_tokens = self.tokens_per_minute is None or tokens <= self.tokens_per_minute
        return enough_requests and enough_tokens
