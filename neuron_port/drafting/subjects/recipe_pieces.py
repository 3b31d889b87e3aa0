"""The pieces of a generated `recipe.py` that do not depend on a layer: inputs, flops, cases, and Python literals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from neuron_port.drafting.subjects.code_layout import call_lines, literal_lines
from neuron_port.drafting.subjects.reference_code import Argument
from neuron_port.recipe import Case, Size

LETTERS = "HNKMLGEFQR"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a kernel is tried on: its arguments with named sizes, the cases, and what is known of the work."""

    arguments: tuple[Argument, ...]  # activations, then weights; "T" where the size is free
    weights: frozenset[str]  # names of those that are weights
    sizes: Mapping[str, int]  # letters of the fixed sizes
    free: Mapping[str, Size]
    cases: tuple[Case, ...]
    integers: Mapping[str, str]  # integer arguments: the exclusive upper bound, a letter or a number
    reduction_length: str | None
    flops: tuple[int, int, int] | None  # a * T * T + b * T + c; None: not known
    result_shapes: tuple[tuple[int | str, ...], ...]
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    schema_attributes: str = ""  # ", float eps"
    letters: Mapping[int, str] = field(default_factory=dict)

    def shape_words(self, shape: Sequence[int | str]) -> str:
        """[T, H]."""
        return f"[{', '.join(self.letter(size) for size in shape)}]"

    def letter(self, size: int | str) -> str:
        return size if isinstance(size, str) else self.letters.get(size, str(size))

    @property
    def layout(self) -> dict[str, str]:
        layout = {item.name: self.shape_words(item.shape) for item in self.arguments}
        layout["return"] = ", ".join(self.shape_words(shape) for shape in self.result_shapes)
        return layout

    @property
    def schema(self) -> str:
        tensors = ", ".join(f"Tensor {item.name}" for item in self.arguments)
        count = len(self.result_shapes)
        result = "Tensor" if count == 1 else f"({', '.join(['Tensor'] * count)})"
        return f"({tensors}{self.schema_attributes}) -> {result}"


def size_letters(arguments: Iterable[Argument]) -> dict[int, str]:
    """A letter for every fixed size above one: H for the width of the first activation, then in order."""
    arguments = tuple(arguments)
    first = [arguments[0].shape[-1]] if arguments and arguments[0].is_float else []
    sizes = [*first, *(size for item in arguments for size in item.shape)]
    distinct = dict.fromkeys(size for size in sizes if isinstance(size, int) and size > 1)
    return {size: LETTERS[n] if n < len(LETTERS) else f"N{n}" for n, size in enumerate(distinct)}


def inputs_code(problem: Problem) -> list[str]:
    """`def inputs(sizes, draw)`: activations with the case's scale and style, weights plain, indices in range."""
    words = {name: f'sizes["{name}"]' for name in (*problem.sizes, *problem.free)}

    def shape(sizes: Sequence[int | str]) -> str:
        items = [words.get(problem.letter(size), problem.letter(size)) for size in sizes]
        return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"

    lines = [
        "def inputs(sizes: Any, draw: Any) -> tuple[Any, ...]:",
        f'    """{_sentence_of_shapes(problem)}"""',
    ]
    made = []
    for item in problem.arguments:
        if item.name in problem.integers:
            limit = problem.integers[item.name]
            made.append(f"draw.integers(0, {words.get(limit, limit)}, {shape(item.shape)})")
        elif item.name in problem.weights:
            if len(item.shape) == 1:  # a matrix of one row: numbers of size one, whatever the case's scale
                made.append(f"draw.weight((1, {shape(item.shape)[1:-2]})).reshape({shape(item.shape)})")
            else:
                made.append(f"draw.weight({shape(item.shape)})")
        else:
            made.append(f"draw.normal({shape(item.shape)})")
    together = f"    return ({', '.join(made)}{',' if len(made) == 1 else ''})"
    if len(together) <= 110:
        return [*lines, together]
    return [*lines, "    return (", *(f"        {item}," for item in made), "    )"]


def _sentence_of_shapes(problem: Problem) -> str:
    words = ", ".join(f"{item.name} {problem.shape_words(item.shape)}" for item in problem.arguments)
    return f"{words}." if len(words) < 90 else "The tensors of the schema, in order."


def flops_code(problem: Problem) -> list[str]:
    """`def flops(*shapes)`, from what torch counts at three sizes."""
    lines = ["def flops(*shapes: tuple[int, ...]) -> int:"]
    if problem.flops is None:
        return [*lines, '    """Not known: counted as none."""', "    return 0"]
    square, linear, constant = problem.flops
    if not any(problem.flops):
        return [*lines, '    """TensorE is not used."""', "    return 0"]
    lines.append('    """Two per multiply-add."""')
    place = next(
        ((n, item.free_axis) for n, item in enumerate(problem.arguments) if item.free_axis is not None), None
    )
    if place is None:
        return [*lines, f"    return {constant + linear + square}"]
    lines.append(f"    tokens = shapes[{place[0]}][{place[1]}]")
    terms = [
        *([f"{square} * tokens * tokens"] if square else []),
        *([f"{linear} * tokens"] if linear else []),
        *([str(constant)] if constant else []),
    ]
    return [*lines, f"    return {' + '.join(terms)}"]


def recipe_lines(
    problem: Problem, *, name: str, summary: str, operation: str, sequence_axes: Sequence[int | None]
) -> list[str]:
    """`RECIPE = Recipe(...)`."""
    axes = ", ".join(map(str, sequence_axes))
    lines = ["RECIPE = Recipe("]
    lines += [f"    name={text(name)},"]
    lines += [f"    {line}" for line in call_lines(f"summary={text(summary)},", [], "")]
    lines += [f"    schema={text(problem.schema)},", f"    operation={text(operation)},"]
    lines += ["    bind=bind,", "    forward=forward,"]
    lines.append(f"    sequence_axes=({axes}{',' if len(sequence_axes) == 1 else ''}),")
    lines += ["    inputs=inputs,", "    flops=flops,"]
    if problem.reduction_length:
        lines.append(f"    tolerance=Tolerance(reduction_length={text(problem.reduction_length)}),")
    if problem.free:
        lines += [f"    {line}" for line in _sizes_lines(problem, operation)]
    if problem.dtypes != ("float32", "bfloat16"):
        lines.append(f"    dtypes={python(problem.dtypes)},")
    lines.append("    cases=(")
    for case in problem.cases:
        lines += [f"        {line}" for line in case_lines(case)]
    return [*lines, "    ),", ")"]


def _sizes_lines(problem: Problem, operation: str) -> list[str]:
    """`sizes={...}`; of a layer, the constant that bind looks at too."""
    if operation != "function":
        return literal_lines("sizes={", [f"{text(key)}: TOKENS" for key in problem.free], "},", indent=4)
    items = []
    for key, size in problem.free.items():
        multiple = f", multiple={size.multiple}" if size.multiple != 1 else ""
        items.append(f"{text(key)}: Size(least={size.least}, most={size.most}{multiple})")
    return literal_lines("sizes={", items, "},", indent=4)


def case_lines(case: Case) -> list[str]:
    parts = [f"name={text(case.name)}", f"kind={text(case.kind)}", f"sizes={python(dict(case.sizes))}"]
    if case.attributes:
        parts.append(f"attributes={python(dict(case.attributes))}")
    if case.scale != 1.0:
        parts.append(f"scale={case.scale!r}")
    if case.style != "normal":
        parts.append(f"style={text(case.style)}")
    return literal_lines_with_comma("Case(", parts, ")")


def literal_lines_with_comma(opening: str, items: Sequence[str], closing: str) -> list[str]:
    """A call inside a display: the line ends with a comma."""
    return literal_lines(opening, items, f"{closing},", indent=8)


# -- literals


def text(value: str) -> str:
    """A string in double quotes, as the formatter writes it."""
    written = repr(value)
    if written.startswith("'") and '"' not in value:
        return f'"{written[1:-1]}"'.replace("\\'", "'")
    return written


def python(value: Any) -> str:
    """A literal of JSON-like values, in double quotes."""
    if isinstance(value, str):
        return text(value)
    if isinstance(value, float) and value != value:
        return 'float("nan")'
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return f'float("{value}")'
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{python(key)}: {python(item)}' for key, item in value.items())}}}"
    if isinstance(value, tuple):
        return f"({', '.join(map(python, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, list):
        return f"[{', '.join(map(python, value))}]"
    return repr(value)
