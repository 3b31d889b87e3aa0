"""From what an endpoint said to one clear sentence: who said it, about which value, and what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from neuron_port.llm.errors import (
    BadRequestError,
    ContextTooLongError,
    LanguageModelError,
    MalformedReplyError,
    ModelNotFoundError,
    ModelTimedOutError,
    OutOfQuotaError,
    RateLimitedError,
    RefusedError,
    ServerFailedError,
    TruncatedReplyError,
    UnreachableError,
    WrongAddressError,
    WrongKeyError,
    redact,
)
from neuron_port.llm.messages import Message, Usage
from neuron_port.llm.retry import retry_after_seconds

CONTEXT_COMPLAINT = re.compile(
    r"context[ _](?:length|window|size)|prompt is too long|input is too long|too many (?:input |total )?tokens"
    r"|input token count|maximum context|exceeds the (?:maximum|available) (?:context|number of (?:input )?tokens)",
    re.IGNORECASE,
)
QUOTA_CODES = {
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
    "credit_balance_too_low",
}
QUOTA_COMPLAINT = re.compile(
    r"insufficient[ _](?:quota|balance|credit)|credit balance is too low", re.IGNORECASE
)
FILTER_CODES = {"content_filter", "content_policy_violation", "moderation_blocked"}
CHARACTERS_PER_TOKEN = 4  # OpenAI's rule of thumb for English; where an endpoint does not count


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Whom we ask, for sentences about it.

    Attributes:
        url: without user name and password.
        model: the name that is sent.
        key_cure: how this user changes the key: "Set OPENAI_API_KEY to ...".
        secrets: what no sentence may contain.
    """

    url: str
    model: str
    key_cure: str
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def quote(self, text: str) -> str:
        """The endpoint's own words, in parentheses, or nothing."""
        shown = redact(text, self.secrets).rstrip(".")
        return f" ({shown})" if shown else ""

    def from_status(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        models: Callable[[], tuple[str, ...]] = tuple,
    ) -> LanguageModelError:
        """The error for an HTTP status; `models` is only called to suggest names. Header names in lower case."""
        said = self.quote(message)
        wait_seconds = retry_after_seconds(headers or {})
        if code in FILTER_CODES:
            return self.refused(said)
        if (
            status == 402
            or code in QUOTA_CODES
            or (status in (400, 403, 429) and QUOTA_COMPLAINT.search(message))
        ):
            return OutOfQuotaError(
                f"The account at {self.url} has no quota left{said}.",
                hint="Add credit or raise the limit in the provider's console, then run the same command again: "
                "everything paid for is kept.",
            )
        if status == 404 or code == "model_not_found":
            return self._not_found(message, code, models())
        if status in (401, 403):
            return WrongKeyError(f"{self.url} does not accept the key{said}.", hint=self.key_cure)
        if status == 429:
            return RateLimitedError(
                f"{self.url} limits the rate of requests to `{self.model}`{said}.",
                hint="Lower the number of parallel calls, or try later.",
                retry_after_seconds=wait_seconds,
            )
        if status == 408 or status == 504:
            return ModelTimedOutError(
                f"{self.url} timed out itself (HTTP {status}){said}.",
                hint="Try later, or ask for shorter replies.",
                retry_after_seconds=wait_seconds,
            )
        if status >= 500 or status == 409:
            return ServerFailedError(
                f"{self.url} failed with HTTP {status}{said}.",
                hint="The fault is on their side: look at the provider's status page, try later.",
                retry_after_seconds=wait_seconds,
            )
        return self._bad_request(status, message, code)

    def _not_found(self, message: str, code: str | None, names: tuple[str, ...]) -> LanguageModelError:
        named = re.search(rf"(?<![\w-])(?:model|{re.escape(self.model)})(?![\w-])", message, re.IGNORECASE)
        if code == "model_not_found" or named or names:
            return self.model_not_found(names, message)
        return WrongAddressError(
            f"{self.url} answers, but not to chat completions (HTTP 404){self.quote(message)}.",
            hint="Check the address; most end in /v1.",
        )

    def _bad_request(self, status: int, message: str, code: str | None) -> LanguageModelError:
        said = self.quote(message)
        if code == "context_length_exceeded" or status == 413 or CONTEXT_COMPLAINT.search(message):
            return ContextTooLongError(
                f"The prompt is too long for `{self.model}` at {self.url}{said}.",
                hint="Use a model with a longer context, or a source with fewer lines.",
            )
        return BadRequestError(
            f"{self.url} does not take the request to `{self.model}` (HTTP {status}){said}.",
            hint="If a limit is named there, lower it; if a parameter is, this model may not fit the protocol.",
        )

    def model_not_found(self, names: Iterable[str], message: str) -> ModelNotFoundError:
        names = tuple(name for name in names if name != self.model)  # some list what a key may not use
        near = difflib.get_close_matches(self.model, names, n=3, cutoff=0.5)
        if near:
            hint = f"Did you mean {' or '.join(f'`{name}`' for name in near)}?"
        elif names:
            shown = ", ".join(f"`{name}`" for name in names[:8])
            hint = f"It has {shown}{' and others' * (len(names) > 8)}."
        else:
            hint = "Check the name, and that your account may use this model."
        return ModelNotFoundError(f"{self.url} has no model `{self.model}`{self.quote(message)}.", hint=hint)

    def refused(self, said: str) -> RefusedError:
        return RefusedError(
            f"A filter of {self.url} refused the question to `{self.model}`{said}.",
            hint="Look for words in the source that a filter may dislike, or use another model.",
        )

    def unreachable(self, reason: str) -> UnreachableError:
        return UnreachableError(
            f"{self.url} cannot be reached{self.quote(reason)}.",
            hint="Check the address, that the server runs, and your network and proxy.",
        )

    def silent(self, idle_seconds: float, usage: Usage | None) -> ModelTimedOutError:
        return ModelTimedOutError(
            f"`{self.model}` at {self.url} sent nothing for {idle_seconds:g} s.",
            hint="Try later, or a faster model.",
            usage=usage,
        )

    def slow(self, total_seconds: float, usage: Usage | None) -> ModelTimedOutError:
        return ModelTimedOutError(
            f"`{self.model}` at {self.url} did not finish its reply in {total_seconds:g} s.",
            hint="Use a faster model, or ask for shorter replies.",
            usage=usage,
        )

    def truncated(self, text: str, usage: Usage, reason: str) -> TruncatedReplyError:
        return TruncatedReplyError(
            f"The reply of `{self.model}` at {self.url} broke off after {len(text)} characters{self.quote(reason)}.",
            hint="The connection or the server failed in mid-reply; try again.",
            usage=usage,
        )

    def malformed(self, what: str, usage: Usage | None = None) -> MalformedReplyError:
        return MalformedReplyError(
            f"{self.url} did not answer with a chat completion but with {redact(what, self.secrets)}.",
            hint="Check the address (most end in /v1), and that no proxy or login page stands before it.",
            usage=usage,
        )


def estimated_usage(messages: Iterable[Message], text: str) -> Usage:
    """A guess from the number of characters, marked as one."""
    said = sum(len(message.content) for message in messages)
    return Usage(
        input_tokens=-(-said // CHARACTERS_PER_TOKEN),
        output_tokens=-(-len(text) // CHARACTERS_PER_TOKEN),
        estimated=True,
    )
