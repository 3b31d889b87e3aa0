"""From a verdict to the next question: which rung of the ladder, and what the model is told about its mistake.

    rounds 1-2   correct it directly
    rounds 3-4   with an example of correct use
    round  5     write it again, one tile at a time
    round  6     another plan (or, while too few implementations of this one have failed, another draft of it)

The same kind of error twice in a row goes on to the next way at once; the same code again is a wasted round, after which
another sample is drawn. Only what the verdict offers as evidence is shown: no inputs, and of the outputs a few elements
that are worst in public cases.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from neuron_port.drafting.prompts.dialect import instruction_entry, is_instruction
from neuron_port.drafting.prompts.exemplars import calls_in, use_of
from neuron_port.drafting.replies.extraction import parse
from neuron_port.grading.verdict import Verdict

Action = Literal["fix", "exemplar", "simplify", "new plan", "redraft", "give up"]
ROUNDS: tuple[Action, ...] = ("fix", "fix", "exemplar", "exemplar", "simplify", "new plan")
TEMPLATES: dict[Action, str] = {
    "fix": "repair", "exemplar": "repair", "simplify": "simplify", "new plan": "new_plan", "redraft": "draft",
}  # fmt: skip
FAILURES_TO_RETIRE_A_PLAN = 2  # independent implementations
CONTEXT_LINES = 3
MAXIMUM_EVIDENCE, MAXIMUM_NOTES = 8, 4
_INSTRUCTION = re.compile(r"\b(?:nisa\.)?([a-z][a-z0-9_]{2,40})\b")


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One candidate of a slot that was graded and refused: what the ladder looks at."""

    error_class: str
    code_digest: str  # extraction.normalised_digest; of a reply without code, anything that tells it apart
    round: int = 0  # the round that it came from; 0: the first draft


@dataclass(frozen=True, kw_only=True)
class Rung:
    """What to do next. `round` counts from 1; `wasted` says that the last candidate was one that we had before."""

    action: Action
    round: int
    wasted: bool = False
    reason: str = ""

    @property
    def template(self) -> str:
        """The prompt that asks for it."""
        return TEMPLATES[self.action]

    @property
    def reseeds(self) -> bool:
        """Whether the next request should be another sample, so that it cannot be the same reply again."""
        return self.wasted or self.action in ("redraft", "new plan")


def next_rung(history: Sequence[Attempt], *, implementations_failed: int = FAILURES_TO_RETIRE_A_PLAN) -> Rung:
    """The next rung of a slot whose graded candidates are `history`, first draft first; depends on nothing else.

    `implementations_failed` counts independent drafts of the present plan that failed, this slot's included: a plan is
    retired only after FAILURES_TO_RETIRE_A_PLAN of them.
    """
    if not history:
        raise ValueError("next_rung needs at least the first draft's attempt")
    last = history[-1]
    number = last.round + 1
    wasted = any(last.code_digest == earlier.code_digest for earlier in history[:-1])
    reason = "the same code again" if wasted else ""
    if len(history) > 1 and last.round > 0 and last.error_class == history[-2].error_class:
        number = _next_way(last.round)
        reason = reason or f"`{last.error_class}` twice in a row"
    if number > len(ROUNDS):
        return Rung(action="give up", round=number, wasted=wasted, reason=reason or "all rounds are used")
    action = ROUNDS[number - 1]
    if action == "new plan" and implementations_failed < FAILURES_TO_RETIRE_A_PLAN:
        action, reason = "redraft", "the plan has failed in one implementation only"
    return Rung(action=action, round=number, wasted=wasted, reason=reason)


def _next_way(round_number: int) -> int:
    """The first round after this one that does something else."""
    later = range(round_number + 1, len(ROUNDS) + 1)
    return next(
        (number for number in later if ROUNDS[number - 1] != ROUNDS[round_number - 1]), len(ROUNDS) + 1
    )


# ---- what the model is told ------------------------------------------------------------------------------


def findings(
    verdict: Verdict, code: str, rung: Rung, *, notes: Sequence[str] = (), without: Iterable[str] = ()
) -> dict[str, Any]:
    """Values for the template `findings`, which `repair` and `simplify` include.

    `without` names recipes whose code may not be shown. The exemplar comes with the rungs that ask for it.
    """
    instruction = instruction_at(verdict, code)
    wants_exemplar = rung.action in ("exemplar", "simplify")
    return {
        "error_class": verdict.error_class or "unknown",
        "message": verdict.message or "The checker refused it without a message.",
        "hint": verdict.hint,
        "excerpt": excerpt(code, verdict.line),
        "evidence": list(verdict.evidence[:MAXIMUM_EVIDENCE]),
        "documentation": instruction_entry(instruction) if instruction else "",
        "exemplar": use_of(instruction, without) if instruction and wants_exemplar else "",
        "notes": list(notes[:MAXIMUM_NOTES]),
    }


def excerpt(code: str, line: int | None) -> str:
    """The line with CONTEXT_LINES before and after it, numbered and marked; "" without a line of the code."""
    lines = code.splitlines()
    if line is None or not 1 <= line <= len(lines):
        return ""
    first, last = max(1, line - CONTEXT_LINES), min(len(lines), line + CONTEXT_LINES)
    width = len(str(last))
    return "\n".join(
        f"{'>' if number == line else ' '} {number:>{width}} | {lines[number - 1]}"
        for number in range(first, last + 1)
    )


def instruction_at(verdict: Verdict, code: str) -> str:
    """The instruction that the verdict is about: the innermost call on its line, or the first one its message names."""
    tree, _ = parse(code)
    if tree is not None and verdict.line is not None:
        there = [
            (last - first, name.removeprefix("nisa."))
            for name, first, last in calls_in(tree)
            if first <= verdict.line <= last and name.startswith("nisa.") and is_instruction(name[5:])
        ]
        if there:
            return min(there)[1]
    named = (found[1] for found in _INSTRUCTION.finditer(f"{verdict.message} {verdict.hint}"))
    return next((name for name in named if is_instruction(name)), "")


def called_instructions(code: str) -> tuple[str, ...]:
    """Instructions of `nki.isa` that the code calls, in order of first use; for choosing notes and slices."""
    tree, _ = parse(code)
    if tree is None:
        return ()
    names = (name.removeprefix("nisa.") for name, _, _ in calls_in(tree) if name.startswith("nisa."))
    return tuple(dict.fromkeys(name for name in names if is_instruction(name)))
