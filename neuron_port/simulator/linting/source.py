"""A kernel file as the rules see it: its imports, functions and classes, each function with its own nodes.

A node belongs to the innermost function or class around it. Decorators, defaults and annotations belong to nobody:
they run in Python, not in the kernel.
"""

from __future__ import annotations

import ast
import builtins
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TypeVar, cast

from neuron_port.simulator.parsing import parse_python

Node = TypeVar("Node", bound=ast.AST)
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
BUILTINS = frozenset(vars(builtins))


@dataclass(eq=False)
class FunctionCode:
    """One function, lambda, or the file's top level, with the nodes that are its own."""

    node: FunctionNode | ast.Module
    name: str
    parent: FunctionCode | None
    owner: ClassCode | None
    nodes: dict[type[ast.AST], list[ast.AST]] = field(default_factory=lambda: defaultdict(list))
    parents: dict[ast.AST, ast.AST] = field(default_factory=dict)
    functions: dict[str, FunctionCode] = field(default_factory=dict)
    classes: dict[str, ClassCode] = field(default_factory=dict)
    # Values that names are bound to; None stands for a value that no expression shows (a parameter, a loop).
    bindings: dict[str, list[ast.expr | None]] = field(default_factory=lambda: defaultdict(list))
    declared_global: set[str] = field(default_factory=set)
    is_entry: bool = False

    def of(self, kind: type[Node]) -> list[Node]:
        """Own nodes of exactly this type."""
        return cast("list[Node]", self.nodes.get(kind, []))

    def parameters(self) -> list[ast.arg]:
        """All parameters, in order."""
        if isinstance(self.node, ast.Module):
            return []
        a = self.node.args
        stars = [arg for arg in (a.vararg, a.kwarg) if arg is not None]
        return [*a.posonlyargs, *a.args, *a.kwonlyargs, *stars]

    def scope_of(self, name: str) -> FunctionCode | None:
        """The function (or top level) that binds `name` as it is seen from here; None for a builtin."""
        scope: FunctionCode | None = self
        while scope is not None:
            if name in scope.bindings and name not in scope.declared_global:
                return scope
            scope = scope.parent
        return None


@dataclass(eq=False)
class ClassCode:
    """One class with its methods."""

    node: ast.ClassDef
    parent: FunctionCode
    methods: dict[str, FunctionCode] = field(default_factory=dict)
    fields: list[ast.AnnAssign] = field(default_factory=list)


@dataclass(eq=False)
class SourceFile:
    """One file: all functions in order of line, and the meaning of imported names."""

    path: str
    top: FunctionCode
    functions: list[FunctionCode]
    classes: list[ClassCode]
    imports: dict[str, str]  # name in this file -> full name, `nl` -> `nki.language`
    import_nodes: list[ast.Import | ast.ImportFrom]

    def full_name(self, expression: ast.AST, scope: FunctionCode) -> str | None:
        """Full dotted name of an imported thing, `nki.isa.dma_copy`; None for anything else.

        `neuronxcc.nki` reads as `nki`, and `nki.isa.constants` as `nki.isa`.
        """
        parts: list[str] = []
        while isinstance(expression, ast.Attribute):
            parts.append(expression.attr)
            expression = expression.value
        if not isinstance(expression, ast.Name) or expression.id not in self.imports:
            return None
        owner = scope.scope_of(expression.id)
        if owner is not None and owner.bindings[expression.id] != [IMPORTED]:
            return None
        name = ".".join([self.imports[expression.id], *reversed(parts)])
        return name.removeprefix("neuronxcc.").replace("nki.isa.constants.", "nki.isa.")


IMPORTED = ast.Name(id="<imported>")


class _Reader:
    """Walks the tree once and hands every node to its function."""

    def __init__(self, tree: ast.Module) -> None:
        self.top = FunctionCode(node=tree, name="<module>", parent=None, owner=None)
        self.functions: list[FunctionCode] = []
        self.classes: list[ClassCode] = []
        self.imports: dict[str, str] = {}
        self.import_nodes: list[ast.Import | ast.ImportFrom] = []
        for statement in tree.body:
            self.visit(statement, tree, self.top)

    def visit(self, node: ast.AST, parent: ast.AST, code: FunctionCode) -> None:
        code.nodes[type(node)].append(node)
        code.parents[node] = parent
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            self.enter_function(node, node.name, code, owner=None)
            return
        if isinstance(node, ast.Lambda):
            self.enter_function(node, "<lambda>", code, owner=None)
            return
        if isinstance(node, ast.ClassDef):
            self.enter_class(node, code)
            return
        self.bind(node, code)
        annotation = node.annotation if isinstance(node, ast.AnnAssign) else None
        for child in ast.iter_child_nodes(node):
            if child is not annotation:
                self.visit(child, node, code)

    def bind(self, node: ast.AST, code: FunctionCode) -> None:
        """Remember what the node binds names to."""
        if isinstance(node, ast.Assign):
            for target in node.targets:
                self.bind_target(target, node.value, code)
        elif isinstance(node, ast.AnnAssign):
            if node.value is not None:
                self.bind_target(node.target, node.value, code)
        elif isinstance(node, ast.NamedExpr):
            self.bind_target(node.target, node.value, code)
        elif isinstance(node, ast.AugAssign | ast.For | ast.AsyncFor | ast.comprehension):
            self.bind_target(node.target, None, code)
        elif isinstance(node, ast.withitem) and node.optional_vars is not None:
            self.bind_target(node.optional_vars, None, code)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            code.bindings[node.name].append(None)
        elif isinstance(node, ast.Global | ast.Nonlocal):
            code.declared_global.update(node.names)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            self.bind_import(node, code)

    def bind_target(self, target: ast.expr, value: ast.expr | None, code: FunctionCode) -> None:
        if isinstance(target, ast.Name):
            code.bindings[target.id].append(value)
        elif isinstance(target, ast.Starred):
            self.bind_target(target.value, None, code)
        elif isinstance(target, ast.Tuple | ast.List):
            elements: list[ast.expr | None] = [None] * len(target.elts)
            if isinstance(value, ast.Tuple | ast.List) and len(value.elts) == len(target.elts):
                elements = list(value.elts)
            for one, its_value in zip(target.elts, elements, strict=True):
                self.bind_target(one, its_value, code)

    def bind_import(self, node: ast.Import | ast.ImportFrom, code: FunctionCode) -> None:
        self.import_nodes.append(node)
        for alias in node.names:
            if isinstance(node, ast.Import):
                local = alias.asname or alias.name.partition(".")[0]
                full = alias.name if alias.asname else local
            else:
                local = alias.asname or alias.name
                full = f"{'.' * node.level}{node.module or ''}.{alias.name}"
            self.imports[local] = full
            code.bindings[local] = [IMPORTED]

    def enter_function(
        self, node: FunctionNode, name: str, parent: FunctionCode, owner: ClassCode | None
    ) -> FunctionCode:
        code = FunctionCode(node=node, name=name, parent=parent, owner=owner)
        self.functions.append(code)
        if owner is None and not isinstance(node, ast.Lambda):
            parent.functions[name] = code
            parent.bindings[name].append(None)
        for parameter in code.parameters():
            code.bindings[parameter.arg].append(None)
        body = [node.body] if isinstance(node, ast.Lambda) else node.body
        for statement in body:
            self.visit(statement, node, code)
        return code

    def enter_class(self, node: ast.ClassDef, parent: FunctionCode) -> None:
        code = ClassCode(node=node, parent=parent)
        self.classes.append(code)
        parent.classes[node.name] = code
        parent.bindings[node.name].append(None)
        for statement in node.body:
            if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
                code.methods[statement.name] = self.enter_function(statement, statement.name, parent, code)
            elif isinstance(statement, ast.AnnAssign):
                code.fields.append(statement)


def read_source(text: str, path: str) -> SourceFile:
    """The file `path` with this text.

    Raises:
        SyntaxError: the text is no Python.
    """
    reader = _Reader(parse_python(text, path))
    return SourceFile(
        path=path,
        top=reader.top,
        functions=reader.functions,
        classes=reader.classes,
        imports=reader.imports,
        import_nodes=reader.import_nodes,
    )
