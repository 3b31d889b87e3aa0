"""What prompts say about a task, and the messages that they make: first what stays, then what changes.

The system message (rules, dialect slice, exemplars) is the same for all questions about one task, and every user message
begins with the task, so that an endpoint which caches prefixes charges for them once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from neuron_port.drafting.prompts.dialect import NKI_VERSION
from neuron_port.drafting.prompts.prompting import render
from neuron_port.drafting.sources.loading import shown_text
from neuron_port.llm.messages import Message
from neuron_port.recipe import Case, Size
from neuron_port.simulator.target import find_target
from neuron_port.task import KernelTask

# What an independent reviewer must answer about a faster kernel.
REVIEW_QUESTIONS: tuple[Mapping[str, str], ...] = tuple(
    {"name": name, "text": text}
    for name, text in (
        (
            "same_result",
            "Does it compute the same function for every size and dtype of the task, tails included?",
        ),
        (
            "no_work_left_out",
            "Is every element of every result computed from the arguments, none skipped or assumed?",
        ),
        (
            "same_precision",
            "Are sums and nonlinear functions still in float32, without a rounding more than before?",
        ),
        ("all_inputs", "Does it hold for extreme inputs as before: large, tiny and constant values, masks?"),
        (
            "no_special_cases",
            "Is it free of branches and constants that fit particular sizes or values of a test?",
        ),
        ("claim_explained", "Does the change explain the gain that is claimed?"),
    )
)


def system_message(target: str, dialect: str, exemplars: Sequence[Mapping[str, str]] = ()) -> Message:
    """The message that all questions about a task begin with; exemplars are {"title": ..., "text": ...}."""
    text = render(
        "system",
        nki_version=NKI_VERSION,
        target=target,
        generation=find_target(target).generation,
        dialect=dialect,
        exemplars=list(exemplars),
    )
    return Message(role="system", content=text)


def question(name: str, task: KernelTask, *, comments: bool = False, **values: Any) -> Message:
    """The user message from the template `name`, which includes `task`; `comments`: show those of the sources.

    Raises:
        PromptError: a value is missing or not used.
        CommentError: comments of a source cannot be told from its code.
    """
    return Message(role="user", content=render(name, **task_values(task, comments=comments), **values))


def reask(problem: str, reply: str, wanted: str) -> Message:
    """The user message that asks again after a reply which could not be used; `wanted` says for what."""
    return Message(role="user", content=render("reask", problem=problem, reply=reply[:2000], wanted=wanted))


def task_values(task: KernelTask, *, comments: bool = False) -> dict[str, Any]:
    """Values for the template `task`."""
    return {
        "entry_point": task.name,
        "summary": task.summary,
        "schema": task.schema,
        "dtypes": ", ".join(task.dtypes),
        "layout": [f"{name}: {shape}" for name, shape in task.layout.items()],
        "cases": list(dict.fromkeys(case_line(case) for case in task.cases)),
        "sizes": [size_line(name, size) for name, size in task.sizes.items()],
        "invariants": [invariant.name for invariant in task.invariants],
        "reference_text": task.reference_text,
        "sources": [
            {
                "language": source.language,
                "origin": source.origin,
                "license": source.license or "none",
                "text": shown_text(source, comments=comments),
            }
            for source in task.sources
        ],
    }


def case_line(case: Case) -> str:
    """The sizes and attributes of a case: "T = 128, H = 576; eps = 1e-05". Never its values."""
    return "; ".join(filter(None, [_pairs(case.sizes), _pairs(case.attributes)]))


def size_line(name: str, size: Size) -> str:
    """The values that a size may take, in words."""
    most = "any size" if size.most >= 2**31 else str(size.most)
    step = f", multiples of {size.multiple}" if size.multiple > 1 else ""
    return f"{name} from {size.least} to {most}{step}"


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {_value(value)}" for name, value in values.items())


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value)


def approaches(count: int) -> Iterable[str]:
    """How each of `count` parallel drafts differs from the others, in our words; the first follows the plan as it is."""
    ways = (
        "follow the plan as it stands.",
        "the simplest code that is right: one tile at a time, no buffer used twice.",
        "as few instructions as possible: fuse steps into one instruction where one can do them.",
        "as few transfers as possible: load each input once and keep it in SBUF.",
        "another axis on the partitions than the plan has, if that is simpler.",
    )
    return (ways[index % len(ways)] for index in range(count))
