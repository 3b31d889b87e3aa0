"""Runs a service over HTTP: listens while the model loads, drains on SIGTERM, cuts off clients that send nothing.

SIGTERM, SIGINT   new requests get 503, running ones finish within `drain_seconds`; then exit code 0
a second signal   ends at once
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn

from neuron_port.errors import NeuronPortError, UsageError
from neuron_port.serving.app import make_app
from neuron_port.serving.connection import protocol
from neuron_port.serving.service import Service
from neuron_port.serving.settings import Settings

log = logging.getLogger("neuron_port.serving")
_POLL_SECONDS = 0.05
_KEEP_ALIVE_SECONDS = 30
_LAST_WORDS_SECONDS = 5  # what connections get to take the end of their answers
_HEADER_BYTES = 64 * 1024


def serve(service: Service, *, announce: Callable[[str], None]) -> None:
    """Serve until a signal comes. `announce` is told one line when listening and one at each change of state.

    Raises: UsageError when the address is taken; NeuronPortError when the model cannot be loaded.
    """

    async def until_signalled() -> None:
        stop, loop = Stop(), asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.ask)
        await run(service, stop, announce=announce)

    asyncio.run(until_signalled())


class Stop:
    """Counts how often the server was asked to end: once to drain, twice to end at once."""

    def __init__(self) -> None:
        self.count = 0

    def ask(self) -> None:
        self.count += 1


async def run(service: Service, stop: Stop, *, announce: Callable[[str], None]) -> None:
    """Serve until `stop` is asked. Raises as `serve` does."""
    settings = service.settings
    listener = _listen(settings)
    server = _Server(
        uvicorn.Config(
            make_app(service), http=protocol(settings), ws="none", lifespan="off", log_config=None,
            access_log=False, timeout_keep_alive=_KEEP_ALIVE_SECONDS, server_header=False,
            timeout_graceful_shutdown=_LAST_WORDS_SECONDS, h11_max_incomplete_event_size=_HEADER_BYTES,
        )
    )  # fmt: skip
    host, port = listener.getsockname()[:2]
    announce(
        f"Listening on http://{f'[{host}]' if ':' in host else host}:{port}/v1 ({settings.backend}), loading"
    )
    service.worker.start()
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await _watch(service, stop, running, announce)
    finally:
        await asyncio.to_thread(service.worker.stop)
        server.should_exit = True
        await running
    failure = service.worker.failure
    if isinstance(failure, NeuronPortError) and not stop.count:
        raise failure
    if failure is not None and not stop.count:
        raise NeuronPortError(f"The model failed: {service.worker.problem}") from failure


async def _watch(
    service: Service, stop: Stop, running: asyncio.Task[None], announce: Callable[[str], None]
) -> None:
    """Until the time to end: a signal, drained; or a model that cannot be loaded."""
    worker, told = service.worker, "loading"
    while not stop.count and not running.done():
        await asyncio.sleep(_POLL_SECONDS)
        if worker.state != told:
            if told == "loading" and worker.state == "failed":
                return
            told = worker.state
            announce(f"Model `{service.name}` is {told}" + (f": {worker.problem}" if worker.problem else ""))
    worker.drain()
    announce(f"Draining: at most {service.settings.drain_seconds:g} seconds")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(service.settings.drain_seconds):
            while not worker.idle and not stop.count > 1:
                await asyncio.sleep(_POLL_SECONDS)


class _Server(uvicorn.Server):
    """uvicorn without handlers of its own for signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listen(settings: Settings) -> socket.socket:
    """A socket that listens where the settings say."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise UsageError(
            f"Cannot listen on {settings.host}:{settings.port}: {error.strerror or error}",
            hint="Give another --host or --port; port 0 takes a free one.",
        ) from error
    return listener
