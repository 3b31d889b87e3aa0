"""A tiny model with a byte tokenizer, backends that are exact and fast, and a server in a thread."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

pytest.importorskip("starlette", reason="serving needs neuron-port[serve]")

from neuron_port.serving.bundle import EMBEDDING, Bundle
from neuron_port.serving.server import Stop, run
from neuron_port.serving.service import Service
from neuron_port.serving.settings import Settings
from neuron_port.types import GraphInput, GraphOutput, GraphSpec, TensorSpec
from tests.serving.tiny import END, VOCABULARY, write_tokenizer


@dataclass
class HashingGenerator:
    """A `Generator` without a model: the next token is a hash of the row's whole sequence.

    So one token in the wrong row, at the wrong place or out of order changes all that follows. `gate` stops it
    before each decode step; `broken` are the steps, counted from 0, that raise.
    """

    rows: int = 4
    context: int = 64
    bucket: int = 16
    end_after: int | None = None  # sequences of that many tokens are followed by END
    broken: frozenset[int] = frozenset()
    gate: Callable[[], None] = lambda: None
    steps: int = 0
    held: dict[int, list[int]] = field(default_factory=dict)

    def prefill_length(self, count: int, busy_rows: int) -> int:
        return min(count, self.bucket)

    def prefill(self, row: int, ids: Sequence[int]) -> np.ndarray:
        self.held[row] = list(ids)
        return self._logits(self.held[row])

    def begin_empty(self, row: int) -> None:
        self.held[row] = []

    def decode(self, tokens: Sequence[int], positions: Sequence[int]) -> np.ndarray:
        self.gate()
        self.steps += 1
        if self.steps - 1 in self.broken:
            raise RuntimeError("the device has gone")
        for row, (token, position) in enumerate(zip(tokens, positions, strict=True)):
            held = self.held.setdefault(row, [])
            assert position <= len(held), f"row {row} writes {position}, holds {len(held)}"
            self.held[row] = [*held[:position], token]
        return np.stack([self._logits(self.held[row]) for row in range(self.rows)])

    def reset(self) -> None:
        self.held.clear()

    def _logits(self, tokens: Sequence[int]) -> np.ndarray:
        logits_V = np.zeros(VOCABULARY, np.float32)
        logits_V[following(tokens, self.end_after)] = 50.0
        return logits_V


def following(tokens: Sequence[int], end_after: int | None = None) -> int:
    """The token that `HashingGenerator` puts after `tokens`: a letter, so that texts are plain."""
    if end_after is not None and len(tokens) >= end_after:
        return END
    value = 0
    for token in tokens:
        value = (value * 1_000_003 + token + 1) % 2**31
    return ord("a") + value % 26


def expected_text(prompt: str, count: int, end_after: int | None = None) -> str:
    """What `HashingGenerator` continues a prompt of plain letters with."""
    tokens = list(prompt.encode())
    for _ in range(count):
        token = following(tokens, end_after)
        if token == END:
            break
        tokens.append(token)
    return bytes(tokens[len(prompt.encode()) :]).decode()


@dataclass
class HashingEmbedder:
    """An `Embedder` without a model: the vector says which text it is."""

    rows: int = 4
    context: int = 32
    batches: list[int] = field(default_factory=list)

    def embed(self, batch: Sequence[Sequence[int]]) -> np.ndarray:
        self.batches.append(len(batch))
        return np.array([[len(ids), sum(ids), ids[0]] for ids in batch], np.float32)


@dataclass
class Running:
    """A server that runs in a thread."""

    url: str
    service: Service
    stop: Callable[[], None]
    lines: list[str]
    clients: list[openai.OpenAI] = field(default_factory=list)

    def client(self, **options: Any) -> openai.OpenAI:
        """A client of this server, closed when it ends."""
        made = openai.OpenAI(
            base_url=self.url, **{"api_key": "none", "max_retries": 0, "timeout": 30} | options
        )
        self.clients.append(made)
        return made


@contextmanager
def running(service: Service) -> Iterator[Running]:
    """Serve in a thread, on a free port, until the block ends."""
    lines: list[str] = []
    listening, ready, failure = threading.Event(), threading.Event(), []
    stop = Stop()

    def announce(line: str) -> None:
        lines.append(line)
        listening.set()
        if "is ready" in line:
            ready.set()

    def main() -> None:
        try:
            asyncio.run(run(service, stop, announce=announce))
        except Exception as error:
            failure.append(error)
            listening.set()
            ready.set()

    thread = threading.Thread(target=main)
    thread.start()
    try:
        assert listening.wait(30)
        assert ready.wait(60), lines
        assert not failure, failure
        found = re.search(r"http://\S+/v1", lines[0])
        assert found is not None
        server = Running(url=found.group(), service=service, stop=stop.ask, lines=lines)
        yield server
        for client in server.clients:
            client.close()
    finally:
        stop.ask()
        thread.join(60)
        assert not thread.is_alive()


def fake_bundle(folder: Path, phase: str) -> Bundle:
    """A bundle of which there are only the tokenizer and one graph's name."""
    output = EMBEDDING if phase == "forward" else "logits"
    ids = TensorSpec(shape=(4, 8), dtype="int32")
    graph = GraphSpec(
        id=phase, phase=phase, batch=4, sequence_length=8, cache_length=64,
        inputs=(GraphInput(name="input_ids", role="input", spec=ids),),
        outputs=(GraphOutput(name=output, role="output", spec=ids),),
    )  # fmt: skip
    return Bundle(folder=folder, manifest={"model": {"id": "someone/tiny"}}, graphs=(graph,))


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte tokenizer with a chat template."""
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def serve(tokenizer_folder: Path) -> Iterator[Callable[..., Running]]:
    """`serve(generator or embedder, **settings) -> Running`: a server of a fake backend."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(backend: Any = None, folder: Path = tokenizer_folder, **settings: Any) -> Running:
            backend = backend or HashingGenerator()
            phase = "forward" if isinstance(backend, HashingEmbedder) else "decode"
            service = Service(
                fake_bundle(folder, phase),
                Settings(**{"port": 0, "drain_seconds": 5.0} | settings),
                make_generator=lambda bundle, name: backend,
                make_embedder=lambda bundle, name: backend,
            )
            return stack.enter_context(running(service))

        yield start
