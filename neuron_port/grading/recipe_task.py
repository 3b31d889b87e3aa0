"""A recipe as a task: everything of it but the kernel, with its GPU source as what a kernel may be drafted from."""

from __future__ import annotations

import ast
import inspect
import re

from neuron_port.errors import RecipeError
from neuron_port.registry import RegisteredRecipe
from neuron_port.simulator.parsing import parse_python
from neuron_port.task import KernelTask, Source

# "x: [T, H] @ HBM, float32", "k, v: [B, S, G, D] @ HBM", "Returns: [T, H] @ HBM" in a kernel's docstring
_ARGUMENT_LAYOUT = re.compile(r"^\s*(?P<names>\w+(?:,\s*\w+)*):\s*(?P<layout>\[[^\]]*\])", re.MULTILINE)
_LICENSE = re.compile(r"License:\s*(?P<name>[\w.+-]*[\w+])")


def task_from_recipe(found: RegisteredRecipe) -> KernelTask:
    """The task that the recipe's kernel solves.

    Raises:
        RecipeError: the kernel's docstring does not give the layout of a tensor argument.
    """
    recipe = found.recipe
    return KernelTask(
        name=recipe.name,
        summary=recipe.summary,
        schema=recipe.schema,
        layout=_layout(found),
        reference=found.reference,
        reference_text=found.source_text("reference.py"),
        inputs=recipe.inputs,
        inputs_text=inspect.getsource(recipe.inputs),
        cases=recipe.cases,
        sizes=recipe.sizes,
        dtypes=recipe.dtypes,
        tolerance=recipe.tolerance,
        sources=(_source(found),),
        flops=recipe.flops,
    )


def _layout(found: RegisteredRecipe) -> dict[str, str]:
    """Shapes in terms of sizes, from the docstring of the kernel's entry point; results that it puts in words too."""
    document = _entry_document(found)
    layout = {
        name.strip(): match["layout"]
        for match in _ARGUMENT_LAYOUT.finditer(document)
        for name in match["names"].split(",")
    }
    missing = [name for name in found.recipe.tensor_arguments if name not in layout]
    if missing:
        raise RecipeError(
            f"Recipe `{found.name}`: the docstring of `{found.name}` in kernel.py gives no layout for: `{missing[0]}`",
            hint=f"Write a line `{missing[0]}: [sizes] @ HBM` below `Args:`.",
        )
    known = {name: layout[name] for name in found.recipe.tensor_arguments}
    words = re.search(r"^Returns: ?(?P<words>.+?)(?:\.\s|\.?\n\S|\.?\Z)", document, re.MULTILINE | re.DOTALL)
    if words:
        bracket = re.match(r"\[[^\]]*\]", words["words"])
        known["return"] = bracket.group() if bracket else " ".join(words["words"].split())
    return known


def _entry_document(found: RegisteredRecipe) -> str:
    for node in parse_python(found.kernel.source).body:
        if isinstance(node, ast.FunctionDef) and node.name == found.kernel.entry_point:
            return ast.get_docstring(node) or ""
    raise RecipeError(f"Recipe `{found.name}`: kernel.py has no function `{found.kernel.entry_point}`")


def _source(found: RegisteredRecipe) -> Source:
    text = found.source_text("source.py")
    license_name = _LICENSE.search(text)
    return Source(
        language="triton",
        text=text,
        origin=f"recipes/{found.name}/source.py",
        license=license_name["name"] if license_name else None,
    )
