"""What can be remembered. A record that rests on a kernel is made with the verdict that admitted it, or not at all."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass
from typing import Any, Literal

from neuron_port.errors import NeuronPortError
from neuron_port.grading.verdict import Verdict

Kind = Literal["exemplar", "fix", "lever", "dead end"]
NAME_LENGTH = 100  # characters of names: families, primitives, error classes
NOTE_LENGTH = 600
EXCERPT_LENGTH = 1500  # of code before and after
SOURCE_LENGTH = 60_000  # a longer kernel would fill the prompt that it is to help


class MemoryRefusedError(NeuronPortError):
    """Something that must not be learnt from."""


@dataclass(frozen=True, kw_only=True)
class Exemplar:
    """An admitted kernel. `summary` says in a sentence what it computes and how."""

    family: str
    primitives: tuple[str, ...]  # names of the instructions that it uses
    task: str  # key of the task
    target: str
    source: str
    summary: str
    verdict: Verdict

    def __post_init__(self) -> None:
        require_admission(self.verdict, f"a kernel of family `{self.family}`")
        if len(self.source) > SOURCE_LENGTH:
            raise MemoryRefusedError(
                f"A kernel of {len(self.source):,} characters is too long to learn from; {SOURCE_LENGTH:,} are allowed."
            )
        if clean(self.source, SOURCE_LENGTH) != self.source:  # cleaned, it would not be what was verified
            raise MemoryRefusedError("A kernel with control characters in its source is not learnt from.")


@dataclass(frozen=True, kw_only=True)
class Fix:
    """What repaired one kind of error, in a kernel that was admitted in the end."""

    family: str
    primitives: tuple[str, ...]
    task: str
    error_class: str
    note: str
    before: str = ""  # the lines that were wrong, and what they became
    after: str = ""
    verdict: Verdict

    def __post_init__(self) -> None:
        require_admission(self.verdict, f"a correction of `{self.error_class}`")


@dataclass(frozen=True, kw_only=True)
class Lever:
    """What made an admitted kernel faster. `metric` names the figure that moved, from what to what, and its tier."""

    family: str
    primitives: tuple[str, ...]
    task: str
    note: str
    metric: str
    before: str = ""
    after: str = ""
    verdict: Verdict  # of the faster kernel

    def __post_init__(self) -> None:
        require_admission(self.verdict, "a faster kernel")


@dataclass(frozen=True, kw_only=True)
class DeadEnd:
    """A direction that brought nothing, so that it is not tried first again."""

    family: str
    primitives: tuple[str, ...]
    task: str
    note: str


Lesson = Exemplar | Fix | Lever | DeadEnd


def require_admission(verdict: Verdict, what: str) -> None:
    """Raise MemoryRefusedError unless the verdict admits: everything passed, to the last stage, and no guard spoke."""
    if verdict.passed and verdict.stage == "admitted" and not verdict.guard:
        return
    reason = f"guard `{verdict.guard}`" if verdict.guard else f"its verdict ends at stage `{verdict.stage}`"
    if verdict.error_class:
        reason += f" with `{verdict.error_class}`"
    raise MemoryRefusedError(
        f"Only admitted kernels are remembered, and {what} is not: {reason}.",
        hint="Admit the kernel first; what was not admitted may be a cheat, and would teach later runs.",
    )


def columns_of(lesson: Lesson) -> dict[str, Any]:
    """The lesson's values for the table, cleaned and cut to length."""
    values: dict[str, Any] = {
        "family": clean(lesson.family, NAME_LENGTH),
        "primitives": json.dumps(sorted({clean(name, NAME_LENGTH) for name in lesson.primitives})),
        "task": clean(lesson.task, NAME_LENGTH),
        "error_class": "", "before": "", "after": "", "source": "", "metric": "", "target": "",
    }  # fmt: skip
    if isinstance(lesson, (Fix, Lever)):
        values["before"] = clean(lesson.before, EXCERPT_LENGTH)
        values["after"] = clean(lesson.after, EXCERPT_LENGTH)
    if isinstance(lesson, Exemplar):
        values |= {"kind": "exemplar", "note": clean(lesson.summary, NOTE_LENGTH), "source": lesson.source}
        values["target"] = clean(lesson.target, NAME_LENGTH)
    elif isinstance(lesson, Fix):
        values |= {"kind": "fix", "note": clean(lesson.note, NOTE_LENGTH)}
        values["error_class"] = clean(lesson.error_class, NAME_LENGTH)
    elif isinstance(lesson, Lever):
        values |= {"kind": "lever", "note": clean(lesson.note, NOTE_LENGTH)}
        values["metric"] = clean(lesson.metric, NOTE_LENGTH)
    else:
        values |= {"kind": "dead end", "note": clean(lesson.note, NOTE_LENGTH)}
    return values


def clean(text: str, length: int) -> str:
    """The text without control and formatting characters (line breaks and tabs stay), cut to `length` characters."""
    kept = "".join(c for c in text if c in "\n\t" or not unicodedata.category(c).startswith("C"))
    return kept if len(kept) <= length else kept[: length - 2] + " …"
