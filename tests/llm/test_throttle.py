"""Limits on calls at once and per minute, with a clock of our own."""

from __future__ import annotations

import threading

import pytest

from neuron_port.errors import UsageError
from neuron_port.llm.throttle import Throttle


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


def starts(tokens: list[int], **limits: int) -> list[float]:
    """When calls of so many tokens start that are made one after another and take no time."""
    clock = Clock()
    throttle = Throttle(clock=clock, sleep=clock.sleep, **limits)
    times = []
    for expected in tokens:
        with throttle.turn(expected) as turn:
            times.append(turn.started)
    return times


def test_without_limits_nothing_waits() -> None:
    """By default only the number of calls at once is limited."""
    assert starts([10**9] * 50) == [0.0] * 50


def test_requests_per_minute() -> None:
    """The third call waits until the first is a minute old."""
    assert starts([1] * 5, requests_per_minute=2) == [0.0, 0.0, 60.0, 60.0, 120.0]


def test_tokens_per_minute() -> None:
    """A call waits until enough tokens have left the last minute; one that alone is too large goes alone."""
    assert starts([60, 40, 1], tokens_per_minute=100) == [0.0, 0.0, 60.0]
    assert starts([10, 500, 10], tokens_per_minute=100) == [0.0, 60.0, 120.0]


def test_both_limits_hold() -> None:
    """The stricter of the two decides."""
    assert starts([90, 5, 1], requests_per_minute=2, tokens_per_minute=100) == [0.0, 0.0, 60.0]
    assert starts([90, 50, 1], requests_per_minute=2, tokens_per_minute=100) == [0.0, 60.0, 60.0]


def test_settled_tokens_make_room() -> None:
    """A call that took fewer tokens than expected lets the next one go at once."""
    clock = Clock()
    throttle = Throttle(tokens_per_minute=100, clock=clock, sleep=clock.sleep)
    with throttle.turn(100) as turn:
        turn.settle(30)
    with throttle.turn(70):
        assert clock.now == 0.0


@pytest.mark.parametrize("concurrent_calls", [1, 3])
def test_calls_at_once(concurrent_calls: int) -> None:
    """Exactly so many calls run at the same time: that many meet, and never more."""
    throttle = Throttle(concurrent_calls=concurrent_calls)
    meeting = threading.Barrier(concurrent_calls)
    lock = threading.Lock()
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        with throttle.turn(1):
            with lock:
                inside += 1
                most = max(most, inside)
            meeting.wait(timeout=60)
            with lock:
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(3 * concurrent_calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == concurrent_calls


def test_a_place_is_given_back_after_an_error() -> None:
    """A call that fails does not keep its place."""
    throttle = Throttle(concurrent_calls=1)
    with pytest.raises(RuntimeError, match="failed"), throttle.turn(1):
        raise RuntimeError("failed")
    with throttle.turn(1):
        pass


def test_a_limit_of_nothing_is_refused() -> None:
    """A limit below 1 would wait for ever."""
    with pytest.raises(UsageError, match="requests_per_minute is `0`"):
        Throttle(requests_per_minute=0)
