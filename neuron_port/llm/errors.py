"""What can go wrong between us and a language model: one class for each cure, and whether trying again may help.

The sentence of each error names the endpoint and the value, its hint the cure. A key never stands in either: see
`redact`. `usage` is what the provider has probably charged for a call that gave no reply.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Self

from neuron_port.errors import NeuronPortError
from neuron_port.llm.messages import Usage

SHORTEST_SECRET = (
    4  # "k" or "none" as a key for a local server is no secret, and replacing it would garble sentences
)
LONGEST_QUOTE = 300  # characters of a server's own words that an error repeats


class LanguageModelError(NeuronPortError):
    """A call gave no reply.

    Attributes:
        transient: trying the same again may help.
        retry_after_seconds: how long the endpoint asked to wait; None: it did not say.
        usage: tokens that were probably charged all the same, estimated; None: none.
    """

    transient: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        retry_after_seconds: float | None = None,
        usage: Usage | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_seconds = retry_after_seconds
        self.usage = usage

    def given_up(self, attempts: int, waited_seconds: float, usage: Usage | None) -> Self:
        """The same error after all attempts, which it counts, with what they together were probably charged for."""
        tries = "1 attempt" if attempts == 1 else f"{attempts} attempts"
        effort = f"gave up after {tries} and {waited_seconds:.0f} s of waiting"
        if self.retry_after_seconds is not None:
            effort += f", it asks for {self.retry_after_seconds:.0f} s more"
        message = f"{self.message.removesuffix('.')}; {effort}."
        return type(self)(message, hint=self.hint, retry_after_seconds=self.retry_after_seconds, usage=usage)


class WrongKeyError(LanguageModelError):
    """The endpoint does not accept the key."""


class MissingKeyError(WrongKeyError):
    """There is no key to send."""


class ModelNotFoundError(LanguageModelError):
    """The endpoint has no model of that name, or not for this key."""


class OutOfQuotaError(LanguageModelError):
    """The account has no money or allowance left; waiting seconds does not help."""


class BadRequestError(LanguageModelError):
    """The endpoint does not take the request, and leaving a parameter out does not help."""


class ContextTooLongError(BadRequestError):
    """The prompt does not fit in the model's context."""


class RefusedError(LanguageModelError):
    """The provider's filter stopped the question before the model saw it."""


class MalformedReplyError(LanguageModelError):
    """What came back is no chat completion: a web page, broken JSON, no choices."""


class WrongAddressError(LanguageModelError):
    """Something answers there, but it does not speak this protocol."""


class NoRecordingError(LanguageModelError):
    """A replay file has no answer, or is none."""


class UnreachableError(LanguageModelError):
    """No connection: wrong host or port, nothing listens, or it hung up."""

    transient = True


class RateLimitedError(LanguageModelError):
    """Too many requests or tokens in a short time."""

    transient = True


class ServerFailedError(LanguageModelError):
    """The endpoint says that the fault is its own (5xx)."""

    transient = True


class ModelTimedOutError(LanguageModelError):
    """Nothing was heard for too long, or the whole took too long."""

    transient = True


class TruncatedReplyError(LanguageModelError):
    """The connection broke, or the stream ended, in the middle of a reply."""

    transient = True


def redact(text: str, secrets: Iterable[str]) -> str:
    """The text on one line, shortened, with `[key]` in place of any secret that a server may have echoed."""
    for secret in secrets:
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, "[key]")
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]} …"
