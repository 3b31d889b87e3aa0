"""The routes, and what every request goes through: keys, counting, and errors in OpenAI's shape."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from neuron_port.serving.embed import embeddings
from neuron_port.serving.errors import INVALID, SERVER, ApiError
from neuron_port.serving.generate import chat_completions, completions
from neuron_port.serving.http import ClientGoneError, error_response
from neuron_port.serving.metrics import CONTENT_TYPE
from neuron_port.serving.service import Service, model_not_found

log = logging.getLogger("neuron_port.serving")
# Parts of OpenAI's interface that this server does not have, so that a client learns more than "not found".
_ABSENT = (
    "responses",
    "images",
    "audio",
    "moderations",
    "files",
    "batches",
    "fine_tuning",
    "assistants",
    "threads",
)


def make_app(service: Service) -> ASGIApp:
    """The ASGI application of one service."""
    routes = [
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/chat/completions", chat_completions, methods=["POST"]),
        Route("/v1/embeddings", embeddings, methods=["POST"]),
        Route("/v1/models", _models),
        Route("/v1/models/{model:path}", _model),
        Route("/health", _ready),
        Route("/health/ready", _ready),
        Route("/health/live", _live),
        Route("/metrics", _metrics),
    ]
    handlers: dict[Any, Callable[[Request, Any], Awaitable[Response]]] = {
        ApiError: _api_error,
        HTTPException: _http_error,
        ClientGoneError: _client_gone,
        Exception: _unexpected,
    }
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    app.state.service = service
    return _Gate(app, service, frozenset(route.path for route in routes))


class _Gate:
    """Asks for the key before anything of a request is read, and counts answers by status."""

    def __init__(self, app: ASGIApp, service: Service, paths: frozenset[str]) -> None:
        self._app = app
        self._service = service
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]

        async def counted(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                route = path if path in self._paths else "other"
                self._service.metrics.requests.labels(route=route, status=str(message["status"])).inc()
            await send(message)

        if path.startswith("/v1") and not self._service.settings.accepts(Request(scope).headers):
            refusal = ApiError(
                401, "Incorrect API key provided. Send it as `Authorization: Bearer KEY`.",
                code="invalid_api_key",
            )  # fmt: skip
            response = error_response(refusal)
            response.headers["www-authenticate"] = "Bearer"
            await response(scope, receive, counted)
            return
        await self._app(scope, receive, counted)


async def _models(request: Request) -> Response:
    service: Service = request.app.state.service
    return JSONResponse({"object": "list", "data": [_model_entry(service)]})


async def _model(request: Request) -> Response:
    service: Service = request.app.state.service
    if (name := request.path_params["model"]) != service.name:
        raise model_not_found(name, service.name)
    return JSONResponse(_model_entry(service))


def _model_entry(service: Service) -> dict[str, Any]:
    return {"id": service.name, "object": "model", "created": service.created, "owned_by": "neuron-port"}


async def _ready(request: Request) -> Response:
    """200 when requests are taken; 503 while loading, draining or failed."""
    service: Service = request.app.state.service
    state, problem = service.worker.state, service.worker.problem
    body = {"status": state, "model": service.name, "backend": service.settings.backend}
    return JSONResponse(
        body | ({"problem": problem} if problem else {}), status_code=200 if state == "ready" else 503
    )


async def _live(request: Request) -> Response:
    """503 when the model has failed, which only a new process cures; 200 otherwise."""
    service: Service = request.app.state.service
    failed = service.worker.state == "failed"
    return JSONResponse({"status": "failed" if failed else "live"}, status_code=503 if failed else 200)


async def _metrics(request: Request) -> Response:
    service: Service = request.app.state.service
    return Response(service.metrics.exposition(), media_type=CONTENT_TYPE)


async def _api_error(request: Request, error: ApiError) -> Response:
    return error_response(error)


async def _http_error(request: Request, error: HTTPException) -> Response:
    """Unknown routes and wrong methods."""
    where = f"{request.method} {request.url.path}"
    if error.status_code == 405:
        message, code = f"Method not allowed: {where}", "method_not_allowed"
    elif error.status_code == 404 and request.url.path.removeprefix("/v1/").split("/")[0] in _ABSENT:
        message, code = f"This server does not have {where}", "unsupported_endpoint"
    else:
        message, code = f"Unknown request URL: {where}", "unknown_url"
    response = error_response(ApiError(error.status_code, message, kind=INVALID, code=code))
    response.headers.update(error.headers or {})
    return response


async def _client_gone(request: Request, error: ClientGoneError) -> Response:
    """Nobody reads this; the number is the one that logs of proxies know for it."""
    return Response(status_code=499)


async def _unexpected(request: Request, error: Exception) -> Response:
    log.error("An endpoint failed: %s %s", request.method, request.url.path, exc_info=error)
    return error_response(ApiError(500, "The server failed to answer.", kind=SERVER, code="internal_error"))
