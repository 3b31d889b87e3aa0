"""`FILE.py:NAME` as a task: a torch function, an nn.Module class, or a `TASK = KernelTask(...)` of the user's own.

The user says what torch cannot: the shapes, in named sizes, and which values a size may take.

    -i x=TxH -i weight=H -i ids=T:index<V    --size T=1..300 --size H=512    -s eps=1e-6

The file is the user's and is run as such; an error in it becomes one sentence with file and line.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from neuron_port.drafting.subjects.function_code import delegating_recipe_text, function_recipe_text
from neuron_port.drafting.subjects.function_inputs import (
    InputSpec,
    parse_inputs,
    parse_settings,
    parse_sizes,
    sized_cases,
)
from neuron_port.drafting.subjects.layer_build import LayerTask, sums
from neuron_port.drafting.subjects.module_task import module_task
from neuron_port.drafting.subjects.recipe_pieces import Problem, inputs_code
from neuron_port.drafting.subjects.reference_code import Argument, run_text
from neuron_port.drafting.subjects.user_file import failed_at, load_user_file
from neuron_port.errors import UsageError
from neuron_port.recipe import Case, Recipe, Size
from neuron_port.task import KernelTask, Source

SCHEMA_TYPES = {bool: "bool", int: "int", float: "float", str: "str"}


@dataclass(frozen=True, kw_only=True)
class FunctionTask:
    """A task from a user's file, and the files that its folder gets. It serves no layer of a model."""

    task: KernelTask
    recipe_text: str
    reference_text: str
    place: str  # "file.py:name"

    @property
    def serves(self) -> str:
        return f"the function `{self.place}`"


def function_task(
    place: str,
    *,
    inputs: Sequence[str] = (),
    sizes: Sequence[str] = (),
    settings: Sequence[str] = (),
    sources: Sequence[Source] = (),
) -> FunctionTask | LayerTask:
    """The task of what stands at `FILE.py:NAME`.

    Args:
        inputs: "x=TxH", "ids=T:index<V", "weight=H:weight": the tensors, in named sizes or numbers.
        sizes: "T=1..300", "T=128..1024/128" (multiples of 128), "H=512".
        settings: "eps=1e-6": attributes of a function, arguments of a module's constructor.
        sources: GPU code for the same, to draft from.
    Raises:
        UsageError: what is missing or wrong, and where.
    """
    path, name = _split(place)
    module = load_user_file(path)
    subject = getattr(module, name, None)
    if subject is None:
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean `{near[0]}`?" if near else f"It defines {', '.join(known) or 'nothing'}."
        raise UsageError(f"`{path}` defines no `{name}`", hint=hint)
    if isinstance(subject, KernelTask):
        return _given_task(subject, path, name, sources)
    named_sizes = parse_sizes(sizes)
    specs = parse_inputs(inputs, named_sizes)
    values = parse_settings(settings)
    if isinstance(subject, type) and issubclass(subject, torch.nn.Module):
        return module_task(subject, path, specs, named_sizes, values, sources)
    if not inspect.isfunction(subject):
        raise UsageError(
            f"`{place}` is a `{type(subject).__name__}`",
            hint="Name a function, an nn.Module class, or a KernelTask.",
        )
    return _FunctionBuild(subject, path, specs, named_sizes, values, sources).task()


def _split(place: str) -> tuple[Path, str]:
    file, colon, name = place.rpartition(":")
    if not colon or not name.isidentifier():
        raise UsageError(f"`{place}` does not name a function", hint="Write FILE.py:NAME.")
    return Path(file), name


class _FunctionBuild:
    """A plain function on its way to a task."""

    def __init__(
        self,
        function: Callable[..., Any],
        path: Path,
        specs: Sequence[InputSpec],
        sizes: Mapping[str, Size],
        attributes: Mapping[str, Any],
        sources: Sequence[Source],
    ) -> None:
        self.function, self.path, self.sources = function, path, tuple(sources)
        self.name = function.__name__
        self.sizes = sizes
        self.attributes = attributes
        self.specs = self._ordered(specs)
        self.fixed = {name: size.least for name, size in sizes.items() if size.least == size.most}
        self.free = {name: size for name, size in sizes.items() if name not in self.fixed}

    def _ordered(self, specs: Sequence[InputSpec]) -> list[InputSpec]:
        """The inputs in the order of the function's parameters, which must begin with them."""
        parameters = inspect.signature(self.function).parameters
        given = {spec.name: spec for spec in specs}
        place = f"`{self.path}:{self.name}`"
        for name in (*given, *self.attributes):
            if name not in parameters:
                near = difflib.get_close_matches(name, parameters, n=1)
                hint = f"Did you mean `{near[0]}`?" if near else f"It takes {', '.join(parameters)}."
                raise UsageError(f"{place} has no parameter `{name}`", hint=hint)
        missing = [
            name
            for name, item in parameters.items()
            if item.default is item.empty
            and name not in given
            and name not in self.attributes
            and item.kind not in (item.VAR_POSITIONAL, item.VAR_KEYWORD)
        ]
        if missing or not given:
            wanted = missing[0] if missing else next(iter(parameters), "x")
            raise UsageError(
                f"{place} needs `{wanted}`, and nothing says what it is",
                hint=f"A tensor: -i {wanted}=TxH --size T=1..300 --size H=512. Anything else: -s {wanted}=VALUE.",
            )
        leading = list(parameters)[: len(given)]
        late = [name for name in given if name not in leading]
        if late:
            raise UsageError(
                f"{place}: tensor `{late[0]}` comes after a parameter that is no tensor",
                hint="A kernel takes its tensors first: write a function that does, and calls this one.",
            )
        return [given[name] for name in leading]

    def task(self) -> FunctionTask:
        arguments = tuple(
            Argument(name=spec.name, shape=spec.shape, is_float=not spec.limit) for spec in self.specs
        )
        text = self._file_text()
        result_shapes = self._result_shapes()
        problem = Problem(
            arguments=arguments,
            weights=frozenset(spec.name for spec in self.specs if spec.kind == "weight"),
            sizes=self.fixed,
            free=self.free,
            cases=sized_cases(
                self.sizes, dict(self.attributes), any(spec.kind == "float" for spec in self.specs)
            ),
            integers={spec.name: spec.limit for spec in self.specs if spec.limit},
            reduction_length=self._reduction(text),
            flops=None,
            result_shapes=result_shapes,
            schema_attributes=_schema_attributes(self.attributes),
        )
        summary = _summary(self.function)
        recipe_text = function_recipe_text(problem, name=self.name, summary=summary, place=self.path.name)
        recipe: Recipe = run_text(recipe_text, f"{self.name}/recipe.py")["RECIPE"]
        self._try(recipe)
        task = KernelTask(
            name=self.name,
            summary=summary,
            schema=recipe.schema,
            layout=problem.layout,
            reference=self.function,
            reference_text=text,
            inputs=recipe.inputs,
            inputs_text="\n".join(inputs_code(problem)),
            cases=recipe.cases,
            sizes=recipe.sizes,
            dtypes=recipe.dtypes,
            tolerance=recipe.tolerance,
            sources=self.sources,
        )
        return FunctionTask(
            task=task, recipe_text=recipe_text, reference_text=text, place=f"{self.path.name}:{self.name}"
        )

    def _file_text(self) -> str:
        """The user's file, which must be able to stand alone in the draft's folder."""
        text = self.path.read_text(encoding="utf-8")
        return text if text.endswith("\n") else f"{text}\n"

    def _tensors(self, sizes: Mapping[str, int], dtype: torch.dtype) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(1)
        made = []
        for spec in self.specs:
            shape = tuple(sizes[size] if isinstance(size, str) else size for size in spec.shape)
            if spec.limit:
                limit = sizes[spec.limit] if spec.limit in sizes else int(spec.limit)
                made.append(torch.randint(0, limit, shape, generator=generator, dtype=torch.int32))
            else:
                made.append(torch.randn(shape, generator=generator).to(dtype))
        return made

    def _run(self, sizes: Mapping[str, int], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """The reference at some sizes.

        Raises:
            UsageError: it fails, or returns what is no tensor.
        """
        tensors = self._tensors(sizes, dtype)
        shapes = ", ".join(f"{s.name} {list(t.shape)}" for s, t in zip(self.specs, tensors, strict=True))
        try:
            with torch.no_grad():
                result = self.function(*tensors, **self.attributes)
        except Exception as error:  # the function is the user's
            raise UsageError(
                f"{failed_at(error, self.path)} (`{self.name}` on {str(dtype).removeprefix('torch.')} {shapes})",
                hint="Check the shapes given with -i and --size; a reference must run in float32, bfloat16 and float64.",
            ) from error
        outputs = tuple(result) if isinstance(result, (tuple, list)) else (result,)
        for output in outputs:
            if not isinstance(output, torch.Tensor):
                raise UsageError(
                    f"`{self.path}:{self.name}` returns a `{type(output).__name__}`",
                    hint="A reference returns a tensor, or a tuple of tensors.",
                )
        if not outputs:
            raise UsageError(f"`{self.path}:{self.name}` returns nothing", hint="Return a tensor.")
        return outputs

    def _result_shapes(self) -> tuple[tuple[int | str, ...], ...]:
        """The results' shapes in named sizes: an axis that follows a size has its name."""
        sizes = {name: size.least for name, size in self.sizes.items()}
        base = self._run(sizes, torch.float32)
        shapes: list[list[int | str]] = [
            [
                next((name for name, value in self.fixed.items() if value == axis), axis)
                for axis in output.shape
            ]
            for output in base
        ]
        for name, size in self.free.items():
            for larger, output in enumerate(
                self._run({**sizes, name: size.least + size.multiple}, torch.float32)
            ):
                for axis, (before, after) in enumerate(zip(base[larger].shape, output.shape, strict=False)):
                    if before != after:
                        shapes[larger][axis] = name
        return tuple(tuple(shape) for shape in shapes)

    def _try(self, recipe: Recipe) -> None:
        """Every dtype that a judge needs, at the least sizes."""
        sizes = {name: size.least for name, size in self.sizes.items()}
        for dtype in (torch.bfloat16, torch.float64):
            for output in self._run(sizes, dtype):
                if output.is_floating_point() and output.dtype is not dtype:
                    raise UsageError(
                        f"`{self.path}:{self.name}` is given {dtype} and returns {output.dtype}",
                        hint="End with .to(x.dtype): a kernel returns the dtype that it is given.",
                    )

    def _reduction(self, text: str) -> str | None:
        if not sums(inspect.getsource(self.function)) and not sums(text):
            return None
        candidates = self.fixed or {
            name: size.most for name, size in self.free.items()
        }  # rows are free, sums are not
        return max(candidates, key=candidates.__getitem__, default=None)


def _schema_attributes(attributes: Mapping[str, Any]) -> str:
    parts = []
    for name, value in attributes.items():
        kind = SCHEMA_TYPES.get(type(value))
        if kind is None:
            raise UsageError(
                f"Attribute `{name}` is a `{type(value).__name__}`", hint="Use a number or a word."
            )
        parts.append(f", {kind} {name}")
    return "".join(parts)


def _summary(function: Callable[..., Any]) -> str:
    text = (inspect.getdoc(function) or "").strip().splitlines()
    first = text[0].strip() if text else ""
    return first if 0 < len(first) <= 90 else f"The function {function.__name__}."


# -- a task that the file defines


def _given_task(task: KernelTask, path: Path, name: str, sources: Sequence[Source]) -> FunctionTask:
    """`TASK = KernelTask(...)`: taken as it is."""
    if not task.name.isidentifier():
        raise UsageError(f"`{path}:{name}` has the name `{task.name}`, which is no identifier")
    case: Case | None = next(iter(task.cases), None)
    if case is None:
        raise UsageError(f"`{path}:{name}` has no cases", hint="Give it at least one Case.")
    text = path.read_text(encoding="utf-8")
    text = f"{text.rstrip()}\n\n{task.name} = {name}.reference\n"
    whole = replace(task, sources=(*task.sources, *sources)) if sources else task
    return FunctionTask(
        task=whole,
        recipe_text=delegating_recipe_text(task, variable=name),
        reference_text=text,
        place=f"{path.name}:{name}",
    )
