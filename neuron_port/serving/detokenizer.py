"""Turns tokens into text as they come: no character is split, and no text is taken back.

A token may end in the middle of a UTF-8 character, which decodes to U+FFFD until the rest has come; and what a token
reads as may depend on the tokens before it. So a short window of tokens is decoded, and what is certain of it given
out. The text of a whole completion is by construction the sum of its pieces, streamed or not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_BROKEN = "\N{REPLACEMENT CHARACTER}"
# Bytes of an unfinished character, each of which a byte-fallback tokenizer shows as one U+FFFD.
_UNFINISHED = 3
_CONTEXT = (
    6  # tokens of the prompt that are decoded with the first ones: a space between words depends on them
)


class Detokenizer:
    """The text of one sequence, piece by piece.

    Args:
        decode: the tokenizer's own, special tokens left out.
        prompt: the tokens before the first one; their text is not given out.
    """

    def __init__(self, decode: Callable[[list[int]], str], prompt: Sequence[int] = ()) -> None:
        self._decode = decode
        self._window = list(prompt[-_CONTEXT:])
        self._given = len(decode(self._window))  # characters of the window's text that are out
        self._settled = len(self._window)  # tokens of the window whose text is out

    def push(self, token: int) -> str:
        """The text that has become certain with `token`; may be empty."""
        self._window.append(token)
        text = self._decode(self._window)
        whole = not text.endswith(_BROKEN)
        certain = text if whole else _without_unfinished(text)
        piece = certain[self._given :]
        self._given = max(self._given, len(certain))
        if whole and piece:
            self._advance()
        return piece

    def flush(self) -> str:
        """What is left at the end: an unfinished character is broken for good."""
        piece = self._decode(self._window)[self._given :]
        self._given += len(piece)
        return piece

    def _advance(self) -> None:
        """Start the window at the tokens that came last: they begin and end between characters."""
        self._window = self._window[self._settled :]
        self._settled = len(self._window)
        self._given = len(self._decode(self._window))


def _without_unfinished(text: str) -> str:
    """`text` without the broken characters at its end that later tokens may still complete."""
    solid = text.rstrip(_BROKEN)
    return text[: max(len(solid), len(text) - _UNFINISHED)]


class StopStrings:
    """Looks for texts that end a completion; holds back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that may go out, whether a stop was found); a stop and what follows it never go out."""
        if not self._stops:
            return text, False
        self._held += text
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            return self._held[: min(places)], True
        keep = max(_overlap(self._held, stop) for stop in self._stops)
        out = self._held[: len(self._held) - keep]
        self._held = self._held[len(out) :]
        return out, False

    def flush(self) -> str:
        """What was held back, when no stop came of it."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-size:]):
            return size
    return 0
