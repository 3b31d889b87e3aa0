"""What a client did wrong or cannot have right now, in the shape in which OpenAI's clients read it."""

from __future__ import annotations

from typing import Any

INVALID, LIMIT, SERVER = "invalid_request_error", "rate_limit_error", "server_error"


class ApiError(Exception):
    """One answer with an error: HTTP status, sentence, OpenAI's `type`, and where known `param` and `code`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_after_seconds = retry_after_seconds

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Retry-After, where waiting helps."""
        return {} if self.retry_after_seconds is None else {"retry-after": str(self.retry_after_seconds)}


def unavailable(message: str, *, code: str, retry_after_seconds: int = 5) -> ApiError:
    """503: the server cannot take requests now."""
    return ApiError(503, message, kind=SERVER, code=code, retry_after_seconds=retry_after_seconds)


def too_busy(limit: int) -> ApiError:
    """429: the queue is full."""
    message = f"The server has {limit} requests waiting, which is as many as it takes. Try again later."
    return ApiError(429, message, kind=LIMIT, code="queue_full", retry_after_seconds=1)


def unsupported(what: str, *, param: str) -> ApiError:
    """400: a feature of OpenAI's interface that this server does not have; never ignored silently."""
    return ApiError(
        400, f"`{what}` is not supported by this server.", param=param, code="unsupported_parameter"
    )


def failed(message: str, *, code: str = "engine_error") -> ApiError:
    """500: the computation itself went wrong."""
    return ApiError(500, message, kind=SERVER, code=code)


def timed_out(seconds: float) -> ApiError:
    """504: the request took longer than the server gives to one."""
    message = f"The request took longer than {seconds:g} seconds, the server's limit."
    return ApiError(504, message, kind=SERVER, code="timeout")
