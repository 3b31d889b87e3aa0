"""What is said to a language model and what comes back; every provider speaks these records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from neuron_port.types import digest

Role = Literal["system", "user", "assistant"]
Finish = Literal[
    "stop", "length", "refused"
]  # the model ended; the token limit cut it; the provider's filter did
OnText = Callable[[str], None]  # hears pieces of the reply as they arrive


@dataclass(frozen=True, kw_only=True)
class Message:
    role: Role
    content: str


@dataclass(frozen=True, kw_only=True)
class Request:
    """One question. `sample` tells apart several draws of the same question; `purpose` is for logs and is not sent."""

    messages: tuple[Message, ...]
    max_output_tokens: int
    temperature: float | None = None
    sample: int = 0
    purpose: str = ""  # "probe", "plan", "draft", "repair", "optimize", "review"

    def key(self, model: str) -> str:
        """Digest of everything that decides the reply: what the cache of replies is addressed by."""
        return digest(model, self.messages, self.max_output_tokens, self.temperature, self.sample)


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens that one call was charged for; `estimated` when the endpoint did not say."""

    input_tokens: int
    output_tokens: int
    cached_input_tokens: int = 0  # part of input_tokens
    estimated: bool = False


# Asked before an attempt is repeated, with what the attempts so far were probably charged for: does the budget allow
# another?
MayRetry = Callable[[Usage], bool]


@dataclass(frozen=True, kw_only=True)
class Price:
    """US dollars per million tokens, and where that is written."""

    input_usd: float
    output_usd: float
    cached_input_usd: float | None = None
    source: str = ""

    def cost_usd(self, usage: Usage) -> float:
        cached = self.cached_input_usd if self.cached_input_usd is not None else self.input_usd
        fresh = usage.input_tokens - usage.cached_input_tokens
        micro = (
            fresh * self.input_usd
            + usage.cached_input_tokens * cached
            + usage.output_tokens * self.output_usd
        )
        return micro / 1e6


@dataclass(frozen=True, kw_only=True)
class Reply:
    text: str
    usage: Usage
    finish: Finish
    model: str  # as the endpoint reports it
    seconds: float = 0.0


class LanguageModel(Protocol):
    """A model behind an endpoint. `complete` raises LanguageModelError (`llm/errors.py`) and nothing else."""

    @property
    def name(self) -> str:
        """What was asked for, provider included: "openai:gpt-x", "bedrock:...", "http://localhost:8000/v1#name"."""
        ...

    @property
    def price(self) -> Price | None:
        """None: not known; dollars can then not be limited, tokens can."""
        ...

    def complete(
        self, request: Request, *, on_text: OnText | None = None, may_retry: MayRetry | None = None
    ) -> Reply:
        """The reply; its usage includes what attempts that broke off were probably charged for."""
        ...

    def probe(self) -> Reply:
        """One tiny call before a run: a wrong key, name or address is found for a few tokens."""
        ...
