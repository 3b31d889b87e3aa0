"""Judging a candidate's text before Python's parser sees it: size, characters, and nesting that would exhaust a parser.

Python's parser and compiler recurse in C. A line of 60,000 minus signs, or an attribute chain as long, may end the
process that reads it, so each is counted here from the tokens, which are read one after the other.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator

from neuron_port.sandbox.job import Failure
from neuron_port.simulator.parsing import parse_python

MAXIMUM_BYTES = 64 * 1024
MAXIMUM_BRACKETS = 40
MAXIMUM_INDENTS = 30
MAXIMUM_TOKENS_BETWEEN_COMMAS = 1000  # of an expression, the brackets around it included
MAXIMUM_ELIFS = 100  # each one nests in the one before
MAXIMUM_NUMBER_CHARACTERS = 100
MAXIMUM_FSTRING_CHARACTERS = 1000  # Python 3.11 parses what is in braces apart, in one go

# Characters that readers and tokenizers take differently: controls, and marks that reorder the text on a screen.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_KNOWN_ESCAPES = frozenset("\n\\'\"abfnrtv0123xNuU")
_FSTRING_START = getattr(tokenize, "FSTRING_START", -1)
_FSTRING_MIDDLE = getattr(tokenize, "FSTRING_MIDDLE", -1)


class RefusedError(Exception):
    """The candidate is refused, and why."""

    def __init__(self, error_class: str, message: str, *, hint: str, line: int | None = None) -> None:
        super().__init__(message)
        self.failure = Failure(kind="refused", error_class=error_class, message=message, hint=hint, line=line)


def parse_carefully(source: str) -> ast.Module:
    """The syntax tree of a text that may be made to break parsers.

    Raises:
        RefusedError: it is too large, too deep, unreadable, or no Python.
    """
    _check_characters(source)
    try:
        _check_tokens(source)
        return parse_python(source, "kernel.py")
    except SyntaxError as error:  # IndentationError is one
        raise RefusedError(
            "syntax",
            f"the file is no Python: {error.msg}",
            hint="correct the syntax of that line",
            line=error.lineno,
        ) from None
    except tokenize.TokenError as error:
        line = error.args[1][0] if len(error.args) > 1 else None
        raise RefusedError(
            "syntax",
            f"the file is no Python: {error.args[0]}",
            hint="is a bracket or a string left open?",
            line=line,
        ) from None
    except (RecursionError, MemoryError, ValueError, OverflowError) as error:
        raise RefusedError(
            "nesting",
            f"Python cannot parse the file ({type(error).__name__})",
            hint="write shorter expressions, one step on each line",
        ) from None


def _check_characters(source: str) -> None:
    try:
        size = len(source.encode())
    except UnicodeEncodeError as error:
        raise RefusedError(
            "encoding",
            f"character {error.start} of the file is half of a surrogate pair, which is no text",
            hint="write plain ASCII",
            line=source.count("\n", 0, error.start) + 1,
        ) from None
    if size > MAXIMUM_BYTES:
        raise RefusedError(
            "size",
            f"the file has {size:,} bytes, at most {MAXIMUM_BYTES:,}",
            hint="a kernel has some hundred lines; tables of values come in as arguments",
        )
    unseen = _UNSEEN.search(source.replace("\r\n", "\n"))
    if unseen is not None:
        raise RefusedError(
            "encoding",
            f"the file holds the character U+{ord(unseen[0]):04X}, which cannot be seen",
            hint="remove it; indent with spaces and end lines with a line feed",
            line=source.replace("\r\n", "\n").count("\n", 0, unseen.start()) + 1,
        )


def _tokens(source: str) -> Iterator[tokenize.TokenInfo]:
    yield from tokenize.generate_tokens(io.StringIO(source.replace("\r\n", "\n")).readline)


def _check_tokens(source: str) -> None:
    since_comma = [0]  # tokens since the last comma, for each open bracket
    total = indents = elifs = 0
    raw_fstring = False
    before: tokenize.TokenInfo | None = None
    for token in _tokens(source):
        kind, text, line = token.type, token.string, token.start[0]
        if kind == tokenize.OP and text in "([{":
            since_comma.append(0)
            if len(since_comma) > MAXIMUM_BRACKETS:
                raise _too_deep(f"more than {MAXIMUM_BRACKETS} brackets in each other", line)
        elif kind == tokenize.OP and text in ")]}":
            if len(since_comma) > 1:
                total -= since_comma.pop()
        elif kind == tokenize.OP and text == ",":
            total -= since_comma[-1]
            since_comma[-1] = 0
        elif kind == tokenize.NEWLINE:
            since_comma, total = [0], 0
        elif kind == tokenize.INDENT:
            indents += 1
            if indents > MAXIMUM_INDENTS:
                raise _too_deep(f"more than {MAXIMUM_INDENTS} blocks in each other", line)
        elif kind == tokenize.DEDENT:
            indents -= 1
        elif kind not in (tokenize.NL, tokenize.COMMENT):
            since_comma[-1] += 1
            total += 1
            if total > MAXIMUM_TOKENS_BETWEEN_COMMAS:
                raise _too_deep(f"an expression of more than {MAXIMUM_TOKENS_BETWEEN_COMMAS} tokens", line)
            if kind == tokenize.NAME and text == "elif":
                elifs += 1
                if elifs > MAXIMUM_ELIFS:
                    raise _too_deep(f"more than {MAXIMUM_ELIFS} elif", line)
            elif kind == _FSTRING_START:
                raw_fstring = "r" in text.lower()
            elif kind == tokenize.STRING or (kind == _FSTRING_MIDDLE and not raw_fstring):
                _check_string(text, line, quoted=kind == tokenize.STRING)
            elif kind == tokenize.NUMBER and len(text) > MAXIMUM_NUMBER_CHARACTERS:
                raise _too_deep(f"a number of {len(text)} characters", line)
            if kind == tokenize.NAME and before is not None and before.type == tokenize.NUMBER:
                _check_gap(before, token)
        before = token


def _too_deep(what: str, line: int) -> RefusedError:
    return RefusedError("nesting", f"the file has {what}", hint="write it in several steps", line=line)


def _check_string(text: str, line: int, *, quoted: bool) -> None:
    """Refuse escapes that Python warns of, and long f-strings where they are one token."""
    prefix = text[: len(text) - len(text.lstrip("rRbBuUfF"))].lower() if quoted else ""
    if "f" in prefix and len(text) > MAXIMUM_FSTRING_CHARACTERS:
        raise _too_deep(f"an f-string of {len(text)} characters", line)
    if "r" in prefix:
        return
    for escape in _ESCAPE.finditer(text):
        if escape[1] not in _KNOWN_ESCAPES:
            raise RefusedError(
                "syntax",
                f"the text holds the escape `\\{escape[1]}`, which Python does not know",
                hint="write two backslashes for one",
                line=line,
            )


def _check_gap(number: tokenize.TokenInfo, name: tokenize.TokenInfo) -> None:
    if number.end == name.start:
        raise RefusedError(
            "syntax",
            f"the number {number.string[:20]} runs into `{name.string[:20]}`",
            hint="put a space between them",
            line=name.start[0],
        )
