"""HTTP as the endpoints need it: bodies with limits, answers that stop when the client is gone, event streams."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from neuron_port.serving.errors import ApiError
from neuron_port.serving.settings import Settings

Result = TypeVar("Result")
_DISCARDED_BYTES = 64 * 2**20  # beyond the limit
_UNREAD = (408, 413, 415)  # the body may be on its way still: the connection cannot go on


class ClientGoneError(Exception):
    """The client closed its connection: there is nobody to answer."""


def error_response(error: ApiError) -> JSONResponse:
    """The answer to a request that failed."""
    headers = error.headers() | ({"connection": "close"} if error.status in _UNREAD else {})
    return JSONResponse(error.body(), status_code=error.status, headers=headers)


async def read_body(request: Request, settings: Settings) -> bytes:
    """The body of a request in JSON.

    Raises: ApiError: 415 for another type, 413 beyond the limit, 408 when it does not come in time.
        ClientGoneError when the client leaves.
    """
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Browsers send other types across sites without asking; this one they do not.
        raise ApiError(
            415, f"The content type is `{kind}`, must be `application/json`.", code="unsupported_media_type"
        )
    try:
        async with asyncio.timeout(settings.header_seconds):
            return await _read_up_to(request, settings.max_body_bytes)
    except TimeoutError as error:
        raise ApiError(
            408, f"The body did not arrive within {settings.header_seconds:g} seconds.", code="slow_client"
        ) from error


async def _read_up_to(request: Request, limit: int) -> bytes:
    """The body; of one that is too large the rest is read away for a while, so that its client hears the answer."""
    body, count, more = bytearray(), 0, True
    while more and count <= limit + _DISCARDED_BYTES:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        part, more = message.get("body", b""), message.get("more_body", False)
        count += len(part)
        if count <= limit:
            body += part
    if count > limit:
        raise ApiError(
            413, f"The body is larger than {limit} bytes, the server's limit.", code="body_too_large"
        )
    return bytes(body)


async def unless_gone(receive: Receive, work: Awaitable[Result]) -> Result:
    """The result of `work`, which is cancelled when the client leaves. Raises ClientGoneError then."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        for one in (task, watch):
            one.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events. An error before the first event is an ordinary answer, a later one the last event.

    Args:
        events: JSON values, one for each event.
        release: called once at the end, however it comes.
    """

    def __init__(self, events: AsyncIterator[Any], *, release: Callable[[], None]) -> None:
        self.status_code = 200
        self.background = None
        self._events = events
        self._release = release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until they end or the client leaves; one that stops reading is cut off (connection.py)."""
        try:
            await unless_gone(receive, self._stream(scope, receive, send))
        except ClientGoneError:
            return
        finally:
            self._release()

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        try:
            async for event in self._events:
                if not started:
                    await send(_START)
                    started = True
                await self._put(send, json.dumps(event, ensure_ascii=False, separators=(",", ":")))
        except ApiError as error:
            if not started:
                await error_response(error)(scope, receive, send)
                return
            await self._put(send, json.dumps(error.body()))
        else:
            await self._put(send, "[DONE]")
        await send({"type": "http.response.body", "body": b""})

    async def _put(self, send: Send, text: str) -> None:
        message = {"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True}
        await send(message)


_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")],
}
