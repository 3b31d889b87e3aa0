"""Recorded exchanges: a file of replies that a `ReplayModel` serves, and a `Recorder` that writes one.

The file is JSON lines. The first says what the exchanges are, and reports repeat it: `recorded` from a model, or
`scripted` by a person. Each further line is one exchange:

    {"exchanges": "scripted", "model": "a name", "version": 1}
    {"purpose": "draft", "reply": "text"}
    {"purpose": "repair", "contains": ["256 partitions"], "reply": {"text": "...", "usage": {...}, ...}}

An exchange with a `key` answers exactly that request, as often as it comes. One without answers the next request of
its purpose, once, provided that the last message has all texts of `contains` and that its `sample` is the request's.
"""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pydantic

from neuron_port.llm.errors import NoRecordingError
from neuron_port.llm.failures import estimated_usage
from neuron_port.llm.messages import LanguageModel, MayRetry, Message, OnText, Price, Reply, Request, Usage
from neuron_port.types import from_json, to_json

Exchanges = Literal["recorded", "scripted"]


@dataclass(frozen=True, kw_only=True)
class Header:
    """First line of a replay file. `model` is the name under which its keys were made."""

    exchanges: Exchanges
    model: str
    version: Literal[1] = 1
    price: Price | None = None


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One further line. A reply that is a text alone stands for a whole reply that ended by itself."""

    purpose: str
    reply: Reply | str
    key: str | None = None
    sample: int | None = None
    contains: tuple[str, ...] = ()
    messages: tuple[Message, ...] = ()  # what was asked, for readers

    def answers(self, request: Request) -> bool:
        """Whether this exchange, one without a key, fits the request."""
        last = request.messages[-1].content
        return (
            self.purpose == request.purpose
            and self.sample in (None, request.sample)
            and all(text in last for text in self.contains)
        )


class ReplayModel:
    """A `LanguageModel` that repeats a file, offline and for nothing. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._header, exchanges = read_exchanges(path)
        self._by_key = {exchange.key: exchange for exchange in exchanges if exchange.key is not None}
        self._in_order = [exchange for exchange in exchanges if exchange.key is None]
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return f"replay:{self._path}"

    @property
    def price(self) -> Price | None:
        """Of the model that was recorded: what the exchanges did cost, or would."""
        return self._header.price

    @property
    def exchanges(self) -> Exchanges:
        """Whether a model said these things, or a person wrote them."""
        return self._header.exchanges

    @property
    def recorded_model(self) -> str:
        return self._header.model

    def complete(
        self, request: Request, *, on_text: OnText | None = None, may_retry: MayRetry | None = None
    ) -> Reply:
        """The exchange with the request's key, else the next of its purpose; NoRecordingError when there is none."""
        exchange = self._find(request)
        reply = exchange.reply
        if isinstance(reply, str):
            usage = estimated_usage(request.messages, reply)
            reply = Reply(text=reply, usage=usage, finish="stop", model=self._header.model)
        if on_text is not None:
            on_text(reply.text)
        return reply

    def probe(self) -> Reply:
        """The file has been read; there is nothing to reach."""
        return Reply(
            text="", usage=Usage(input_tokens=0, output_tokens=0), finish="stop", model=self._header.model
        )

    def _find(self, request: Request) -> Exchange:
        key = request.key(self._header.model)
        with self._lock:
            if key in self._by_key:
                return self._by_key[key]
            for number, exchange in enumerate(self._in_order):
                if exchange.answers(request):
                    return self._in_order.pop(number)
        raise NoRecordingError(
            f"{self._path} has no answer left for a request of purpose `{request.purpose}` (sample {request.sample}, "
            f"key {key}).",
            hint="The request differs from those recorded, or there are more of them; record the run anew.",
        )


class Recorder:
    """Passes requests on to a model and appends each exchange to a file, which reaches the disk before the reply does."""

    def __init__(self, model: LanguageModel, path: Path) -> None:
        self._model = model
        self._path = path
        self._lock = threading.Lock()
        if not path.exists() or path.stat().st_size == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._append(to_json(Header(exchanges="recorded", model=model.name, price=model.price)))
        else:
            header, _ = read_exchanges(path)
            if header.model != model.name or header.exchanges != "recorded":
                raise NoRecordingError(
                    f"{path} holds exchanges {header.exchanges} for `{header.model}`, not recorded for `{model.name}`.",
                    hint="Record each model in a file of its own.",
                )
            _drop_torn_line(path)

    @property
    def name(self) -> str:
        return self._model.name

    @property
    def price(self) -> Price | None:
        return self._model.price

    def complete(
        self, request: Request, *, on_text: OnText | None = None, may_retry: MayRetry | None = None
    ) -> Reply:
        reply = self._model.complete(request, on_text=on_text, may_retry=may_retry)
        key = request.key(self._model.name)
        exchange = Exchange(purpose=request.purpose, key=key, reply=reply, messages=request.messages)
        self._append(to_json(exchange))
        return reply

    def probe(self) -> Reply:
        return self._model.probe()

    def _append(self, line: Mapping[str, Any]) -> None:
        with self._lock, self._path.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def read_exchanges(path: Path) -> tuple[Header, tuple[Exchange, ...]]:
    """The header and the exchanges of a replay file; NoRecordingError names the line that is wrong.

    A torn last line, without its newline, is what a crash while recording leaves: it is dropped.
    """
    try:
        content = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise NoRecordingError(
            f"{path} cannot be read as a replay file: {error}.", hint="Name a file that `Recorder` wrote."
        ) from error
    lines = content[: content.rfind("\n") + 1].splitlines()
    records: list[Any] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            records.append(_read_line(Exchange if records else Header, json.loads(line)))
        except (ValueError, pydantic.ValidationError) as error:
            raise NoRecordingError(
                f"Line {number} of {path} is no {'exchange' if records else 'header'}: {str(error).splitlines()[0]}.",
                hint='The first line says {"exchanges": "recorded" or "scripted", "model": NAME}; each other has a '
                "purpose and a reply.",
            ) from error
    if not records:
        raise NoRecordingError(f"{path} is empty.", hint="The first line is a header, see docs/llm.md.")
    return records[0], tuple(records[1:])


def _read_line(record: type[Any], value: Any) -> Any:
    """The record; ValueError for a field that it does not have: a misspelt `contains` would match too much."""
    names = {item.name for item in dataclasses.fields(record)}
    unknown = set(value) - names if isinstance(value, dict) else set()
    if unknown:
        raise ValueError(f"it has no field `{min(unknown)}`, only {', '.join(sorted(names))}")
    return from_json(record, value)


def _drop_torn_line(path: Path) -> None:
    """Cut off what a crash left half written, or the next exchange would continue that line."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
