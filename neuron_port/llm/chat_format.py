"""The records of OpenAI's chat completions, as many servers write them: what to read and where it may stand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from neuron_port.llm.messages import Finish, Message, OnText, Usage

FINISHES: dict[str, Finish] = {"length": "length", "content_filter": "refused"}  # the rest: the model ended


class Heard:
    """What has come in of one reply."""

    def __init__(self, on_text: OnText | None) -> None:
        self._on_text = on_text
        self._pieces: list[str] = []
        self._refused = False
        self.finish: Finish | None = None
        self.model: str | None = None
        self.usage: Usage | None = None

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def add(self, piece: str, *, refusal: bool = False) -> None:
        if piece:
            self._refused = self._refused or refusal
            self._pieces.append(piece)
            if self._on_text is not None:
                self._on_text(piece)

    def finished(self, reason: str) -> None:
        self.finish = "refused" if self._refused else FINISHES.get(reason, "stop")


def folded(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages with what the system role said put before the first of the user's."""
    system = "\n\n".join(message.content for message in messages if message.role == "system")
    others = [message for message in messages if message.role != "system"]
    for number, message in enumerate(others):
        if system and message.role == "user":
            others[number] = Message(role="user", content=f"{system}\n\n{message.content}")
            return tuple(others)
    return (*([Message(role="user", content=system)] if system else []), *others)


def text_of(content: Any) -> str:
    """Text of a message; some endpoints send a list of parts, of which only those of text are the reply."""
    if isinstance(content, list):
        parts = [part if isinstance(part, dict) else part.to_dict() for part in content]
        return "".join(str(part.get("text", "")) for part in parts if part.get("type") == "text")
    return content if isinstance(content, str) else ""


def usage_of(given: Mapping[str, Any] | None) -> Usage | None:
    if not given or given.get("prompt_tokens") is None:
        return None
    details = given.get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens") or given.get("prompt_cache_hit_tokens")  # the second is DeepSeek's
    return Usage(
        input_tokens=given["prompt_tokens"],
        output_tokens=given.get("completion_tokens") or 0,
        cached_input_tokens=cached or 0,
    )


def complaint_of(text: str) -> tuple[str, str | None, str | None]:
    """The sentence, code and parameter of an error response's body, in the forms that servers use."""
    try:
        return complaint_in(json.loads(text))
    except ValueError:
        return ("a web page" if text.lstrip().startswith("<") else text), None, None


def complaint_in(body: Any) -> tuple[str, str | None, str | None]:
    if isinstance(body, list) and body:  # Google's
        body = body[0]
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return str(error), None, None
    message = error.get("message") or error.get("detail") or error.get("error") or json.dumps(error)
    code = error.get("code") or error.get("type")
    return str(message), str(code) if code is not None else None, error.get("param")


def status_in(code: str | None) -> int:
    """The HTTP status that an error inside a reply stands for: some give it as the code, most are the server's."""
    return int(code) if code is not None and code.isdigit() and 400 <= int(code) < 600 else 500
