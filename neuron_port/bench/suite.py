"""The development suite: a folder in `bench/tasks/` is a task, its presence is its registration.

A folder holds `task.py` (`TASK = described(__file__, ...)`, torch imported inside the reference only), `source.py`
(a GPU kernel of our own that computes the same), `golden.py` (our own correct NKI kernel) and `scripted/` (replies as
a language model might give them, see `scripts.py`). Loading imports no torch.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuron_port.errors import UsageError
from neuron_port.task import Invariant, KernelTask, Source

TASKS_FOLDER = Path(__file__).parent / "tasks"
ROW_SUM_TOLERANCE = 2e-2  # a row of bfloat16 weights, each rounded by up to 2^-9, sums to 1 within this


@dataclass(frozen=True)
class BenchTask:
    """A task together with its folder: golden kernel and scripted replies are read from there."""

    task: KernelTask
    folder: Path

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def golden(self) -> str:
        """The source of a kernel that is right."""
        return _read(self.folder / "golden.py")


def load_suite(names: Sequence[str] | None = None, folder: Path = TASKS_FOLDER) -> tuple[BenchTask, ...]:
    """The tasks of these names in this order; all, by name, if none are given.

    Raises:
        UsageError: a name that no folder has, or a folder whose task.py cannot be loaded.
    """
    known = {
        path.name: path
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.name.startswith((".", "_"))
    }
    return tuple(_load(_find(name, known)) for name in (known if names is None else names))


def described(file: str, **fields: Any) -> KernelTask:
    """A `KernelTask` whose texts (reference, inputs, GPU source) are taken from the folder of `file`."""
    folder = Path(file).parent
    source = Source(
        language="triton",
        text=_read(folder / "source.py"),
        origin=f"neuron_port/bench/tasks/{folder.name}/source.py",
        license="Apache-2.0",  # ours
    )
    return KernelTask(
        reference_text=inspect.getsource(fields["reference"]),
        inputs_text=inspect.getsource(fields["inputs"]),
        sources=(source,),
        **fields,
    )


def rows_sum_to_one() -> Invariant:
    """The last axis of the first output sums to 1, within what rounding to bfloat16 allows."""

    def check(inputs: tuple[Any, ...], attributes: Mapping[str, Any], outputs: tuple[Any, ...]) -> str:
        sums = np.asarray(outputs[0], dtype=np.float32).sum(-1)
        wrong = np.argwhere(~(np.abs(sums - 1.0) < ROW_SUM_TOLERANCE))
        if not len(wrong):
            return ""
        place = tuple(int(index) for index in wrong[0])
        return f"{len(wrong)} rows do not sum to 1: row {place} sums to {float(sums[place]):.4g}"

    return Invariant(name="rows sum to 1", check=check)


def _find(name: str, known: Mapping[str, Path]) -> Path:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean `{near[0]}`?" if near else f"Known: {', '.join(known)}"
        raise UsageError(f"Unknown benchmark task: `{name}`", hint=hint)
    return known[name]


def _load(folder: Path) -> BenchTask:
    task = getattr(_execute(folder / "task.py"), "TASK", None)
    if not isinstance(task, KernelTask):
        raise UsageError(f"{folder / 'task.py'} defines no `TASK = described(__file__, ...)`")
    if task.name != folder.name:
        raise UsageError(f"Task `{task.name}` stands in folder `{folder.name}`", hint="They must agree.")
    return BenchTask(task, folder)


def _execute(path: Path) -> Any:
    """Run a task's file as a module of its own; an error in it becomes one line that names file and line."""
    _read(path)
    module_name = f"neuron_port_bench.{path.parent.name}.task"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # inspect.getsource looks modules up by name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = frames[-1].lineno if frames else getattr(error, "lineno", "?")
        raise UsageError(f"{path}:{line}: {type(error).__name__}: {error}") from error
    return module


def _read(path: Path) -> str:
    if not path.is_file():
        raise UsageError(f"Task folder `{path.parent.name}` has no {path.name}", hint=f"Add {path}")
    return path.read_text()
