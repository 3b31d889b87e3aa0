"""Code of our own recipes, cut into functions, for prompts to show as verified: read from the files, never copied."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from neuron_port.registry import data_folder
from neuron_port.simulator.parsing import parse_python

MARGIN_LINES = 4  # shown before and after a call
WHOLE_FUNCTION_LINES = 24  # a function up to this length is shown whole


@dataclass(frozen=True, kw_only=True)
class RecipeCode:
    """A function of a recipe's kernel.py, or, with `function` "", the whole file."""

    recipe: str
    function: str
    text: str
    first_line: int
    constants: str = ""  # assignments of the file whose names the function mentions
    calls: tuple[tuple[str, int, int], ...] = ()  # dotted name, first and last line in the file


@cache
def _all_functions() -> tuple[RecipeCode, ...]:
    found: list[RecipeCode] = []
    for file in sorted(data_folder("recipes").glob("*/kernel.py")):
        found += _functions_of(file)
    return tuple(found)


def _functions_of(file: Path) -> list[RecipeCode]:
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    recipe = file.parent.name
    tree = parse_python(text)
    found = [RecipeCode(recipe=recipe, function="", text=text, first_line=1)]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            found.append(
                RecipeCode(
                    recipe=recipe,
                    function=node.name,
                    text="\n".join(lines[first - 1 : node.end_lineno]),
                    first_line=first,
                    constants=_constants_of(node, tree),
                    calls=tuple(calls_in(node)),
                )
            )
    return found


def _constants_of(function: ast.FunctionDef, module: ast.Module) -> str:
    names = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
    return "\n".join(
        ast.unparse(node)
        for node in module.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id in names
    )


def calls_in(tree: ast.AST) -> list[tuple[str, int, int]]:
    """Calls of dotted names, `("nisa.dma_copy", first line, last line)`, in order of line."""
    return sorted(
        (
            (f"{node.func.value.id}.{node.func.attr}", node.lineno, node.end_lineno or node.lineno)
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
        ),
        key=lambda call: (call[1], call[2]),
    )


def recipe_functions(without: Iterable[str] = ()) -> tuple[RecipeCode, ...]:
    """All functions of all recipes' kernels but those named, by recipe and then by line."""
    hidden = set(without)
    return tuple(code for code in _all_functions() if code.recipe not in hidden)


def use_of(instruction: str, without: Iterable[str] = ()) -> str:
    """A few lines of a verified kernel around a call of `nisa.<instruction>`; "" if no recipe calls it.

    Of all calls the one in the shortest function, which says most with the fewest lines.
    """
    name = f"nisa.{instruction}"
    users = [code for code in recipe_functions(without) if any(call[0] == name for call in code.calls)]
    if not users:
        return ""
    chosen = min(users, key=lambda code: (code.text.count("\n"), code.recipe, code.function))
    lines = chosen.text.splitlines()
    head = "\n".join(filter(None, [f"# recipes/{chosen.recipe}/kernel.py", chosen.constants]))
    if len(lines) <= WHOLE_FUNCTION_LINES:
        return "\n".join([head, *lines])
    _, first, last = next(call for call in chosen.calls if call[0] == name)
    start = max(0, first - chosen.first_line - MARGIN_LINES)
    stop = min(len(lines), last - chosen.first_line + 1 + MARGIN_LINES)
    return "\n".join([head, f"# in {chosen.function}", *lines[start:stop]])
