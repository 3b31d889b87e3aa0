"""One HTTP connection: time limits for what a client sends and takes, and errors in OpenAI's shape.

uvicorn's protocol over h11, which itself limits the size of headers and closes connections that are idle.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from neuron_port.serving.errors import ApiError
from neuron_port.serving.settings import Settings


def protocol(settings: Settings) -> type[H11Protocol]:
    """The class of connections under these settings, for uvicorn."""

    class Configured(Connection):
        limits = settings

    return Configured


class Connection(H11Protocol):
    """A connection that is cut off when its client sends no headers, or takes nothing of an answer, for too long."""

    limits: ClassVar[Settings]
    _headers_due: asyncio.TimerHandle | None = None
    _taking_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            transport.abort()
            return
        # Told at the first byte that the client does not take, however short the answer is.
        transport.set_write_buffer_limits(high=0)
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        waiting = self.cycle is None or self.cycle.response_complete
        super().data_received(data)
        if waiting and self.cycle is not None and not self.cycle.response_complete:
            _cancel(self._headers_due)  # a request has come in whole, its body apart
            self._headers_due = None
        elif waiting and self._headers_due is None:
            self._expect_headers()  # the first part of the next request on this connection

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_taking(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        _cancel(self._taking_due)
        self._taking_due = None
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        _cancel(self._headers_due)
        self._headers_due = None
        _cancel(self._taking_due)
        self._taking_due = None
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, unless an answer is already under way."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(ApiError(400, msg, code="invalid_http").body()).encode()
            headers = [("content-type", "application/json"), ("content-length", str(len(body)))]
            start = h11.Response(
                status_code=400, headers=[*headers, ("connection", "close")], reason="Bad Request"
            )
            for event in (start, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _expect_headers(self) -> None:
        self._headers_due = self.loop.call_later(self.limits.header_seconds, self.transport.abort)

    def _expect_taking(self, left_bytes: int) -> None:
        _cancel(self._taking_due)
        self._taking_due = self.loop.call_later(self.limits.send_seconds, self._look_at_taking, left_bytes)

    def _look_at_taking(self, left_bytes: int) -> None:
        """Give up a client that took nothing since; one that is only slow goes on."""
        left = self.transport.get_write_buffer_size()
        if left >= left_bytes:
            self.transport.abort()
        else:
            self._expect_taking(left)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
