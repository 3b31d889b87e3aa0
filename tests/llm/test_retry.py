"""How long is waited, and when it ends."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from neuron_port.llm.errors import OutOfQuotaError, ServerFailedError, UnreachableError
from neuron_port.llm.messages import Reply, Usage
from neuron_port.llm.retry import RetryPolicy, retry_after_seconds, with_retries

NOON = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
REPLY = Reply(text="x", usage=Usage(input_tokens=1, output_tokens=1), finish="stop", model="m")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "12"}, 12.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "Sun, 01 Mar 2026 12:00:30 GMT"}, 30.0),
        ({"retry-after": "Sun, 01 Mar 2026 11:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after-ms": "250", "retry-after": "12"}, 0.25),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    """Seconds, milliseconds and dates are read; what cannot be read asks for nothing."""
    assert retry_after_seconds(headers, now=NOON) == seconds


def test_waits_double_below_a_ceiling() -> None:
    """Without a request from the endpoint, the wait is anywhere between nothing and a ceiling that doubles."""
    error = ServerFailedError("x")
    longest = RetryPolicy(chance=lambda: 1.0)
    assert [longest.delay_seconds(n, error) for n in (1, 2, 3, 7, 9)] == [1, 2, 4, 60, 60]
    assert RetryPolicy(chance=lambda: 0.0).delay_seconds(5, error) == 0


@pytest.mark.parametrize(("total_wait_seconds", "calls"), [(1000.0, 4), (7.0, 4), (6.9, 3), (0.0, 1)])
def test_patience_is_bounded(total_wait_seconds: float, calls: int) -> None:
    """Attempts end at their number, or before a wait that would exceed the total: 1 + 2 + 4 s here."""
    made: list[int] = []
    waits: list[float] = []

    def attempt() -> Reply:
        made.append(1)
        raise UnreachableError("x cannot be reached.")

    policy = RetryPolicy(
        attempts=4, total_wait_seconds=total_wait_seconds, sleep=waits.append, chance=lambda: 1.0
    )
    with pytest.raises(UnreachableError) as caught:
        with_retries(attempt, policy)
    tries = f"{calls} attempt{'s' * (calls > 1)}"
    assert caught.value.message.endswith(f"gave up after {tries} and {sum(waits):.0f} s of waiting.")
    assert len(made) == calls
    assert sum(waits) <= total_wait_seconds


def test_what_does_not_pass_is_not_tried_again() -> None:
    """An error that waiting cannot cure is raised as it is, without a wait."""
    waits: list[float] = []
    error = OutOfQuotaError("no quota.")

    def attempt() -> Reply:
        raise error

    with pytest.raises(OutOfQuotaError) as caught:
        with_retries(attempt, RetryPolicy(sleep=waits.append))
    assert caught.value is error
    assert waits == []


def test_the_user_hears_of_each_wait() -> None:
    """Before each wait there is one sentence with the reason, the time and the count."""
    failures = [ServerFailedError("x failed."), ServerFailedError("x failed.")]
    said: list[str] = []

    def attempt() -> Reply:
        if failures:
            raise failures.pop()
        return REPLY

    policy = RetryPolicy(attempts=3, sleep=lambda seconds: None, chance=lambda: 0.5)
    assert with_retries(attempt, policy, said.append) == REPLY
    assert said == [
        "x failed. Trying again in 0.5 s (2 of 3).",
        "x failed. Trying again in 1.0 s (3 of 3).",
    ]
