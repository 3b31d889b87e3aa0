"""The gate: reads a candidate's file, and refuses whatever is not on its lists, before anything of it runs.

Allowed are the Python that NKI's compiler takes, the public names of NKI, and `math`. Everything else is refused by
name with its line and the cure. The file is only parsed, in our own process, never compiled or run.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator
from typing import NoReturn

from neuron_port.sandbox.constructs import ALLOWED_NODES, cure_of
from neuron_port.sandbox.gate_text import RefusedError, parse_carefully
from neuron_port.sandbox.job import Failure
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

JIT = "nki.jit"
NO_REORDER = "nki.language.no_reorder"
_BUILTINS_OF_CONSTANTS = frozenset({"abs", "float", "int", "max", "min", "round"})


def inspect_source(source: str, entry_point: str) -> Failure | None:
    """The first reason to refuse the file, or None; never raises, whatever the text is.

    Args:
        source: the candidate's file.
        entry_point: the function that will be called; it must be there, marked `@nki.jit`.
    """
    try:
        _Gate(parse_carefully(source)).check(entry_point)
    except RefusedError as refused:
        return refused.failure
    return None


def _refuse(error_class: str, message: str, node: ast.AST, hint: str) -> NoReturn:
    raise RefusedError(error_class, message, hint=hint, line=getattr(node, "lineno", None))


class _Gate:
    """One file's imports and names, and the checks of its nodes."""

    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        self.imported: dict[str, str] = {}  # local name -> "nki.language", "nki.language.float32", "math"
        self.constants: set[str] = set()
        self.functions: dict[str, ast.FunctionDef] = {}
        self.bound: set[str] = set()  # every name that the file gives a meaning
        self.at_module_level = set(map(id, tree.body))
        self.classes_here: set[int] = set()  # ids of nodes where a class may be named

    def check(self, entry_point: str) -> None:
        """Refuse the first thing that is not allowed."""
        line = 1
        for node in _in_order(self.tree):
            line = getattr(node, "lineno", line)  # operators have none
            if type(node) not in ALLOWED_NODES:
                called, cure = cure_of(node)
                message = f"{called} is not in NKI's subset of Python"
                raise RefusedError("forbidden construct", message, hint=cure, line=line)
        for statement in self.tree.body:
            self._bind_module_level(statement)
        for node in _in_order(self.tree):
            self._bind(node)
        for statement in self.tree.body:
            self._check_module_level(statement)
        for node in _in_order(self.tree):
            self._check_node(node)
        self._check_entry_point(entry_point)

    # ---- what the file defines ----------------------------------------------------------------------------

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
                _refuse("forbidden import", "a relative import", statement, "a kernel is one file of its own")
            self._check_module(module, statement)
            for alias in statement.names:
                full = f"{module}.{alias.name}"
                if alias.name == "*":
                    _refuse(
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
        _refuse("forbidden import", f"import of `{name}`", node, cure)

    def _define(self, name: str, node: ast.AST, *, again: bool = False) -> None:
        if name in self.bound and not (again and self.imported.get(name) == name):
            _refuse("forbidden name", f"`{name}` is defined twice", node, "give each its own name")
        self.bound.add(name)

    def _bind(self, node: ast.AST) -> None:
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
            _refuse(
                "forbidden name",
                f"`{name}` is the imported {self.imported[name]}, and is given another meaning",
                node,
                "use another name",
            )
        if "__" in name or not name.isascii():
            _refuse(
                "forbidden name", f"the name `{name:.60}`", node, "use letters, digits and single underscores"
            )
        self.bound.add(name)

    # ---- module level -------------------------------------------------------------------------------------

    def _check_module_level(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            return
        if isinstance(statement, ast.FunctionDef):
            for decorator in statement.decorator_list:
                if self._full_name(decorator) != JIT:
                    _refuse(
                        "forbidden construct",
                        f"function `{statement.name}` has the decorator `{_shown(decorator)}`",
                        statement,
                        "the only decorator is `@nki.jit`, without arguments",
                    )
            if len(statement.decorator_list) > 1:
                _refuse(
                    "forbidden construct",
                    f"function `{statement.name}` has {len(statement.decorator_list)} decorators",
                    statement,
                    "write `@nki.jit` once",
                )
            return
        if isinstance(statement, ast.Expr) and _is_text(statement.value):
            return
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            for target in targets:
                for name in target.elts if isinstance(target, ast.Tuple) else [target]:
                    if not isinstance(name, ast.Name):
                        _refuse(
                            "mutable state",
                            f"`{_shown(name)}` is assigned at module level",
                            statement,
                            "assign constants to plain names; everything else belongs into the kernel",
                        )
                    if name.id in self.constants or name.id in self.functions:
                        _refuse(
                            "mutable state",
                            f"`{name.id}` is defined twice",
                            statement,
                            "give each its own name",
                        )
                    self._check_constant(statement.value, f"constant `{name.id}`")
                    self.constants.add(name.id)
            return
        _refuse(
            "forbidden construct",
            f"a statement at module level ({_word_of(statement)})",
            statement,
            "a kernel file holds imports, constants and functions; nothing runs when it is loaded",
        )

    def _check_constant(self, value: ast.expr, what: str) -> None:
        """Constants and defaults are the same for every call: nothing that can be changed, nothing that runs code."""
        for node in _in_order(value):
            if isinstance(node, ast.List | ast.Dict):
                _refuse(
                    "mutable state",
                    f"{what} holds a {_word_of(node)}, which one call could change for the next",
                    node,
                    "write a tuple",
                )
            if isinstance(node, ast.Call):
                name = self._full_name(node.func) or (node.func.id if isinstance(node.func, ast.Name) else "")
                if not name.startswith("math.") and name not in _BUILTINS_OF_CONSTANTS:
                    _refuse(
                        "mutable state",
                        f"{what} calls `{_shown(node.func)}`",
                        node,
                        "call it inside the kernel; a constant is a number, a name of nl, or arithmetic on them",
                    )
            elif isinstance(node, ast.Name):
                known = (
                    node.id in self.constants or node.id in self.imported or node.id in _BUILTINS_OF_CONSTANTS
                )
                if not known:
                    _refuse(
                        "mutable state",
                        f"{what} depends on `{node.id}`, which is no constant defined before it",
                        node,
                        "a constant is a number, a name of nl, or arithmetic on them",
                    )
            elif not isinstance(
                node,
                ast.Constant | ast.UnaryOp | ast.BinOp | ast.Tuple | ast.Attribute
                | ast.operator | ast.unaryop | ast.expr_context | ast.keyword,
            ):  # fmt: skip
                _refuse(
                    "mutable state",
                    f"{what} is made by {_word_of(node)}",
                    node,
                    "a constant is a number, a name of nl, or arithmetic on them",
                )

    def _check_entry_point(self, name: str) -> None:
        function = self.functions.get(name)
        if function is None:
            defined = ", ".join(f"`{other}`" for other in self.functions) or "no function"
            raise RefusedError(
                "entry point",
                f"the file defines no function `{name}`; it defines {defined}",
                hint=f"name the kernel `{name}`",
            )
        if not function.decorator_list:
            _refuse("entry point", f"`{name}` is not marked as a kernel", function, "put `@nki.jit` above it")

    # ---- every node ---------------------------------------------------------------------------------------

    def _check_node(self, node: ast.AST) -> None:
        if isinstance(node, ast.Attribute):
            self._check_chain(node)
        elif isinstance(node, ast.Name):
            self._check_name(node)
        elif isinstance(node, ast.Call):
            self._check_call(node)
        elif isinstance(node, ast.FunctionDef):
            self._check_function(node)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            if id(node) not in self.at_module_level:
                _refuse(
                    "forbidden import", "an import inside a function", node, "import at the top of the file"
                )
        elif isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.For):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                self._check_target(target)
            if isinstance(node, ast.AnnAssign):
                self._allow_classes(node.annotation)
        elif isinstance(node, ast.With):
            self._check_with(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, bytes | complex):
            _refuse(
                "forbidden construct", f"the value {node.value!r:.40}", node, "kernels have numbers and text"
            )

    def _check_function(self, node: ast.FunctionDef) -> None:
        arguments = node.args
        for star in (arguments.vararg, arguments.kwarg):
            if star is not None:
                _refuse(
                    "forbidden construct",
                    f"`{node.name}` takes any number of arguments as `{star.arg}`",
                    node,
                    "name every argument",
                )
        if node.decorator_list and self.functions.get(node.name) is not node:
            _refuse("forbidden construct", f"inner function `{node.name}` has a decorator", node, "remove it")
        for default in (*arguments.defaults, *arguments.kw_defaults):
            if default is not None:
                self._check_constant(default, f"a default of `{node.name}`")
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            if argument.annotation is not None:
                self._allow_classes(argument.annotation)
        if node.returns is not None:
            self._allow_classes(node.returns)

    def _allow_classes(self, expression: ast.expr) -> None:
        self.classes_here.update(map(id, ast.walk(expression)))

    def _check_call(self, node: ast.Call) -> None:
        if not isinstance(node.func, ast.Name | ast.Attribute):
            _refuse(
                "forbidden call",
                f"a call of {_word_of(node.func)}",
                node,
                "call functions by their names, methods on a tensor or a list",
            )
        if any(keyword.arg is None for keyword in node.keywords):
            _refuse("forbidden construct", "`**` in a call", node, "write the arguments one by one")
        if isinstance(node.func, ast.Name) and node.func.id == "isinstance" and len(node.args) == 2:
            self._allow_classes(node.args[1])

    def _check_with(self, node: ast.With) -> None:
        for item in node.items:
            called = item.context_expr.func if isinstance(item.context_expr, ast.Call) else item.context_expr
            if self._full_name(called) != NO_REORDER or item.optional_vars is not None:
                _refuse(
                    "forbidden construct",
                    f"`with {_shown(item.context_expr)}`",
                    node,
                    "the only block is `with nl.no_reorder():`",
                )

    def _check_target(self, target: ast.expr) -> None:
        """Only names, and elements of what a local name holds, are assigned."""
        for one in target.elts if isinstance(target, ast.Tuple | ast.List) else [target]:
            inner = one
            while isinstance(inner, ast.Subscript):
                inner = inner.value
            if isinstance(inner, ast.Tuple | ast.List) and inner is one:
                self._check_target(inner)
            elif isinstance(inner, ast.Attribute):
                _refuse(
                    "forbidden attribute",
                    f"`{_shown(one)}` is assigned: attributes of tensors, modules and functions stay as they are",
                    target,
                    "assign to a name of your own",
                )
            elif not isinstance(inner, ast.Name):
                _refuse(
                    "forbidden construct", f"an assignment to `{_shown(one)}`", target, "assign to a name"
                )
            elif inner is not one and (inner.id in self.constants or inner.id in self.functions):
                _refuse(
                    "mutable state",
                    f"an element of the module's `{inner.id}` is assigned",
                    target,
                    "build a list inside the kernel",
                )

    # ---- names and attributes -----------------------------------------------------------------------------

    def _check_name(self, node: ast.Name) -> None:
        name = node.id
        if not isinstance(node.ctx, ast.Load):
            return
        if name in self.imported:
            self._check_value(self.imported[name], node)
        elif name not in self.bound and name not in ALLOWED_BUILTINS:
            if name in FORBIDDEN_BUILTINS or "__" in name:
                cure = FORBIDDEN_BUILTINS.get(name, "a kernel needs none of Python's internals")
                _refuse("forbidden name", f"`{name:.60}` is not for kernels", node, cure)
            close = difflib.get_close_matches(name, sorted(self.bound | ALLOWED_BUILTINS), n=1)
            cure = (
                f"did you mean `{close[0]}`?" if close else "import it, define it, or pass it as an argument"
            )
            _refuse("unknown name", f"nothing in the file defines `{name:.60}`", node, cure)

    def _check_value(self, full: str, node: ast.AST) -> None:
        """A public name of NKI used as a value."""
        if full in MODULES:
            _refuse(
                "forbidden name", f"the module {full} is used as a value", node, "name what you use of it"
            )
        if full in CLASSES and id(node) not in self.classes_here:
            _refuse(
                "forbidden name",
                f"the class {full} is used as a value",
                node,
                "classes stand in annotations and in isinstance; tensors come from nl.ndarray",
            )

    def _check_chain(self, node: ast.Attribute) -> None:
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
                _refuse(
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
            _refuse("forbidden attribute", f"`{full}`", node, "call methods on a tensor, not on its class")
        if name in members()[owner]:
            return full
        cure = WITHHELD.get(full) or (REMOVED[full][1] if full in REMOVED else None)
        if cure is None:
            close = difflib.get_close_matches(name, sorted(members()[owner]), n=1)
            cure = f"did you mean `{owner}.{close[0]}`?" if close else "see the API reference of NKI 0.6"
        known = full in WITHHELD
        _refuse(
            "forbidden attribute" if known or name.startswith("_") else "unknown name",
            f"`{full}` is not for candidates" if known else f"{owner} has no public `{name:.60}`",
            node,
            cure,
        )

    def _refuse_attribute(self, node: ast.Attribute) -> NoReturn:
        close = difflib.get_close_matches(node.attr, sorted(attributes_of_values()), n=1)
        _refuse(
            "forbidden attribute",
            f"the attribute `{node.attr:.60}` is none of NKI's tensors, lists or dicts",
            node,
            f"did you mean `{close[0]}`?" if close else "tensors have shape, dtype, reshape, permute, ap ...",
        )

    def _full_name(self, node: ast.expr) -> str | None:
        """The public name that an expression is, or None."""
        names: list[str] = []
        while isinstance(node, ast.Attribute):
            names.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or node.id not in self.imported:
            return None
        return ".".join([self.imported[node.id], *reversed(names)])


def _in_order(tree: ast.AST) -> Iterator[ast.AST]:
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


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _word_of(node: ast.AST) -> str:
    return type(node).__name__.lower()


def _shown(node: ast.expr) -> str:
    """The expression's text, shortened; parsing has bounded its depth."""
    try:
        return ast.unparse(node)[:60]
    except RecursionError:
        return _word_of(node)
