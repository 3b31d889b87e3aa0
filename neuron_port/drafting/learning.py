"""What a run takes from memory and from verified kernels before it begins, and what it leaves there when it ends.

What was taken is decided once and kept in the journal, so that a resumed run asks the same questions.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from neuron_port.drafting.candidates import Judged
from neuron_port.drafting.keeping.journal import Journal
from neuron_port.drafting.memory.lessons import Exemplar, Fix, Memory, Purpose
from neuron_port.drafting.prompts.feedback import called_instructions
from neuron_port.drafting.prompts.primitives import primitives_in, primitives_of
from neuron_port.drafting.prompts.questions import ShownKernel
from neuron_port.registry import Registry
from neuron_port.simulator.parsing import parse_python
from neuron_port.task import KernelTask

RECIPE_CHARACTERS = 9_000  # of a recipe's kernel, to be shown whole
MOST_RELATIVES = (
    2  # kernels of other tasks that are tried as they are: a second of computing each, and no question
)
DIFF_LINES = 12  # of a correction: what is longer is a rewrite, and teaches nothing in particular


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What the prompts of one run show from memory; `ids` are the lessons'."""

    kernels: tuple[ShownKernel, ...] = ()
    notes: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()


def family_of(task: KernelTask) -> str:
    """Tasks of one family compute with the same primitives: "product, softmax"."""
    return ", ".join(primitives_of(task))


def nearest_recipe(task: KernelTask, exclude: Collection[str]) -> ShownKernel | None:
    """The recipe whose kernel shares most of the task's primitives, if any does, and is not too long to show whole."""
    wanted = set(primitives_of(task))
    best: tuple[float, ShownKernel] | None = None
    for name, found in Registry().items():
        own, text = set(primitives_in(found.source_text("reference.py"))), found.kernel.source
        shared = len(wanted & own) / len(wanted | own) if wanted | own else 0.0
        if not shared or name in exclude or name == task.name or len(text) > RECIPE_CHARACTERS:
            continue
        if best is None or shared > best[0]:
            title = f"{found.recipe.summary} Entry point `{name}`, schema `{found.recipe.schema}`"
            best = (shared, ShownKernel(title=title, text=text))
    return best[1] if best else None


def take(memory: Memory | None, journal: Journal, task: KernelTask, exclude: Collection[str] = ()) -> Taken:
    """Kernels and notes for the first prompts: from memory, or, while it has none, from the nearest recipe.

    The task's own earlier kernel is tried before, and not shown.
    """

    def recall() -> dict[str, Any]:
        near = nearest_recipe(task, exclude)
        shown = (near,) if near else ()
        if memory is None:
            return asdict(Taken(kernels=shown))
        family, primitives = family_of(task), primitives_of(task)
        kernels = memory.exemplars(family, primitives, without_tasks=(task.key,))
        notes = memory.notes(family, primitives, purpose="draft")
        return asdict(
            Taken(
                kernels=tuple(
                    ShownKernel(title=f"{lesson.note} (verified on the simulator)", text=lesson.source)
                    for lesson in kernels
                )
                or shown,
                notes=tuple(lesson.line for lesson in notes),
                ids=tuple(lesson.id for lesson in (*kernels, *notes)),
            )
        )

    value = journal.decide("memory", recall)
    return Taken(
        kernels=tuple(ShownKernel(**kernel) for kernel in value["kernels"]),
        notes=tuple(value["notes"]),
        ids=tuple(value["ids"]),
    )


def known_kernels(memory: Memory | None, journal: Journal, task: KernelTask, target: str) -> tuple[str, ...]:
    """Kernels that were admitted for this target and may do for the task: its own, then the latest of its family.

    All are verified as if they had just been drafted, so one that an older verifier admitted is as good a start. A
    kernel of another task takes this one's name. A frozen memory gives none: it serves benchmarks.
    """

    def recall() -> list[str]:
        if memory is None or memory.frozen:
            return []
        admitted = [
            lesson
            for lesson in reversed(memory.rows())
            if (lesson.kind, lesson.target, lesson.dialect) == ("exemplar", target, memory.dialect)
        ]
        own = [lesson.source for lesson in admitted if lesson.task == task.key]
        family = [
            renamed(lesson.source, task.name)
            for lesson in admitted
            if lesson.task != task.key and lesson.family == family_of(task)
        ]
        return [*own[:1], *dict.fromkeys(family)][: MOST_RELATIVES + len(own[:1])]

    return tuple(journal.decide("known kernels", recall))


def renamed(source: str, entry_point: str) -> str:
    """The kernel under another name: every mention of its entry point, the decorated function, is replaced."""
    functions = [node for node in parse_python(source).body if isinstance(node, ast.FunctionDef)]
    entry = next((node.name for node in reversed(functions) if node.decorator_list), None)
    return source if entry is None else re.sub(rf"\b{re.escape(entry)}\b", entry_point, source)


def notes_on(
    memory: Memory | None, journal: Journal, task: KernelTask, error_class: str, purpose: Purpose = "repair"
) -> tuple[str, ...]:
    """What helped with this kind of error before; asked of the memory once in a run."""

    def recall() -> list[str]:
        if memory is None:
            return []
        lessons = memory.notes(family_of(task), primitives_of(task), purpose=purpose, error_class=error_class)
        return [lesson.line for lesson in lessons]

    return tuple(journal.decide(f"notes on {purpose} {error_class}", recall))


def leave(
    memory: Memory | None, task: KernelTask, target: str, run: str, taken: Taken, line: Sequence[Judged]
) -> None:
    """Remember the admitted kernel at the end of `line` and every correction on the way to it.

    Args:
        line: the candidates from the first draft to the admitted one.
    """
    if memory is None or memory.frozen:
        return
    admitted = line[-1]
    verdict, source = admitted.verdict, admitted.candidate.source
    assert verdict is not None
    assert source is not None
    about: dict[str, Any] = {
        "family": family_of(task),
        "primitives": called_instructions(source),
        "task": task.key,
        "verdict": verdict,
    }
    memory.remember(Exemplar(**about, target=target, source=source, summary=task.summary))
    for before, after in pairwise(line):
        change = _correction(before, after)
        if change is not None and before.verdict is not None:
            note = f"{before.verdict.message} {before.verdict.hint}".strip()
            memory.remember(
                Fix(
                    **about,
                    error_class=before.verdict.error_class,
                    note=note,
                    before=change[0],
                    after=change[1],
                )
            )
    memory.tried(taken.ids, task=task.key, run=run, purpose="draft", helped=True)


def leave_failure(memory: Memory | None, task: KernelTask, run: str, taken: Taken) -> None:
    """Count that what was shown did not lead to a kernel."""
    if memory is not None and not memory.frozen:
        memory.tried(taken.ids, task=task.key, run=run, purpose="draft", helped=False)


def _correction(before: Judged, after: Judged) -> tuple[str, str] | None:
    """The lines that changed between a refused candidate and its successor, if they are few and it came further."""
    if before.candidate.source is None or after.candidate.source is None or after.progress <= before.progress:
        return None
    old, new = before.candidate.source.splitlines(), after.candidate.source.splitlines()
    changed = [
        (old[a:b], new[c:d])
        for tag, a, b, c, d in difflib.SequenceMatcher(a=old, b=new, autojunk=False).get_opcodes()
        if tag != "equal"
    ]
    lines_before = _joined(part for part, _ in changed)
    lines_after = _joined(part for _, part in changed)
    if max(len(lines_before), len(lines_after)) > DIFF_LINES:
        return None
    return "\n".join(lines_before), "\n".join(lines_after)


def _joined(parts: Iterable[list[str]]) -> list[str]:
    return [line.strip() for part in parts for line in part if line.strip()]
