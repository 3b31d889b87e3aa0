"""Lays out generated Python as the project's formatter would: lines of 110 characters, exploded one way only."""

from __future__ import annotations

from collections.abc import Sequence

LINE_LENGTH = 110


def call_lines(opening: str, arguments: Sequence[str], closing: str, *, indent: int = 0) -> list[str]:
    """The lines of `opening a, b closing`, without their indentation of `indent` spaces.

    On one line where that fits; else the arguments on a line of their own; else one line for each.
    """
    width = LINE_LENGTH - indent
    together = ", ".join(arguments)
    if len(opening) + len(together) + len(closing) <= width or not arguments:
        return [f"{opening}{together}{closing}"]
    if len(together) + 4 <= width:
        return [opening, f"    {together}", closing]
    return [opening, *(f"    {argument}," for argument in arguments), closing]


def literal_lines(opening: str, items: Sequence[str], closing: str, *, indent: int = 0) -> list[str]:
    """The lines of a tuple or dict display: on one line, or one line for each item with a trailing comma."""
    together = f"{opening}{', '.join(items)}{closing}"
    if len(together) + indent <= LINE_LENGTH:
        return [together]
    return [opening, *(f"    {item}," for item in items), closing]
