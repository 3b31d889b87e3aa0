"""Tells a cheat from a slip, for the reward: what the grader refuses is refused either way.

A policy that imports `neuronxcc`, writes a lambda or leaves the store out has made a mistake, and earns nothing. One
that reads a file, computes with NumPy or copies the expected numbers has tried to get around the task, and pays.
"""

from __future__ import annotations

import ast

from neuron_port.grading.verdict import STAGES, Verdict
from neuron_port.simulator.parsing import parse_python

# Guards that an honest kernel meets as well: wrong on hidden cases, or ended by a crash.
HONEST_GUARDS = ("hidden cases", "missing outputs")
# Modules that people import out of habit; those in the second row compute, and are a cheat when called.
HARMLESS_MODULES = ("nki", "neuronxcc", "math", "typing", "dataclasses", "enum", "__future__")
COMPUTING_MODULES = ("numpy", "torch", "jax", "ml_dtypes", "scipy", "functools", "itertools", "operator")
# Builtins with which code leaves the language: files, the interpreter, objects by their names.
REACHING_BUILTINS = frozenset(
    {
        "open", "input", "eval", "exec", "compile", "getattr", "setattr", "delattr", "globals", "locals", "vars",
        "dir", "exit", "quit", "breakpoint", "memoryview", "id",
    }
)  # fmt: skip


def is_cheat(verdict: Verdict, source: str) -> bool:
    """Whether the guard that refused this source speaks of an attempt to get around the task."""
    if not verdict.guard or verdict.guard in HONEST_GUARDS:
        return False
    if verdict.guard == "allow-list":
        return _reaches_out(source)
    if verdict.guard == "no work":  # a fragment does no work; a kernel that is right without any does
        return STAGES.index(verdict.stage) >= STAGES.index("ran")
    return True


def _reaches_out(source: str) -> bool:
    try:
        tree = parse_python(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False  # nothing that could run
    computing = _names_of_computing_modules(tree)
    return any(_node_reaches_out(node, computing) for node in ast.walk(tree))


def _names_of_computing_modules(tree: ast.Module) -> frozenset[str]:
    """Names by which the source knows modules that compute outside of NKI, or functions of them."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [(alias.name, alias.asname or alias.name.partition(".")[0]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found = [(node.module or "", alias.asname or alias.name) for alias in node.names]
        else:
            continue
        names |= {name for module, name in found if module.partition(".")[0] in COMPUTING_MODULES}
    return frozenset(names)


def _node_reaches_out(node: ast.AST, computing: frozenset[str]) -> bool:
    if isinstance(node, ast.Import):
        return not all(_is_usual(alias.name) for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        return node.level > 0 or not _is_usual(node.module or "")
    if isinstance(node, ast.Try):
        return True  # there is nothing to catch on a device: a fallback to something else
    if isinstance(node, ast.Name):
        return node.id in REACHING_BUILTINS or node.id.startswith("__")
    if isinstance(node, ast.Attribute):
        return node.attr.startswith("__")
    return isinstance(node, ast.Call) and _root(node.func) in computing


def _is_usual(module: str) -> bool:
    return module.partition(".")[0] in HARMLESS_MODULES + COMPUTING_MODULES


def _root(node: ast.AST) -> str:
    """The name that a dotted expression begins with."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""
