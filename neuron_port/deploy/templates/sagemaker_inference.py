"""Serves the neuron-port bundle beside this file on SageMaker. Standard library only; neuron-port must be installed.

Two contracts, one server behind them (`neuron-port serve`, on loopback):

    python code/inference.py            a container of one's own: GET /ping and POST /invocations on port 8080
    model_fn, predict_fn, ...           a container with SageMaker's inference toolkit

/invocations takes OpenAI's requests: "messages" is a chat, "prompt" a completion, "input" an embedding. With
"stream": true the answer comes as server-sent events. SIGTERM drains for 25 of the 30 seconds that SageMaker gives.

NEURON_PORT_BACKEND   neuron (default), or xla-cpu to try it without a chip
"""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROUTES = {"messages": "/v1/chat/completions", "prompt": "/v1/completions", "input": "/v1/embeddings"}
LARGEST_BODY_BYTES = 6 * 2**20  # SageMaker's limit for a real-time request
START_SECONDS = 900
DRAIN_SECONDS = 25
ANSWER_SECONDS = 60  # SageMaker gives a container this long


class Server:
    """`neuron-port serve` as a child process."""

    def __init__(self, model_folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        command = os.environ.get("NEURON_PORT_COMMAND", "neuron-port").split()
        backend = os.environ.get("NEURON_PORT_BACKEND", "neuron")
        self.process = subprocess.Popen(
            [*command, "serve", str(model_folder / "bundle"), "--backend", backend, "--port", str(self.port),
             "--drain-seconds", str(DRAIN_SECONDS)]
        )  # fmt: skip

    @contextlib.contextmanager
    def request(self, method: str, path: str, body: bytes = b"") -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS)
        with contextlib.closing(connection):
            connection.request(method, path, body or None, {"Content-Type": "application/json"})
            with connection.getresponse() as answer:
                yield answer

    def ready(self) -> bool:
        try:
            with self.request("GET", "/health/ready") as answer:
                answer.read()
                return answer.status == 200
        except (OSError, http.client.HTTPException):
            return False

    def wait(self) -> None:
        """Until it is ready; an end of the process or of patience is an error."""
        last = time.monotonic() + START_SECONDS
        while not self.ready():
            if self.process.poll() is not None:
                raise RuntimeError(
                    f"neuron-port serve ended with {self.process.returncode}; its log says why"
                )
            if time.monotonic() > last:
                raise RuntimeError(f"neuron-port serve is not ready after {START_SECONDS} seconds")
            time.sleep(0.2)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait()


def route(body: bytes) -> str:
    """The path that a request is for; ValueError says what is wrong with it."""
    try:
        asked = json.loads(body)
    except ValueError as error:
        raise ValueError(f"the body is no JSON: {error}") from error
    known = [path for name, path in ROUTES.items() if isinstance(asked, dict) and name in asked]
    if len(known) != 1:
        raise ValueError(f"the body must have exactly one of {', '.join(ROUTES)}")
    return known[0]


def handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def do_GET(self) -> None:
            if self.path != "/ping":
                return self.refuse(404, "there is /ping and /invocations")
            return self.answer(200 if server.ready() else 503, b"{}")

        def do_POST(self) -> None:
            size = self.headers.get("Content-Length", "")
            if self.path != "/invocations":
                return self.refuse(404, "there is /ping and /invocations")
            if not size.isdigit() or int(size) > LARGEST_BODY_BYTES:
                return self.refuse(
                    413 if size.isdigit() else 411, f"a body of at most {LARGEST_BODY_BYTES} bytes is taken"
                )
            body = self.rfile.read(int(size))
            try:
                path = route(body)
            except ValueError as error:
                return self.refuse(400, str(error))
            try:
                with server.request("POST", path, body) as answer:
                    return self.pass_on(answer)
            except (OSError, http.client.HTTPException) as error:
                return self.refuse(503, f"the server does not answer: {error}")

        def pass_on(self, answer: http.client.HTTPResponse) -> None:
            """The server's answer as it is; events as they come."""
            kind = answer.headers.get("Content-Type", "application/json")
            if not kind.startswith("text/event-stream"):
                return self.answer(answer.status, answer.read(), kind)
            self.send_response(answer.status)
            self.send_header("Content-Type", kind)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                while piece := answer.read1(65536):
                    self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                    self.wfile.flush()
                self.wfile.write(b"0\r\n\r\n")
            except (OSError, http.client.HTTPException):
                self.close_connection = (
                    True  # a stream that broke off ends without its last chunk: clients see it
                )
            return None

        def answer(self, status: int, body: bytes, kind: str = "application/json") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def refuse(self, status: int, message: str) -> None:
            self.close_connection = True
            error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
            self.answer(status, json.dumps({"error": error}).encode())

        def log_message(self, *_: Any) -> None:
            """Nothing: the server behind it has the log."""

    return Handler


# ------------------------------------------------------------------ SageMaker's inference toolkit


def model_fn(model_dir: str, context: Any = None) -> Server:
    server = Server(Path(model_dir))
    server.wait()
    return server


def input_fn(body: Any, content_type: str, context: Any = None) -> bytes:
    if not content_type.startswith("application/json"):
        raise ValueError(f"Content type `{content_type}` is not application/json")
    return body.encode() if isinstance(body, str) else bytes(body)


def predict_fn(body: bytes, model: Server, context: Any = None) -> bytes:
    with model.request("POST", route(body), body) as answer:
        said = answer.read()
    if answer.status != 200:
        raise ValueError(said.decode(errors="replace"))
    return said


def output_fn(prediction: bytes, accept: str, context: Any = None) -> bytes:
    return prediction


def main() -> int:
    """A container of one's own: /ping says 503 until the model is loaded, and SIGTERM drains."""
    server = Server(Path(__file__).resolve().parents[1])
    port = int(os.environ.get("SAGEMAKER_BIND_TO_PORT", "8080"))
    front = ThreadingHTTPServer(("0.0.0.0", port), handler(server))

    def end(*_: Any) -> None:
        server.process.send_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=front.serve_forever, daemon=True).start()
    code = server.process.wait()
    front.shutdown()
    return code


if __name__ == "__main__":
    sys.exit(main())
