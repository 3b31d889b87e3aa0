"""A prompt and its two continuations, cut where they part."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """A prompt and both continuations, cut where they part.

    `first_difference` counts tokens from 0; None says that all agree.
    """

    prompt: str
    agreed: str
    reference_rest: str
    ported_rest: str
    reference_tokens: int
    ported_tokens: int
    first_difference: int | None


def continuation(detail: str) -> Continuation | None:
    """The texts in a model case's detail, or None if it holds none (it is then shown as it is)."""
    try:
        fields = json.loads(detail)
        reference, ported = str(fields["reference_text"]), str(fields["ported_text"])
        reference_tokens, ported_tokens = list(fields["reference_tokens"]), list(fields["ported_tokens"])
        prompt = str(fields["prompt"])
    except (ValueError, TypeError, KeyError):
        return None
    agreed = _common_length(reference, ported)
    agreed_tokens = _common_length(reference_tokens, ported_tokens)
    same = reference_tokens == ported_tokens
    return Continuation(
        prompt=prompt,
        agreed=reference[:agreed],
        reference_rest=reference[agreed:],
        ported_rest=ported[agreed:],
        reference_tokens=len(reference_tokens),
        ported_tokens=len(ported_tokens),
        first_difference=None if same else agreed_tokens,
    )


def _common_length(first: Sequence[object], second: Sequence[object]) -> int:
    pairs = zip(first, second, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
