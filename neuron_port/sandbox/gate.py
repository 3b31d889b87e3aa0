"""The gate: reads a candidate's file, and refuses whatever is not on its lists, before anything of it runs.

Allowed are the Python that NKI's compiler takes, the public names of NKI, and `math`. Everything else is refused by
name with its line and the cure. The file is only parsed, in our own process, never compiled or run.
"""

from __future__ import annotations

import ast

from neuron_port.sandbox.constructs import ALLOWED_NODES, cure_of
from neuron_port.sandbox.gate_names import Names, in_order, is_text, refuse, shown, word_of
from neuron_port.sandbox.gate_text import RefusedError, parse_carefully
from neuron_port.sandbox.job import Failure

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
        tree = parse_carefully(source)
        statements = [(statement, list(in_order(statement))) for statement in tree.body]
        for _, nodes in statements:
            _check_constructs(nodes)
        _Gate(statements).check(entry_point)
    except RefusedError as refused:
        return refused.failure
    return None


def _check_constructs(nodes: list[ast.AST]) -> None:
    line = 1
    for node in nodes:
        line = getattr(node, "lineno", line)  # operators have none
        if type(node) not in ALLOWED_NODES:
            called, cure = cure_of(node)
            message = f"{called} is not in NKI's subset of Python"
            raise RefusedError("forbidden construct", message, hint=cure, line=line)


class _Gate:
    """The checks of one file, of which the constructs are checked already.

    Args:
        statements: of the module, each with its nodes in the order of the text.
    """

    def __init__(self, statements: list[tuple[ast.stmt, list[ast.AST]]]) -> None:
        self.statements = statements
        self.names = Names(statements)
        self.constants: set[str] = set()
        self.at_module_level = {id(statement) for statement, _ in statements}

    def check(self, entry_point: str) -> None:
        """Refuse the first thing that is not allowed."""
        for statement, _ in self.statements:
            self._check_module_level(statement)
        for _, nodes in self.statements:
            for node in nodes:
                self._check_node(node)
        self._check_entry_point(entry_point)

    # ---- module level -------------------------------------------------------------------------------------

    def _check_module_level(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            return
        if isinstance(statement, ast.FunctionDef):
            self._check_decorators(statement)
        elif isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            for target in targets:
                for name in target.elts if isinstance(target, ast.Tuple) else [target]:
                    self._define_constant(name, statement.value)
        elif not (isinstance(statement, ast.Expr) and is_text(statement.value)):
            refuse(
                "forbidden construct",
                f"a statement at module level ({word_of(statement)})",
                statement,
                "a kernel file holds imports, constants and functions; nothing runs when it is loaded",
            )

    def _check_decorators(self, function: ast.FunctionDef) -> None:
        for decorator in function.decorator_list:
            if self.names.full_name(decorator) != JIT:
                refuse(
                    "forbidden construct",
                    f"function `{function.name}` has the decorator `{shown(decorator)}`",
                    function,
                    "the only decorator is `@nki.jit`, without arguments",
                )
        if len(function.decorator_list) > 1:
            refuse(
                "forbidden construct",
                f"function `{function.name}` has {len(function.decorator_list)} decorators",
                function,
                "write `@nki.jit` once",
            )

    def _define_constant(self, target: ast.expr, value: ast.expr) -> None:
        if not isinstance(target, ast.Name):
            refuse(
                "mutable state",
                f"`{shown(target)}` is assigned at module level",
                target,
                "assign constants to plain names; everything else belongs into the kernel",
            )
        if target.id in self.constants or target.id in self.names.functions:
            refuse("mutable state", f"`{target.id}` is defined twice", target, "give each its own name")
        self._check_constant(value, f"constant `{target.id}`")
        self.constants.add(target.id)

    def _check_constant(self, value: ast.expr, what: str) -> None:
        """Constants and defaults are the same for every call: nothing that can be changed, nothing that runs code."""
        for node in in_order(value):
            if isinstance(node, ast.List | ast.Dict):
                refuse(
                    "mutable state",
                    f"{what} holds a {word_of(node)}, which one call could change for the next",
                    node,
                    "write a tuple",
                )
            if isinstance(node, ast.Call):
                name = self.names.full_name(node.func) or (
                    node.func.id if isinstance(node.func, ast.Name) else ""
                )
                if not name.startswith("math.") and name not in _BUILTINS_OF_CONSTANTS:
                    refuse(
                        "mutable state",
                        f"{what} calls `{shown(node.func)}`",
                        node,
                        "call it inside the kernel; a constant is a number, a name of nl, or arithmetic on them",
                    )
            elif isinstance(node, ast.Name):
                known = (
                    node.id in self.constants
                    or node.id in self.names.imported
                    or node.id in _BUILTINS_OF_CONSTANTS
                )
                if not known:
                    refuse(
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
                refuse(
                    "mutable state",
                    f"{what} is made by {word_of(node)}",
                    node,
                    "a constant is a number, a name of nl, or arithmetic on them",
                )

    def _check_entry_point(self, name: str) -> None:
        function = self.names.functions.get(name)
        if function is None:
            defined = ", ".join(f"`{other}`" for other in self.names.functions) or "no function"
            raise RefusedError(
                "entry point",
                f"the file defines no function `{name}`; it defines {defined}",
                hint=f"name the kernel `{name}`",
            )
        if not function.decorator_list:
            refuse("entry point", f"`{name}` is not marked as a kernel", function, "put `@nki.jit` above it")

    # ---- every node ---------------------------------------------------------------------------------------

    def _check_node(self, node: ast.AST) -> None:
        if isinstance(node, ast.Attribute):
            self.names.check_chain(node)
        elif isinstance(node, ast.Name):
            self.names.check_name(node)
        elif isinstance(node, ast.Call):
            self._check_call(node)
        elif isinstance(node, ast.FunctionDef):
            self._check_function(node)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            if id(node) not in self.at_module_level:
                refuse(
                    "forbidden import", "an import inside a function", node, "import at the top of the file"
                )
        elif isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.For):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                self._check_target(target)
            if isinstance(node, ast.AnnAssign):
                self.names.allow_classes(node.annotation)
        elif isinstance(node, ast.With):
            self._check_with(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, bytes | complex):
            refuse(
                "forbidden construct", f"the value {node.value!r:.40}", node, "kernels have numbers and text"
            )

    def _check_function(self, node: ast.FunctionDef) -> None:
        arguments = node.args
        for star in (arguments.vararg, arguments.kwarg):
            if star is not None:
                refuse(
                    "forbidden construct",
                    f"`{node.name}` takes any number of arguments as `{star.arg}`",
                    node,
                    "name every argument",
                )
        if node.decorator_list and self.names.functions.get(node.name) is not node:
            refuse("forbidden construct", f"inner function `{node.name}` has a decorator", node, "remove it")
        for default in (*arguments.defaults, *arguments.kw_defaults):
            if default is not None:
                self._check_constant(default, f"a default of `{node.name}`")
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            if argument.annotation is not None:
                self.names.allow_classes(argument.annotation)
        if node.returns is not None:
            self.names.allow_classes(node.returns)

    def _check_call(self, node: ast.Call) -> None:
        if not isinstance(node.func, ast.Name | ast.Attribute):
            refuse(
                "forbidden call",
                f"a call of {word_of(node.func)}",
                node,
                "call functions by their names, methods on a tensor or a list",
            )
        if any(keyword.arg is None for keyword in node.keywords):
            refuse("forbidden construct", "`**` in a call", node, "write the arguments one by one")
        if isinstance(node.func, ast.Name) and node.func.id == "isinstance" and len(node.args) == 2:
            self.names.allow_classes(node.args[1])

    def _check_with(self, node: ast.With) -> None:
        for item in node.items:
            called = item.context_expr.func if isinstance(item.context_expr, ast.Call) else item.context_expr
            if self.names.full_name(called) != NO_REORDER or item.optional_vars is not None:
                refuse(
                    "forbidden construct",
                    f"`with {shown(item.context_expr)}`",
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
                refuse(
                    "forbidden attribute",
                    f"`{shown(one)}` is assigned: attributes of tensors, modules and functions stay as they are",
                    target,
                    "assign to a name of your own",
                )
            elif not isinstance(inner, ast.Name):
                refuse("forbidden construct", f"an assignment to `{shown(one)}`", target, "assign to a name")
            elif inner is not one and (inner.id in self.constants or inner.id in self.names.functions):
                refuse(
                    "mutable state",
                    f"an element of the module's `{inner.id}` is assigned",
                    target,
                    "build a list inside the kernel",
                )
