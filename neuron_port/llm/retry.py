"""Tries a call again when that may help: full-jitter exponential back-off, or as long as the endpoint asks.

Both the number of attempts and the waiting are bounded. It is always the same call to the same endpoint: nothing here
falls back to another provider or model.
"""

from __future__ import annotations

import email.utils
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from neuron_port.llm.errors import LanguageModelError
from neuron_port.llm.messages import MayRetry, Reply, Usage

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How patient to be. `sleep` and `chance` (a number in [0, 1)) can be replaced in tests."""

    attempts: int = 6
    first_delay_seconds: float = 1.0  # the ceiling of the first random wait; it doubles each time
    longest_delay_seconds: float = 60.0
    total_wait_seconds: float = 300.0  # of one call, all its waits together
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)
    chance: Callable[[], float] = field(default=random.random, repr=False)

    def delay_seconds(self, failures: int, error: LanguageModelError) -> float:
        """How long to wait after that many failures: what the endpoint asked for, else random below a rising ceiling."""
        if error.retry_after_seconds is not None:
            return error.retry_after_seconds
        ceiling = min(self.longest_delay_seconds, self.first_delay_seconds * 2.0 ** (failures - 1))
        return ceiling * self.chance()

    def hurried(self) -> RetryPolicy:
        """For a probe: a typing mistake in an address should show soon."""
        return replace(
            self, attempts=min(3, self.attempts), total_wait_seconds=min(20.0, self.total_wait_seconds)
        )


def with_retries(
    attempt: Callable[[], Reply],
    policy: RetryPolicy,
    say: Say | None = None,
    may_retry: MayRetry | None = None,
) -> Reply:
    """The reply of the first attempt that succeeds; its usage includes what failed attempts were probably charged for.

    `say` hears one sentence before each wait. `may_retry` decides whether what was charged for nothing leaves enough
    for another attempt. An error that is not transient, or the last one, is raised.
    """
    waited_seconds = 0.0
    wasted: Usage | None = None
    for failures in range(1, policy.attempts + 1):
        try:
            reply = attempt()
        except LanguageModelError as error:
            wasted = added(wasted, error.usage)
            if not error.transient:
                error.usage = wasted
                raise
            delay_seconds = policy.delay_seconds(failures, error)
            over = waited_seconds + delay_seconds > policy.total_wait_seconds
            refused = wasted is not None and may_retry is not None and not may_retry(wasted)
            if failures == policy.attempts or over or refused:
                raise error.given_up(failures, waited_seconds, wasted) from None
            if say is not None:
                say(
                    f"{error.message} Trying again in {delay_seconds:.1f} s ({failures + 1} of {policy.attempts})."
                )
            policy.sleep(delay_seconds)
            waited_seconds += delay_seconds
        else:
            total = added(wasted, reply.usage)
            return reply if total is None else replace(reply, usage=total)
    raise AssertionError("a policy has at least one attempt")


def added(first: Usage | None, second: Usage | None) -> Usage | None:
    """Both together; None counts as nothing."""
    if first is None or second is None:
        return first or second
    return Usage(
        input_tokens=first.input_tokens + second.input_tokens,
        output_tokens=first.output_tokens + second.output_tokens,
        cached_input_tokens=first.cached_input_tokens + second.cached_input_tokens,
        estimated=first.estimated or second.estimated,
    )


def retry_after_seconds(headers: Mapping[str, str], *, now: datetime | None = None) -> float | None:
    """What `retry-after-ms` or `Retry-After` (seconds, or an HTTP date) ask for; None: nothing that can be read.

    Header names are given in lower case. A date in the past asks for no wait.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    text = headers.get("retry-after")
    seconds = _number(text)
    if seconds is not None or text is None:
        return seconds
    try:
        when = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    when = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
    return max(0.0, (when - (now or datetime.now(UTC))).total_seconds())


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if 0 <= number < float("inf") else None
