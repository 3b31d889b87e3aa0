"""What a check of a recipe found: one row of the table that ends `neuron-port recipes check`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["passed", "FAILED", "not run"]
Say = Callable[[str], None]  # hears what is being done, for people who wait

SHOWN_PROBLEMS = 6


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check: `summary` is what was looked at, or why nothing was; `problems` is empty unless it failed.

    `facts` are figures for machines, JSON values.
    """

    name: str
    status: Status
    summary: str
    problems: tuple[str, ...] = ()
    facts: Any = None


def judged(name: str, right: str, problems: list[str], facts: Any = None, *, tried: str = "") -> Check:
    """A check that ran: it failed if there are problems.

    Args:
        right: what holds when there is none.
        tried: what was looked at, said in both cases.
    """
    if not problems:
        summary = "; ".join(filter(None, (tried, right)))
        return Check(name=name, status="passed", summary=summary, facts=facts)
    counted = f"{len(problems)} problem{'' if len(problems) == 1 else 's'}"
    return Check(name=name, status="FAILED", summary=tried or counted, problems=tuple(problems), facts=facts)


def not_run(name: str, reason: str) -> Check:
    """A check that could not be made, and why: never a success."""
    return Check(name=name, status="not run", summary=reason)


def shown(problems: tuple[str, ...]) -> list[str]:
    """The first few problems, and how many more there are."""
    more = len(problems) - SHOWN_PROBLEMS
    return [*problems[:SHOWN_PROBLEMS], *([f"and {more} more"] if more > 0 else [])]
