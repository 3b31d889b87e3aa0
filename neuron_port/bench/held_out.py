"""What a benchmark must not show: the kernel that solves the task, be it among the recipes or in the memory."""

from __future__ import annotations

import ast
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuron_port.drafting.keeping.files import make_folder, sync_folder
from neuron_port.drafting.memory.lessons import Memory, Recalled
from neuron_port.recipe import NKI_VERSION
from neuron_port.registry import RegisteredRecipe, Registry
from neuron_port.simulator.parsing import parse_python
from neuron_port.task import VERIFIER_VERSION, KernelTask
from neuron_port.types import digest

MEMORY_FILE = "memory.sqlite"
SAME = 1e-4  # relative: two ways to write the same function in float32


@dataclass(frozen=True, kw_only=True)
class FrozenMemory:
    """A copy of a memory, without what it knows about the tasks that are measured; `digest` names its lessons."""

    memory: Memory
    lessons: int
    digest: str


def recipes_that_solve(
    task: KernelTask, recipes: Iterable[RegisteredRecipe] | None = None
) -> tuple[str, ...]:
    """Names of the recipes that have the task's name, or whose reference gives the task's answers on its own inputs."""
    found = Registry().values() if recipes is None else recipes
    return tuple(one.name for one in found if one.name == task.name or _is_same_function(task, one))


def freeze_memory(path: Path, folder: Path, tasks: Sequence[KernelTask]) -> FrozenMemory:
    """The memory at `path` as it is now, without lessons on `tasks`.

    The copy stays in `folder`, so that a resumed benchmark has the same. A memory that does not exist is an empty one.
    """
    copy = folder / MEMORY_FILE
    if not copy.exists():
        make_folder(folder)
        _copy(path, copy)
    names = {task.name for task in tasks}
    keys = {task.key for task in tasks}
    with Memory(copy, dialect=NKI_VERSION, verifier_version=VERIFIER_VERSION) as memory:
        for lesson in memory.rows():
            if lesson.task in keys or _functions(lesson.source) & names:
                memory.forget(lesson.id)
    frozen = Memory(copy, dialect=NKI_VERSION, verifier_version=VERIFIER_VERSION, frozen=True)
    lessons = frozen.rows()
    return FrozenMemory(
        memory=frozen, lessons=len(lessons), digest=digest([_content(one) for one in lessons])
    )


def _is_same_function(task: KernelTask, found: RegisteredRecipe) -> bool:
    import torch

    from neuron_port.parity.draw import Draw

    case = next(case for case in task.cases if case.kind == "ordinary")
    tensors = [
        None if array is None else torch.from_numpy(np.asarray(array).copy())
        for array in task.inputs(case.sizes, Draw(1))
    ]
    expected = _results(task.reference(*tensors, **case.attributes))
    try:
        actual = _results(found.reference(*tensors, **case.attributes))
    except Exception:  # another function's inputs: however it fails, it does not compute the same
        return False
    return len(actual) == len(expected) and all(
        mine.shape == theirs.shape
        and bool(torch.allclose(mine.double(), theirs.double(), rtol=SAME, atol=SAME))
        for mine, theirs in zip(actual, expected, strict=True)
    )


def _results(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _functions(source: str) -> set[str]:
    """Names of the functions that a lesson's kernel defines."""
    try:
        tree = parse_python(source)
    except SyntaxError:
        return set()
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def _copy(path: Path, copy: Path) -> None:
    """Whole or absent; an SQLite file that is in use is copied by SQLite."""
    if not path.exists():
        with Memory(copy, dialect=NKI_VERSION, verifier_version=VERIFIER_VERSION):
            return
    aside = copy.with_name(f".{copy.name}.part")
    aside.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(aside)) as target:
        source.backup(target)
    aside.rename(copy)
    sync_folder(copy.parent)


def _content(lesson: Recalled) -> tuple[object, ...]:
    """What decides how a lesson is shown and ranked."""
    return (
        lesson.id, lesson.kind, lesson.family, lesson.primitives, lesson.error_class, lesson.note, lesson.before,
        lesson.after, lesson.source, lesson.successes, lesson.trials, lesson.provisional, lesson.stale,
    )  # fmt: skip
