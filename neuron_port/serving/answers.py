"""Answers in OpenAI's shapes: whole completions and chats, and the chunks of streamed ones."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from neuron_port.serving.generation import Generation, Piece
from neuron_port.serving.sampling import Chosen
from neuron_port.serving.text import Text

Form = Literal["completion", "chat"]
_PREFIXES = {"completion": "cmpl-", "chat": "chatcmpl-"}
_OBJECTS = {"completion": "text_completion", "chat": "chat.completion"}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer in the making: its identity, its form, and how tokens are spelt in it.

    `echoes` has for every choice the text that is put before it.
    """

    form: Form
    model: str
    text: Text
    logprobs: bool
    echoes: Sequence[str] = ()
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", self.id or _PREFIXES[self.form] + uuid.uuid4().hex)

    def whole(self, choices: Sequence[Sequence[Piece]], generations: Sequence[Generation]) -> dict[str, Any]:
        """The answer to a request that is not streamed; `choices` are the pieces of each choice."""
        entries = []
        for index, pieces in enumerate(choices):
            text = self._echo(index) + "".join(piece.text for piece in pieces)
            tokens = [token for piece in pieces for token in piece.tokens]
            body: dict[str, Any] = (
                {"text": text}
                if self.form == "completion"
                else {"message": {"role": "assistant", "content": text, "refusal": None}}
            )
            entries.append(
                {
                    "index": index,
                    **body,
                    "logprobs": self._logprobs(tokens, 0),
                    "finish_reason": pieces[-1].finish_reason,
                }
            )
        return {**self._head(_OBJECTS[self.form]), "choices": entries, "usage": usage(generations)}

    def chunk(self, piece: Piece, *, first: bool, offset: int, with_usage: bool) -> dict[str, Any]:
        """One piece of a streamed answer; `offset` counts the choice's characters before it."""
        text = (self._echo(piece.choice) if first else "") + piece.text
        if self.form == "completion":
            body: dict[str, Any] = {"text": text}
        else:
            delta = ({"role": "assistant"} if first else {}) | ({"content": text} if text or first else {})
            body = {"delta": delta}
        entry = {
            "index": piece.choice, **body, "logprobs": self._logprobs(piece.tokens, offset),
            "finish_reason": piece.finish_reason,
        }  # fmt: skip
        return {**self._chunk_head(), "choices": [entry]} | ({"usage": None} if with_usage else {})

    def last_chunk(self, generations: Sequence[Generation]) -> dict[str, Any]:
        """The chunk without choices that tells the usage, for clients that asked for it."""
        return {**self._chunk_head(), "choices": [], "usage": usage(generations)}

    def _chunk_head(self) -> dict[str, Any]:
        return self._head("chat.completion.chunk" if self.form == "chat" else "text_completion")

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _echo(self, choice: int) -> str:
        return self.echoes[choice] if self.echoes else ""

    def _logprobs(self, tokens: Sequence[Chosen], offset: int) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        if self.form == "chat":
            return {"content": [self._token_entry(token) for token in tokens], "refusal": None}
        texts = [self.text.token_text(token.token) for token in tokens]
        offsets = [offset + sum(map(len, texts[:index])) for index in range(len(texts))]
        best = [
            {self.text.token_text(other): logprob for other, logprob in token.alternatives}
            for token in tokens
        ]
        return {
            "tokens": texts, "token_logprobs": [token.logprob for token in tokens], "top_logprobs": best,
            "text_offset": offsets,
        }  # fmt: skip

    def _token_entry(self, token: Chosen) -> dict[str, Any]:
        alternatives = [self._spelt(other, logprob) for other, logprob in token.alternatives]
        return {**self._spelt(token.token, token.logprob), "top_logprobs": alternatives}

    def _spelt(self, token: int, logprob: float | None) -> dict[str, Any]:
        text = self.text.token_text(token)
        whole = (
            "\N{REPLACEMENT CHARACTER}" not in text
        )  # otherwise a part of a character: its bytes are not known
        return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if whole else None}


def usage(generations: Sequence[Generation]) -> dict[str, int]:
    """Tokens in and out; a prompt counts once, however many choices it has."""
    prompts = {id(generation.prompt): generation.prompt_length for generation in generations}
    prompt_tokens, produced = sum(prompts.values()), sum(generation.produced for generation in generations)
    return {
        "prompt_tokens": prompt_tokens, "completion_tokens": produced,
        "total_tokens": prompt_tokens + produced,
    }  # fmt: skip
