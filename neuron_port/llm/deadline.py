"""Ends a reply that takes too long although bytes keep coming: httpx itself only limits silence."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx


class OutOfTimeError(httpx.ReadTimeout):
    """The whole attempt took too long, although bytes kept coming."""


class Deadline:
    """An httpx hook that ends a response, streamed or not, a number of seconds after its headers came."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __call__(self, response: httpx.Response) -> None:
        assert isinstance(response.stream, httpx.SyncByteStream)
        response.stream = _Limited(response.stream, time.monotonic() + self._seconds)


class _Limited(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def __iter__(self) -> Iterator[bytes]:
        for part in self._stream:
            if time.monotonic() > self._deadline:
                raise OutOfTimeError("out of time")
            yield part

    def close(self) -> None:
        self._stream.close()
