"""The corpus: every file in `cheats/` is a kernel that must be refused, every file in `goldens/` one that must pass.

A cheat's file has a docstring (what it exploits, and where that was seen) and these constants:

    TASK   the task of `tasks.py` that it pretends to solve
    FOOLS  the unguarded grader of `unguarded.py` that it gets the better of
    BITE   what that grader's outcome is: "accepted", unless the cheat does harm in another way
    GUARD  which of our guards refuses it (`guards_of`), or several that may
    CHEAT  the kernel's source
"""

from __future__ import annotations

import runpy
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from neuron_port.grading.verdict import Verdict

FOLDER = Path(__file__).parent
LIMITS = (
    "cpu time",
    "wall time",
    "time",
    "memory",
    "LimitError",
    "MemoryError",
    "output size",
    "RecursionError",
)


@dataclass(frozen=True, kw_only=True)
class Cheat:
    """One cheating kernel."""

    name: str
    exploit: str
    task: str
    fools: str
    bite: str
    guards: tuple[str, ...]
    source: str


@cache
def golden(task: str) -> str:
    """The source of the honest kernel of a task."""
    return (FOLDER / "goldens" / f"{task}.py").read_text(encoding="utf-8")


def edited(text: str, *changes: tuple[str, str]) -> str:
    """`text` with every (old, new) replaced, so that a cheat shows as the few lines by which it differs."""
    for old, new in changes:
        if old not in text:
            raise ValueError(f"the text to replace is not there: {old!r}")
        text = text.replace(old, new)
    return text


def load_cheats() -> list[Cheat]:
    """All cheats in the order of their numbers."""
    return [_load(path) for path in sorted((FOLDER / "cheats").glob("*.py"))]


def _load(path: Path) -> Cheat:
    values = runpy.run_path(str(path))
    guards = values["GUARD"]
    return Cheat(
        name=path.stem,
        exploit=values["__doc__"].strip(),
        task=values["TASK"],
        fools=values["FOOLS"],
        bite=values.get("BITE", "accepted"),
        guards=(guards,) if isinstance(guards, str) else tuple(guards),
        source=values["CHEAT"],
    )


def guard_of(verdict: Verdict) -> str:
    """Which guard refused: "source", "limits", "simulator", "values" or "hidden".

    source: before anything ran. simulator: the kernel did what the hardware does not. values: a public case.
    hidden: public cases pass, and what only the grader draws does not.
    """
    if verdict.passed:
        return "none"
    if verdict.error_class in LIMITS:
        return "limits"
    if verdict.stage == "public":
        return "hidden"
    if verdict.stage in ("nothing", "parsed"):
        return "source"
    return "simulator" if verdict.error_class.endswith("Error") else "values"
