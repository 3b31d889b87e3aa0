"""What can be seen of a recipe without running it: lint, imports, and what its files must say."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from neuron_port.contributing.new import skeleton_text
from neuron_port.contributing.records import Check, judged
from neuron_port.errors import RecipeError
from neuron_port.recipe import OPERATIONS
from neuron_port.registry import RegisteredRecipe
from neuron_port.simulator.linting import lint_source
from neuron_port.simulator.parsing import parse_python

KERNEL_MODULES = {"nki", "math"}
HEAVY_MODULES = {"torch", "transformers", "jax", "triton"}
TARGETS = ("trn1", "trn2", "inf2")
LATENCY = re.compile(r"\d\s*(ns|us|µs|μs|ms)\b")
# "source.py says where it comes from", in the words that all of them use.
ORIGIN, LICENSE = re.compile(r"^Origin: \S", re.MULTILINE), re.compile(r"License: \S")
SHORTEST_PAGE_WORDS = 60


def check_lint(found: RegisteredRecipe) -> Check:
    """No error in kernel.py by the NKI compiler's rules; warnings are shown and do not count."""
    findings = lint_source(found.kernel.source, str(found.folder / "kernel.py"))
    errors = [finding for finding in findings if finding.severity == "error"]
    problems = [
        f"line {finding.line}: {finding.rule}: {finding.message} ({finding.cure})" for finding in errors
    ]
    others = [f"line {finding.line}: {finding.rule}" for finding in findings if finding.severity != "error"]
    summary = "kernel.py has nothing that NKI 0.6 refuses"
    if others:
        summary += f"; to look at: {', '.join(others)}"
    return judged("lint", summary, problems)


def check_imports(found: RegisteredRecipe) -> Check:
    """kernel.py imports only nki and math, so that it runs where AWS's compiler is; recipe.py imports no torch."""
    problems = [
        f"kernel.py line {line}: imports `{module}`; a kernel imports only nki and math"
        for line, module in _imports(found, "kernel.py")
        if module.split(".")[0] not in KERNEL_MODULES
    ]
    problems += [
        f"recipe.py line {line}: imports `{module}`; listing recipes must stay light: import it inside the function"
        for line, module in _imports(found, "recipe.py", only_top=True)
        if module.split(".")[0] in HEAVY_MODULES
    ]
    return judged("imports", "kernel.py imports only nki and math; recipe.py imports no torch", problems)


def _imports(found: RegisteredRecipe, file: str, *, only_top: bool = False) -> Iterator[tuple[int, str]]:
    """(line, module) of every import of a file."""
    tree = parse_python(found.source_text(file))
    for node in tree.body if only_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or "." * node.level


def check_recipe(found: RegisteredRecipe) -> Check:
    """recipe.py is consistent: operation, schema, cases of every kind, sizes that the cases keep to."""
    recipe = found.recipe
    problems = []
    if recipe.operation not in OPERATIONS:
        problems.append(f"operation `{recipe.operation}` is none of {', '.join(OPERATIONS)}")
    kinds = {case.kind for case in recipe.cases}
    problems += [f"no case of kind `{kind}`" for kind in ("ordinary", "tail", "stress") if kind not in kinds]
    names = [case.name for case in recipe.cases]
    problems += [
        f"two cases are called `{name}`" for name in sorted({n for n in names if names.count(n) > 1})
    ]
    for case in recipe.cases:
        problems += [
            f"case `{case.name}`: {name} = {case.sizes[name]} is outside of sizes[{name!r}]"
            for name, size in recipe.sizes.items()
            if name in case.sizes and case.sizes[name] not in size
        ]
        problems += [
            f"case `{case.name}`: the schema has no attribute `{name}`"
            for name in case.attributes
            if name not in recipe.attribute_arguments
        ]
    if not recipe.sizes:
        problems.append("`sizes` is empty: the kernel would be tried on its own cases only")
    summary = f"{len(recipe.cases)} cases, {len(recipe.sizes)} sizes that vary: {', '.join(recipe.sizes)}"
    return judged("recipe", summary, problems)


def check_documents(found: RegisteredRecipe) -> Check:
    """README.md states the latency per target, recipe.py has a header, source.py its origin and licence."""
    problems = []
    for file in ("kernel.py", "reference.py", "source.py", "README.md"):
        try:
            if not found.source_text(file).strip():
                problems.append(f"{file} is empty")
        except RecipeError as error:
            problems.append(error.message)
    if problems:
        return judged("documents", "", problems)
    page = found.source_text("README.md")
    if not page.startswith(f"# {found.name}"):
        problems.append(f"README.md does not begin with `# {found.name}`")
    if len(page.split()) < SHORTEST_PAGE_WORDS:
        problems.append(
            f"README.md has {len(page.split())} words: say what, layouts, limits, how it is tiled"
        )
    new = {
        file: found.source_text(file) == skeleton_text(file, found.name)
        for file in ("kernel.py", "README.md")
    }
    if new["README.md"] and not new["kernel.py"]:
        problems.append("README.md is still the one that `recipes new` wrote, of another kernel")
    missing = [target for target in TARGETS if target not in page]
    if missing or LATENCY.search(page) is None:
        where = f" for {', '.join(missing)}" if missing else ""
        problems.append(
            f"README.md states no predicted latency{where}: copy the figures that this check prints"
        )
    if not found.recipe.documentation:
        problems.append("recipe.py has no header: its first docstring is what `recipes show` prints")
    source = found.source_text("source.py")
    if ORIGIN.search(source) is None:
        problems.append("source.py does not say where it comes from: a line `Origin: ...` in its docstring")
    if LICENSE.search(source) is None:
        problems.append("source.py has no licence: `License: Apache-2.0.` in its docstring")
    summary = "README.md with latency per target, header of recipe.py, origin and licence of source.py"
    return judged("documents", summary, problems)
