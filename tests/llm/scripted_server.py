"""A language model endpoint of our own on loopback: real HTTP, scripted answers, and every way to fail.

It speaks OpenAI's chat completions (plain and streamed, `/v1`), their list of models, and Bedrock's `converse` and
`converse-stream`, so that the real client packages are exercised. It keeps the books that a provider would keep: how
often each `Idempotency-Key` was asked, how often its reply was fully delivered, and what was charged for.

    with ScriptedServer([rate_limited(retry_after="1"), "a first reply"]) as server:
        model = choose_model(f"{server.url}#scripted", api_key="k")
"""

from __future__ import annotations

import binascii
import json
import socket
import struct
import threading
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

PIECES = 4  # a streamed reply comes in this many pieces, where it has as many characters


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the server does with one request. The default is a whole, well-formed reply."""

    text: str = "ok"
    finish: str = "stop"  # OpenAI's word: "stop", "length", "content_filter"
    input_tokens: int | None = None  # None: a quarter of the characters
    output_tokens: int | None = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str | None = None  # sent as it is instead of a reply; with a status other than 200, the error
    content_type: str = "application/json"
    delay_seconds: float = 0.0  # before the first byte
    piece_delay_seconds: float = 0.0  # before each streamed piece
    cut_after: int | None = None  # drop the connection after this many streamed pieces
    end_after: int | None = (
        None  # end the stream politely after this many pieces, with no finish and no [DONE]
    )
    stall_after: int | None = None  # say nothing more after this many streamed pieces, and keep the line open
    stream_error: str | None = None  # after the pieces, an error event in the stream
    close: bool = False  # drop the connection without a byte


Script = Iterable["Answer | str"] | Callable[["Call"], "Answer | str"]


@dataclass
class Call:
    """One request as it came in."""

    path: str
    headers: Mapping[str, str]  # names in lower case
    body: dict[str, Any]
    delivered: bool = False  # every byte of a whole reply (status 200) was handed to the system

    @property
    def key(self) -> str:
        return self.headers.get("idempotency-key", "")

    @property
    def last_message(self) -> str:
        """The text of the last message, in either protocol."""
        content = self.body["messages"][-1]["content"]
        return content if isinstance(content, str) else "".join(block["text"] for block in content)


def failure(
    status: int, message: str, *, code: str | None = None, param: str | None = None, **more: Any
) -> Answer:
    """An error in OpenAI's form (`message` is also where Bedrock's clients look)."""
    error = {"message": message, "type": "invalid_request_error", "code": code, "param": param}
    return Answer(status=status, body=json.dumps({"error": error, "message": message}), **more)


def wrong_key(key: str = "sk-wrong") -> Answer:
    """Echoes the whole key, as some servers do."""
    return failure(401, f"Incorrect API key provided: {key}.", code="invalid_api_key")


def no_such_model(name: str) -> Answer:
    return failure(
        404, f"The model `{name}` does not exist or you do not have access to it.", code="model_not_found"
    )


def rate_limited(*, retry_after: str | None = None, retry_after_ms: str | None = None) -> Answer:
    headers = {"Retry-After": retry_after, "Retry-After-Ms": retry_after_ms}
    return failure(
        429,
        "Rate limit reached for requests.",
        code="rate_limit_exceeded",
        headers={name: value for name, value in headers.items() if value is not None},
    )


def out_of_quota() -> Answer:
    return failure(429, "You exceeded your current quota.", code="insufficient_quota")


def broken(status: int = 500) -> Answer:
    return failure(status, "The server had an error.")


def html_page(status: int = 200) -> Answer:
    return Answer(status=status, body="<!DOCTYPE html><title>Sign in</title>", content_type="text/html")


def without_choices() -> Answer:
    return Answer(body=json.dumps({"id": "x", "object": "chat.completion", "model": "scripted"}))


class ScriptedServer:
    """Answers by order, or by a function of the request; closes cleanly at the end of the `with`.

    Args:
        script: answers (or plain texts) in order, or `script(call) -> answer`. When an ordered script is used up,
            requests fail with status 400 and say so.
        models: what `/v1/models` lists.
        api_key: refuse any other; None: accept everything.
        rejects: parameters that this endpoint does not take: "temperature", "max_tokens", "max_completion_tokens",
            "stream_options", "stream", "system" (the role). Such requests use up no answer.
        honours_keys: a reply once delivered is given again for the same Idempotency-Key, and not charged again.

    Attributes:
        calls: every chat request, in the order of arrival.
        asked, delivered, charged: how often, by Idempotency-Key.
    """

    def __init__(
        self,
        script: Script = (),
        *,
        models: Iterable[str] = ("scripted",),
        api_key: str | None = None,
        rejects: Iterable[str] = (),
        honours_keys: bool = True,
    ) -> None:
        self._decide = script if callable(script) else _in_order(script)
        self.models = tuple(models)
        self.api_key = api_key
        self.rejects = frozenset(rejects)
        self.honours_keys = honours_keys
        self.calls: list[Call] = []
        self.asked: Counter[str] = Counter()
        self.delivered: Counter[str] = Counter()
        self.charged: Counter[str] = Counter()
        self._replies: dict[str, Answer] = {}
        self._connections: set[socket.socket] = set()
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self._http = _Server(self)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def url(self) -> str:
        """What an OpenAI client takes as its base URL; Bedrock's takes `address`."""
        return f"{self.address}/v1"

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._http.shutdown()
        self._thread.join()
        with self.lock:
            for connection in self._connections:
                _hang_up(connection)
        self._http.server_close()  # waits for the threads of all requests

    def answer_for(self, call: Call) -> Answer:
        """Enter the call into the books and say what to do with it."""
        with self.lock:
            self.calls.append(call)
            self.asked[call.key] += 1
            if self.api_key is not None and call.headers.get("authorization") != f"Bearer {self.api_key}":
                return wrong_key(call.headers.get("authorization", "").removeprefix("Bearer "))
            for name in sorted(self.rejects & set(_parameters(call.body))):
                return failure(
                    400, f"Unsupported parameter: '{name}'.", code="unsupported_parameter", param=name
                )
            if call.key and call.key in self._replies:
                return self._replies[call.key]
            decided = self._decide(call)
            answer = Answer(text=decided) if isinstance(decided, str) else decided
            if answer.status == 200 and not answer.close:
                self.charged[call.key] += 1
            return answer

    def was_delivered(self, call: Call, answer: Answer) -> None:
        with self.lock:
            call.delivered = True
            self.delivered[call.key] += 1
            if self.honours_keys and call.key:
                self._replies[call.key] = answer

    def connected(self, connection: socket.socket) -> None:
        with self.lock:
            self._connections.add(connection)

    def disconnected(self, connection: socket.socket) -> None:
        with self.lock:
            self._connections.discard(connection)


def _in_order(script: Iterable[Answer | str]) -> Callable[[Call], Answer | str]:
    remaining = iter(script)
    used_up = failure(400, "The script of this server is used up.")
    return lambda call: next(remaining, used_up)


def _parameters(body: Mapping[str, Any]) -> list[str]:
    """The names of a request's parameters, with "system" for a message of that role; `stream: false` is none."""
    names = [name for name, value in body.items() if value is not False]
    return names + ["system"] * any(message.get("role") == "system" for message in body.get("messages", []))


def _hang_up(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # the other side was first


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # server_close() waits for them, so that no socket outlives a test

    def __init__(self, scripted: ScriptedServer) -> None:
        self.scripted = scripted
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is part of what is tried here; `delivered` records that it did."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.scripted.connected(self.connection)

    def finish(self) -> None:
        self.server.scripted.disconnected(self.connection)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        """Tests are quiet."""

    def do_GET(self) -> None:
        scripted = self.server.scripted
        given = self.headers.get("Authorization", "")
        if self.path != "/v1/models":
            self._send(failure(404, f"Nothing here: {self.path}"))
        elif scripted.api_key is not None and given != f"Bearer {scripted.api_key}":
            self._send(wrong_key(given.removeprefix("Bearer ")))
        else:
            listed = [{"id": name, "object": "model"} for name in scripted.models]
            self._send(Answer(body=json.dumps({"object": "list", "data": listed})))

    def do_POST(self) -> None:
        scripted = self.server.scripted
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path = urllib.parse.unquote(self.path)
        call = Call(path=path, headers={k.lower(): v for k, v in self.headers.items()}, body=body)
        if path != "/v1/chat/completions" and not path.endswith(("/converse", "/converse-stream")):
            self._send(failure(404, f"Nothing here: {path}"))
            return
        answer = scripted.answer_for(call)
        self._wait(answer.delay_seconds)
        if answer.close:
            self.close_connection = True
            _hang_up(self.connection)
        elif answer.body is not None:
            self._send(answer)
        elif path.endswith("/converse-stream"):
            self._stream(call, answer, _converse_events(answer, call), "application/vnd.amazon.eventstream")
        elif path.endswith("/converse"):
            self._send_whole(call, answer, _converse_body(answer, call))
        elif body.get("stream"):
            self._stream(call, answer, _chat_events(answer, call), "text/event-stream")
        else:
            self._send_whole(call, answer, _chat_body(answer, call))

    def _wait(self, seconds: float) -> None:
        if seconds and self.server.scripted.closing.wait(seconds):
            raise ConnectionAbortedError("the server is closing")

    def _send(self, answer: Answer) -> None:
        content = (answer.body or "").encode()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _send_whole(self, call: Call, answer: Answer, body: Mapping[str, Any]) -> None:
        if answer.cut_after is not None:  # not streamed: half of the body that the header promises
            content = json.dumps(body)
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2].encode())
            self.close_connection = True
            return
        if answer.stall_after is not None:
            self.server.scripted.closing.wait()
            return
        self._send(Answer(body=json.dumps(body), headers=answer.headers))
        self.server.scripted.was_delivered(call, answer)

    def _stream(self, call: Call, answer: Answer, events: tuple[list[bytes], list[bytes]], kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        pieces, ending = events
        for number, piece in enumerate(pieces):
            if number == answer.cut_after:
                self.close_connection = True
                return
            if number == answer.end_after:
                self.wfile.write(b"0\r\n\r\n")
                return
            if number == answer.stall_after:
                self.server.scripted.closing.wait()
                return
            self._wait(answer.piece_delay_seconds)
            self._chunk(piece)
        for event in ending:
            self._chunk(event)
        self.wfile.write(b"0\r\n\r\n")
        if answer.stream_error is None:
            self.server.scripted.was_delivered(call, answer)

    def _chunk(self, content: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))


def _usage(answer: Answer, call: Call) -> tuple[int, int]:
    said = len(json.dumps(call.body["messages"])) // 4
    return (
        said if answer.input_tokens is None else answer.input_tokens,
        len(answer.text) // 4 + 1 if answer.output_tokens is None else answer.output_tokens,
    )


def _pieces(text: str) -> list[str]:
    length = max(1, -(-len(text) // PIECES))
    return [text[start : start + length] for start in range(0, len(text), length)]


def _chat_usage(answer: Answer, call: Call) -> dict[str, int]:
    given, made = _usage(answer, call)
    return {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}


def _chat_body(answer: Answer, call: Call) -> dict[str, Any]:
    choice = {
        "index": 0,
        "finish_reason": answer.finish,
        "message": {"role": "assistant", "content": answer.text},
    }
    head = {"id": "x", "object": "chat.completion", "created": 0, "model": call.body.get("model")}
    return {**head, "choices": [choice], "usage": _chat_usage(answer, call)}


def _chat_events(answer: Answer, call: Call) -> tuple[list[bytes], list[bytes]]:
    """The pieces of a reply as server-sent events, and what ends the stream."""
    head = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": call.body.get("model")}

    def event(delta: Mapping[str, Any], finish: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return _sse({**head, "choices": [choice]})

    pieces = [event({"content": piece}, None) for piece in _pieces(answer.text)]
    if answer.stream_error is not None:
        return pieces, [_sse({"error": {"message": answer.stream_error, "type": "server_error"}})]
    ending = [event({}, answer.finish)]
    if (call.body.get("stream_options") or {}).get("include_usage"):
        ending.append(_sse({**head, "choices": [], "usage": _chat_usage(answer, call)}))
    return pieces, [*ending, b"data: [DONE]\n\n"]


def _sse(record: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(record).encode() + b"\n\n"


STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "content_filter": "guardrail_intervened"}


def _converse_usage(answer: Answer, call: Call) -> dict[str, int]:
    given, made = _usage(answer, call)
    return {"inputTokens": given, "outputTokens": made, "totalTokens": given + made}


def _converse_body(answer: Answer, call: Call) -> dict[str, Any]:
    return {
        "output": {"message": {"role": "assistant", "content": [{"text": answer.text}]}},
        "stopReason": STOP_REASONS[answer.finish],
        "usage": _converse_usage(answer, call),
        "metrics": {"latencyMs": 1},
    }


def _converse_events(answer: Answer, call: Call) -> tuple[list[bytes], list[bytes]]:
    pieces = [
        _aws_event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": piece}})
        for piece in _pieces(answer.text)
    ]
    if answer.stream_error is not None:
        return pieces, [
            _aws_event("internalServerException", {"message": answer.stream_error}, kind="exception")
        ]
    return pieces, [
        _aws_event("contentBlockStop", {"contentBlockIndex": 0}),
        _aws_event("messageStop", {"stopReason": STOP_REASONS[answer.finish]}),
        _aws_event("metadata", {"usage": _converse_usage(answer, call), "metrics": {"latencyMs": 1}}),
    ]


def _aws_event(name: str, record: Mapping[str, Any], *, kind: str = "event") -> bytes:
    """One message of AWS's event stream: lengths, their CRC, headers, payload, CRC of it all."""
    named = {
        f":{kind}-type": name,
        ":content-type": "application/json",
        ":message-type": kind,
    }
    headers = b"".join(
        struct.pack("!B", len(key)) + key.encode() + struct.pack("!BH", 7, len(value)) + value.encode()
        for key, value in named.items()
    )  # 7: the header's value is a string
    payload = json.dumps(record).encode()
    lengths = struct.pack("!II", len(headers) + len(payload) + 16, len(headers))
    message = lengths + struct.pack("!I", binascii.crc32(lengths)) + headers + payload
    return message + struct.pack("!I", binascii.crc32(message))
