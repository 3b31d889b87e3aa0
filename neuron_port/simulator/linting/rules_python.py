"""Rules about Python itself: constructs, builtins, modules and constants outside of NKI's subset."""

from __future__ import annotations

import ast

from neuron_port.simulator.linting.report import Report
from neuron_port.simulator.linting.source import BUILTINS, IMPORTED, FunctionCode

# Construct -> (what it is called, cure).
_CONSTRUCTS: dict[type[ast.AST], tuple[str, str]] = {
    ast.ListComp: ("a list comprehension", "build the list in a for loop with append"),
    ast.SetComp: ("a set comprehension", "build a list in a for loop"),
    ast.DictComp: ("a dict comprehension", "build the dict in a for loop; keys are strings"),
    ast.GeneratorExp: ("a generator expression", "build a list in a for loop"),
    ast.Try: (
        "try/except",
        "test the condition with if; a kernel is compiled, nothing is raised on the device",
    ),
    ast.Raise: ("raise", "assert condition, message"),
    ast.Yield: ("yield", "return a tuple, or append to a list that the caller passes"),
    ast.YieldFrom: ("yield from", "return a tuple, or append to a list that the caller passes"),
    ast.Await: ("await", "call a plain function"),
    ast.AsyncFunctionDef: ("an async function", "define it with def"),
    ast.AsyncFor: ("async for", "use a for loop"),
    ast.AsyncWith: ("async with", "use with nl.no_reorder():"),
    ast.NamedExpr: ("the walrus operator", "assign on a line of its own"),
    ast.Global: ("global", "pass the value as an argument and return the new one"),
    ast.Nonlocal: ("nonlocal", "pass the value as an argument and return the new one"),
    ast.Set: ("a set", "use a tuple or a list"),
    ast.Starred: ("starred arguments", "write the elements one by one"),
    ast.Delete: ("del", "let the name go out of scope, or use list.pop"),
    ast.Match: ("match", "use if and elif"),
}
# Builtins that kernels of nki-library use, or that the language guide names.
_ALLOWED_BUILTINS = (
    "abs all any bool dict divmod enumerate float getattr hasattr int isinstance len list max min object pow print "
    "property range repr reversed round slice sorted staticmethod str sum super tuple type zip"
)
_CURES_OF_BUILTINS = {
    "map": "use a for loop",
    "filter": "use a for loop with if",
    "eval": "write the expression",
    "exec": "write the statements",
    "open": "read the file in the calling code and pass its contents as a kernel argument",
    "input": "pass the value as a kernel argument",
    "globals": "pass the value as a kernel argument",
    "locals": "name the variables",
    "vars": "name the fields",
    "setattr": "assign the field: object.field = value",
    "delattr": "assign None to the field",
    "frozenset": "use a tuple",
    "complex": "keep the real and the imaginary part in two tensors",
    "bytes": "use a list of integers",
    "bytearray": "use a list of integers",
    "iter": "use a for loop",
    "next": "use an index",
    "callable": "pass a flag",
    "hash": "compare the values",
    "__import__": "import at the top of the file",
}
_PLAIN_MODULES = frozenset(
    {"nki", "math", "typing", "dataclasses", "enum", "__future__", "functools", "logging"}
)
_FOREIGN_MODULES = {
    "numpy": "compute it before the kernel, or use math; arrays come in as kernel arguments or nl.shared_constant",
    "torch": "compute it before the kernel and pass it as an argument",
    "jax": "compute it before the kernel and pass it as an argument",
    "scipy": "compute it before the kernel and pass it as an argument",
    "random": "draw the numbers before the kernel, or use nisa.rng",
    "time": "measure around the kernel call",
    "os": "read the environment before the kernel and pass the value: the kernel cache does not see it",
}
_INT32_MINIMUM, _UINT32_MAXIMUM = -(2**31), 2**32 - 1


def check(report: Report) -> None:
    """Every own node of every kernel function."""
    for code in report.kernel.functions:
        _check_constructs(report, code)
        _check_comparisons(report, code)
        _check_withs(report, code)
        _check_builtins(report, code)
        _check_modules(report, code)
        _check_values(report, code)


def _check_constructs(report: Report, code: FunctionCode) -> None:
    for kind, (called, cure) in _CONSTRUCTS.items():
        for node in code.nodes.get(kind, ()):
            assert isinstance(node, ast.expr | ast.stmt)
            if isinstance(node, ast.Starred) and isinstance(node.ctx, ast.Store):
                called, cure = "a starred assignment", "index the elements one by one"
            report.add("W01", node, f"{called} in kernel code is not in NKI's subset of Python", cure)
    if isinstance(code.node, ast.Lambda):
        report.add(
            "W01",
            code.node,
            "a lambda in kernel code is not in NKI's subset of Python",
            "define a function with def",
        )


def _check_comparisons(report: Report, code: FunctionCode) -> None:
    for node in code.of(ast.Compare):
        for operator in node.ops:
            if isinstance(operator, ast.Is | ast.IsNot):
                report.add_once(
                    "W04",
                    node,
                    "`is` and `is not` in kernel code: the migration guide to 0.3 says that they are not supported, "
                    "AWS's own kernels use them",
                    "compare with == and !=",
                )


def _check_withs(report: Report, code: FunctionCode) -> None:
    for node in code.of(ast.With):
        for item in node.items:
            called = item.context_expr.func if isinstance(item.context_expr, ast.Call) else item.context_expr
            if report.name(called, code) != "nki.language.no_reorder":
                report.add(
                    "W01",
                    node,
                    f"`with {ast.unparse(item.context_expr)}` in kernel code is not in NKI's subset of Python",
                    "the only context manager is nl.no_reorder()",
                )


def _check_builtins(report: Report, code: FunctionCode) -> None:
    for call in code.of(ast.Call):
        if not isinstance(call.func, ast.Name) or call.func.id not in BUILTINS:
            continue
        name = call.func.id
        if code.scope_of(name) is not None:
            continue
        if name == "print":
            report.add_once(
                "W02",
                call,
                "`print` runs while the kernel is traced, never on the device",
                "nl.device_print(prefix, tensor) prints values on the device; else drop it",
            )
        elif name == "set":
            report.add(
                "W01", call, "a set in kernel code is not in NKI's subset of Python", "use a tuple or a list"
            )
        elif name not in _ALLOWED_BUILTINS.split() and not name.endswith("Error"):
            cure = _CURES_OF_BUILTINS.get(
                name, "use what the language guide lists: range, len, min, max, ..."
            )
            report.add("W05", call, f"`{name}()` in kernel code is no part of NKI", cure)


def _check_modules(report: Report, code: FunctionCode) -> None:
    for node in code.of(ast.Name):
        full = report.source.imports.get(node.id)
        if full is None or full.startswith("."):
            continue
        owner = code.scope_of(node.id)
        if owner is not None and owner.bindings[node.id] != [IMPORTED]:
            continue
        module = full.partition(".")[0]
        if module in _FOREIGN_MODULES:
            shown = ast.unparse(_chain(node, code))
            report.add_once(
                "W06",
                node,
                f"`{shown}` in kernel code: the compiler knows nki and math only, and `{module}` at best while tracing",
                _FOREIGN_MODULES[module],
            )


def _chain(node: ast.expr, code: FunctionCode) -> ast.expr:
    """The whole attribute chain that starts at `node`: `np.float32` for `np`."""
    parent = code.parents.get(node)
    while isinstance(parent, ast.Attribute) and parent.value is node:
        node, parent = parent, code.parents.get(parent)
    return node


def _check_values(report: Report, code: FunctionCode) -> None:
    for node in code.of(ast.Constant):
        value = node.value
        if isinstance(value, complex | bytes):
            report.add(
                "E25",
                node,
                f"`{value!r}` is a {type(value).__name__}: NKI's values are None, bool, 32-bit int and float, str, "
                "tensors and containers of these",
                "use an int, a float or a tensor",
            )
        elif isinstance(value, int) and not isinstance(value, bool):
            negated = isinstance(code.parents.get(node), ast.UnaryOp)
            if value > _UINT32_MAXIMUM or (negated and -value < _INT32_MINIMUM and value > _UINT32_MAXIMUM):
                report.add(
                    "E25",
                    node,
                    f"`{value}` does not fit in 32 bits, NKI's integers",
                    "use a float, or two integers",
                )
    for dictionary in code.of(ast.Dict):
        for key in dictionary.keys:
            if isinstance(key, ast.Constant | ast.Tuple) and not _is_string(key):
                report.add(
                    "E06",
                    key,
                    f"the dict key `{ast.unparse(key)}` is no string; NKI's dicts have string keys only",
                    f'write the key as a string: "{ast.unparse(key)}", or use a list',
                )


def _is_string(key: ast.expr) -> bool:
    return isinstance(key, ast.Constant) and isinstance(key.value, str)
