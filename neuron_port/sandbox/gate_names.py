"""What the names of a candidate's file mean: imports and definitions, and which of them it may use for what.

A dotted name that starts at an import is looked up part by part in the public names of NKI; any other attribute must be
one that tensors, lists or dicts have.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator
from typing import NoReturn

from neuron_port.sandbox.gate_text import RefusedError
from neuron_port.sandbox.names import (
    ALLOWED_BUILTINS,
    CLASSES,
    FORBIDDEN_BUILTINS,
    MODULES,
    WITHHELD,
    attributes_of_values,
    members,
)
from neuron_port.simulator.linting.renames import REMOVED


def refuse(error_class: str, message: str, node: ast.AST, hint: str) -> NoReturn:
    raise RefusedError(error_class, message, hint=hint, line=getattr(node, "lineno", None))


class Names:
    """The names of one file, from its statements, each with its nodes in the order of the text."""

    def __init__(self, statements: list[tuple[ast.stmt, list[ast.AST]]]) -> None:
        self.imported: dict[str, str] = {}  # local name -> "nki.language", "nki.language.float32", "math"
        self.functions: dict[str, ast.FunctionDef] = {}
        self.bound: set[str] = set()  # names that the module gives a meaning
        self._bound_within: dict[int, set[str]] = {}  # id of a node -> names of the function around it
        self._classes_here: set[int] = set()  # ids of nodes where a class may be named
        for statement, _ in statements:
            self._bind_module_level(statement)
        for statement, nodes in statements:
            within = self.bound
            if isinstance(statement, ast.FunctionDef):
                within = set()
            for node in nodes:
                self._bound_within[id(node)] = within
                if node is not statement:
                    self._bind(node, within)
                elif isinstance(node, ast.FunctionDef):
                    self._bind(node, self.bound)

    def allow_classes(self, expression: ast.expr) -> None:
        """In this expression classes may be named: an annotation, or what isinstance asks for."""
        self._classes_here.update(map(id, ast.walk(expression)))

    def _bind_module_level(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                self._check_module(alias.name, statement)
                top = alias.name.partition(".")[0]
                self._define(alias.asname or top, statement, again=alias.asname is None)
                self.imported[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(statement, ast.ImportFrom):
            module = statement.module or ""
            if statement.level:
                refuse("forbidden import", "a relative import", statement, "a kernel is one file of its own")
            self._check_module(module, statement)
            for alias in statement.names:
                full = f"{module}.{alias.name}"
                if alias.name == "*":
                    refuse(
                        "forbidden import",
                        f"`from {module} import *` hides where names come from",
                        statement,
                        f"import {module} as a name, such as `import nki.language as nl`",
                    )
                if full not in MODULES:
                    self._check_member(module, alias.name, statement)
                self._define(alias.asname or alias.name, statement)
                self.imported[alias.asname or alias.name] = full
        elif isinstance(statement, ast.FunctionDef):
            self._define(statement.name, statement)
            self.functions[statement.name] = statement

    def _check_module(self, name: str, node: ast.AST) -> None:
        if name in MODULES:
            return
        if name.startswith("neuronxcc"):
            cure = "NKI 0.6 is `import nki`, `import nki.isa as nisa`, `import nki.language as nl`"
        else:
            cure = WITHHELD.get(name) or f"a kernel imports only {', '.join(MODULES)}"
        refuse("forbidden import", f"import of `{name}`", node, cure)

    def _define(self, name: str, node: ast.AST, *, again: bool = False) -> None:
        if name in self.bound and not (again and self.imported.get(name) == name):
            refuse("forbidden name", f"`{name}` is defined twice", node, "give each its own name")
        self.bound.add(name)

    def _bind(self, node: ast.AST, names: set[str]) -> None:
        """Note a name that is given a meaning; an imported name keeps its own."""
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            name = node.id
        elif isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, ast.FunctionDef):
            name = node.name
        else:
            return
        if name in self.imported:
            refuse(
                "forbidden name",
                f"`{name}` is the imported {self.imported[name]}, and is given another meaning",
                node,
                "use another name",
            )
        if "__" in name or not name.isascii():
            refuse(
                "forbidden name", f"the name `{name:.60}`", node, "use letters, digits and single underscores"
            )
        names.add(name)

    def check_name(self, node: ast.Name) -> None:
        """A name that is read: the module's, the function's own, or one of the builtins that kernels have."""
        name = node.id
        if not isinstance(node.ctx, ast.Load):
            return
        if name in self.imported:
            self._check_value(self.imported[name], node)
            return
        own = self._bound_within.get(id(node), set())
        if name not in own and name not in self.bound and name not in ALLOWED_BUILTINS:
            if name in FORBIDDEN_BUILTINS or "__" in name:
                cure = FORBIDDEN_BUILTINS.get(name, "a kernel needs none of Python's internals")
                refuse("forbidden name", f"`{name:.60}` is not for kernels", node, cure)
            close = difflib.get_close_matches(name, sorted(own | self.bound | ALLOWED_BUILTINS), n=1)
            cure = (
                f"did you mean `{close[0]}`?" if close else "import it, define it, or pass it as an argument"
            )
            refuse("unknown name", f"nothing in the file defines `{name:.60}`", node, cure)

    def _check_value(self, full: str, node: ast.AST) -> None:
        """A public name of NKI used as a value."""
        if full in MODULES:
            refuse("forbidden name", f"the module {full} is used as a value", node, "name what you use of it")
        if full in CLASSES and id(node) not in self._classes_here:
            refuse(
                "forbidden name",
                f"the class {full} is used as a value",
                node,
                "classes stand in annotations and in isinstance; tensors come from nl.ndarray",
            )

    def check_chain(self, node: ast.Attribute) -> None:
        """`base.a.b`: names of a module one by one, anything else by the attributes that values have."""
        attributes = [node]
        while isinstance(attributes[-1].value, ast.Attribute):
            attributes.append(attributes[-1].value)
        base = attributes[-1].value
        full: str | None = None
        if isinstance(base, ast.Name) and isinstance(base.ctx, ast.Load):
            full = self.imported.get(base.id)
        for one in reversed(attributes):
            if one.attr.startswith("_"):
                refuse(
                    "forbidden attribute",
                    f"the attribute `{one.attr:.60}` is not public",
                    one,
                    "use the public names of NKI",
                )
            if full is not None and full in members():
                full = self._check_member(full, one.attr, one)
            elif one.attr not in attributes_of_values():
                self._refuse_attribute(one)
            else:
                full = None
        if full is not None:
            self._check_value(full, node)

    def _check_member(self, owner: str, name: str, node: ast.AST) -> str:
        full = f"{owner}.{name}"
        if owner in CLASSES and owner != "nki.language.MemoryRegion":
            refuse("forbidden attribute", f"`{full}`", node, "call methods on a tensor, not on its class")
        if name in members()[owner]:
            return full
        cure = WITHHELD.get(full) or (REMOVED[full][1] if full in REMOVED else None)
        if cure is None:
            close = difflib.get_close_matches(name, sorted(members()[owner]), n=1)
            cure = f"did you mean `{owner}.{close[0]}`?" if close else "see the API reference of NKI 0.6"
        known = full in WITHHELD
        refuse(
            "forbidden attribute" if known or name.startswith("_") else "unknown name",
            f"`{full}` is not for candidates" if known else f"{owner} has no public `{name:.60}`",
            node,
            cure,
        )

    def _refuse_attribute(self, node: ast.Attribute) -> NoReturn:
        close = difflib.get_close_matches(node.attr, sorted(attributes_of_values()), n=1)
        refuse(
            "forbidden attribute",
            f"the attribute `{node.attr:.60}` is none of NKI's tensors, lists or dicts",
            node,
            f"did you mean `{close[0]}`?" if close else "tensors have shape, dtype, reshape, permute, ap ...",
        )

    def full_name(self, node: ast.expr) -> str | None:
        """The public name that an expression is, or None."""
        names: list[str] = []
        while isinstance(node, ast.Attribute):
            names.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or node.id not in self.imported:
            return None
        return ".".join([self.imported[node.id], *reversed(names)])


def in_order(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node in the order of the text, without recursion; of an attribute chain only its end and its base."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        children = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.Attribute):
            base: ast.expr = node
            while isinstance(base, ast.Attribute):
                base = base.value
            # A module's name may stand before a dot, and nowhere else.
            children = [] if isinstance(base, ast.Name) else [base]
        waiting.extend(reversed(children))


def is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def word_of(node: ast.AST) -> str:
    return type(node).__name__.lower()


def shown(node: ast.expr) -> str:
    """The expression's text, shortened; parsing has bounded its depth."""
    try:
        return ast.unparse(node)[:60]
    except RecursionError:
        return word_of(node)
