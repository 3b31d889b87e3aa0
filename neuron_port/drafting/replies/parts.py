"""What replies of language models are made of, before anyone asks what is in them: thoughts, prose, fenced blocks.

Everything here is linear in the length of the reply, whatever it contains.
"""

from __future__ import annotations

from dataclasses import dataclass

THOUGHT_TAGS = ("think", "thinking", "reasoning", "thought", "scratchpad")


@dataclass(frozen=True, kw_only=True)
class Block:
    """The inside of one fenced block, without the indentation of its fence."""

    text: str
    language: str  # what stands behind the opening fence, in lower case
    first_line: int  # of the reply, counted from 1
    closed: bool  # False: the reply ended inside


def plain_lines(reply: str) -> str:
    """The reply with one kind of line break and without a byte order mark."""
    return reply.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def without_thoughts(reply: str) -> str:
    """The reply without `<think>...</think>` and its kin.

    A closing tag alone ends thoughts that began in the prompt; an opening tag alone has thoughts up to the end.
    """
    text = plain_lines(reply)
    for tag in THOUGHT_TAGS:
        text = _without_tag(text, f"<{tag}>", f"</{tag}>")
    return text


def _without_tag(text: str, opening: str, closing: str) -> str:
    if opening not in text and closing not in text:
        return text
    last_lone = _lone_close(text, opening, closing)
    kept, position = [], last_lone
    while True:
        start = text.find(opening, position)
        if start < 0:
            kept.append(text[position:])
            return "".join(kept)
        kept.append(text[position:start])
        end = text.find(closing, start)
        if end < 0:
            return "".join(kept)
        position = end + len(closing)


def _lone_close(text: str, opening: str, closing: str) -> int:
    """Where the text goes on after a closing tag that no opening tag precedes: 0 if there is none."""
    end = text.find(closing)
    start = text.find(opening)
    return end + len(closing) if end >= 0 and (start < 0 or end < start) else 0


def fenced_blocks(text: str) -> list[Block]:
    """Blocks fenced by three or more backticks or tildes, in order; fences may be indented, as in lists."""
    blocks: list[Block] = []
    lines = text.split("\n")
    opened: tuple[int, str, int, str] | None = None  # line number, fence, indentation, language
    for number, line in enumerate(lines, start=1):
        stripped = line.strip()
        fence = _fence(stripped)
        if opened is None:
            if fence:
                indentation = len(line) - len(line.lstrip())
                words = stripped[len(fence) :].split()
                opened = (number, fence, indentation, words[0].lower() if words else "")
        elif fence[:1] == opened[1][0] and len(fence) >= len(opened[1]) and stripped == fence:
            blocks.append(_block(lines[opened[0] : number - 1], opened, closed=True))
            opened = None
    if opened is not None:
        blocks.append(_block(lines[opened[0] :], opened, closed=False))
    return blocks


def _fence(stripped: str) -> str:
    """The run of backticks or tildes that a line begins with, if it is one that fences."""
    for character in "`~":
        run = stripped[: len(stripped) - len(stripped.lstrip(character))]
        if len(run) >= 3 and (character == "~" or "`" not in stripped[len(run) :]):
            return run
    return ""


def _block(lines: list[str], opened: tuple[int, str, int, str], *, closed: bool) -> Block:
    number, _, indentation, language = opened
    inside = [line[min(indentation, len(line) - len(line.lstrip())) :] for line in lines]
    return Block(text="\n".join(inside), language=language, first_line=number + 1, closed=closed)
