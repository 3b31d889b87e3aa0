"""Rules about whole kernels: their parameters, their outputs, and what they take from outside."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from neuron_port.simulator.linting.report import Report
from neuron_port.simulator.linting.source import FunctionCode

_MUTATING_METHODS = frozenset(
    {"append", "extend", "insert", "pop", "remove", "clear", "update", "setdefault", "add"}
)


def check(report: Report) -> None:
    """Every kernel entry, and what kernel code and host code do with entries."""
    changing = _changing_globals(report)
    for code in report.kernel.functions:
        if code.is_entry:
            _check_parameters(report, code)
            _check_outputs(report, code)
        _check_nested_kernels(report, code)
        _check_outside_state(report, code, changing)
    judged = set(report.kernel.functions)
    for code in [report.source.top, *report.source.functions]:
        if code not in judged:
            _check_host_calls(report, code)


def _check_parameters(report: Report, code: FunctionCode) -> None:
    assert not isinstance(code.node, ast.Module)
    arguments = code.node.args
    for parameter in arguments.kwonlyargs:
        report.add(
            "E03",
            parameter,
            f"parameter `{parameter.arg}` of kernel `{code.name}` is keyword-only",
            "remove the `*` and move parameters with defaults to the end",
        )
    for starred, shown in ((arguments.vararg, "*"), (arguments.kwarg, "**")):
        if starred is not None:
            report.add(
                "W01",
                starred,
                f"`{shown}{starred.arg}` of kernel `{code.name}` is not in NKI's subset of Python",
                "name every parameter; pass several tensors as one tuple",
            )
    named = [*arguments.posonlyargs, *arguments.args]
    with_defaults = list(zip(named[len(named) - len(arguments.defaults) :], arguments.defaults, strict=True))
    pairs: list[tuple[ast.arg, ast.expr | None]] = [
        *with_defaults,
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    for parameter, default in pairs:
        if isinstance(default, ast.List | ast.ListComp):
            report.add(
                "E05",
                default,
                f"the default of `{parameter.arg}` of kernel `{code.name}` is a list",
                f"a tuple: {parameter.arg}={_as_tuple(default)}",
            )
        elif isinstance(default, ast.Dict | ast.Set):
            report.add(
                "W07",
                default,
                f"the default of `{parameter.arg}` of kernel `{code.name}` is mutable; kernels are cached by arguments",
                f"{parameter.arg}=None, and the value in the body",
            )


def _as_tuple(node: ast.expr) -> str:
    if isinstance(node, ast.List):
        return ast.unparse(ast.Tuple(elts=node.elts, ctx=ast.Load()))
    return "(...)"


def _check_host_calls(report: Report, code: FunctionCode) -> None:
    """A list given to a kernel, at a call that is in this file."""
    for call in code.of(ast.Call):
        called = call.func.value if isinstance(call.func, ast.Subscript) else call.func
        if not isinstance(called, ast.Name):
            continue
        owner = code.scope_of(called.id)
        if owner is None or called.id not in owner.functions or not owner.functions[called.id].is_entry:
            continue
        for value in [*call.args, *(keyword.value for keyword in call.keywords)]:
            if isinstance(value, ast.List | ast.ListComp):
                report.add(
                    "E05",
                    value,
                    f"kernel `{called.id}` is called with the list `{ast.unparse(value)}`",
                    f"pass a tuple: {_as_tuple(value)}",
                )


def _check_nested_kernels(report: Report, code: FunctionCode) -> None:
    for call in code.of(ast.Call):
        called = call.func.value if isinstance(call.func, ast.Subscript) else call.func
        if report.name(called, code) == "nki.jit":
            report.add(
                "W09",
                call,
                "nki.jit inside a kernel",
                "call the plain function; only the kernel that the host calls is jitted",
            )
        if not isinstance(called, ast.Name):
            continue
        owner = code.scope_of(called.id)
        other = owner.functions.get(called.id) if owner is not None else None
        if other is not None and other.is_entry and _is_decorated(other):
            report.add_once(
                "W09",
                call,
                f"`{called.id}`, called by a kernel, is an @nki.jit kernel itself",
                f"remove @nki.jit from `{called.id}`; where the host calls it too, wrap it there: "
                f"nki.jit({called.id})(...)",
            )


def _is_decorated(code: FunctionCode) -> bool:
    return not isinstance(code.node, ast.Module | ast.Lambda) and bool(code.node.decorator_list)


def _check_outputs(report: Report, code: FunctionCode) -> None:
    if _is_called_by_kernels(report, code):
        return
    returned = [node for node in code.of(ast.Return) if node.value is not None]
    for statement in returned:
        assert statement.value is not None
        elements = (
            statement.value.elts if isinstance(statement.value, ast.Tuple | ast.List) else [statement.value]
        )
        for element in elements:
            _check_output(report, element, code)


def _check_output(report: Report, element: ast.expr, code: FunctionCode) -> None:
    tensor = report.facts.tensor(element, code)
    shown = ast.unparse(element)
    if tensor is not None and tensor.buffer in ("sbuf", "psum", "private_hbm"):
        importer = _importing_neighbour(report, code)
        if importer is not None:
            report.add(
                "W09",
                element,
                f"kernel `{code.name}` returns `{shown}`, which is in {tensor.buffer}; `{importer}` imports it "
                "as part of a larger kernel",
                f"remove @nki.jit from `{code.name}`",
            )
            return
        report.add(
            "E12",
            element,
            f"kernel `{code.name}` returns `{shown}`, which is in {tensor.buffer}",
            "allocate it with buffer=nl.shared_hbm"
            if tensor.buffer == "private_hbm"
            else "copy it to an output: out = nl.ndarray(shape, dtype, buffer=nl.shared_hbm); nisa.dma_copy(out, ...)",
        )
    elif (
        isinstance(element, ast.Name)
        and tensor is not None
        and tensor.whole
        and not _is_used(report, element, code)
    ):
        report.add(
            "E12",
            element,
            f"kernel `{code.name}` returns `{shown}`, and nothing writes it",
            f"nisa.dma_copy(dst={shown}, src=...) before returning",
        )


def _is_called_by_kernels(report: Report, code: FunctionCode) -> bool:
    """Whether other kernel code of the file calls it: then it need not return what the host can take."""
    return any(
        isinstance(call.func, ast.Name)
        and call.func.id == code.name
        and (owner := other.scope_of(code.name)) is not None
        and owner.functions.get(code.name) is code
        for other in report.kernel.functions
        for call in other.of(ast.Call)
    )


def _importing_neighbour(report: Report, code: FunctionCode) -> str | None:
    """Name of a file beside this one that imports the function, or None."""
    path = Path(report.source.path)
    if not path.is_file():
        return None
    imports = re.compile(
        rf"^\s*(from\s+\S*\b{re.escape(path.stem)}\s+import\b[^#]*?\b{re.escape(code.name)}\b)", re.M
    )
    for neighbour in sorted(path.parent.glob("*.py")):
        if neighbour != path and imports.search(neighbour.read_text(encoding="utf-8", errors="replace")):
            return neighbour.name
    return None


def _is_used(report: Report, output: ast.Name, code: FunctionCode) -> bool:
    """Whether the name is read anywhere but in return statements."""
    for other in [code, *(one for one in report.source.functions if one.parent is not None)]:
        for name in other.of(ast.Name):
            if (
                name.id != output.id
                or not isinstance(name.ctx, ast.Load)
                or other.scope_of(name.id) is not code
            ):
                continue
            parent = other.parents.get(name)
            if isinstance(parent, ast.Tuple | ast.List):
                parent = other.parents.get(parent)
            if not isinstance(parent, ast.Return):
                return True
    return False


def _changing_globals(report: Report) -> dict[str, str]:
    """Names of the file's top level that change after import, with how."""
    top = report.source.top
    changing = {}
    for code in report.source.functions:
        for name in code.declared_global:
            if name in top.bindings:
                changing[name] = f"`{code.name}` assigns it (global)"
    for code in [top, *report.source.functions]:
        for call in code.of(ast.Call):
            if (
                isinstance(call.func, ast.Attribute)
                and call.func.attr in _MUTATING_METHODS
                and code is not top
            ):
                _note(changing, call.func.value, code, f"`{code.name}` calls its {call.func.attr}")
        for item in code.of(ast.Subscript):
            if isinstance(item.ctx, ast.Store) and code is not top:
                _note(changing, item.value, code, f"`{code.name}` writes its items")
    return changing


def _note(changing: dict[str, str], value: ast.expr, code: FunctionCode, how: str) -> None:
    if not isinstance(value, ast.Name):
        return
    owner = code.scope_of(value.id)
    if owner is not None and owner.parent is None and _is_mutable(owner, value.id):
        changing[value.id] = how


def _is_mutable(owner: FunctionCode, name: str) -> bool:
    values = owner.bindings[name]
    literals = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp)
    return any(
        isinstance(value, literals)
        or (
            isinstance(value, ast.Call)
            and isinstance(value.func, ast.Name)
            and value.func.id in ("dict", "list")
        )
        for value in values
    )


def _check_outside_state(report: Report, code: FunctionCode, changing: dict[str, str]) -> None:
    seen = set()
    for name in code.of(ast.Name):
        if not isinstance(name.ctx, ast.Load) or name.id in seen:
            continue
        owner = code.scope_of(name.id)
        if owner is None:
            continue
        seen.add(name.id)
        if owner.parent is None and name.id in changing:
            report.add(
                "W07",
                name,
                f"`{code.name}` reads `{name.id}`, which changes: {changing[name.id]}; a cached kernel keeps "
                "the old value",
                "pass it as an argument",
            )
        elif (
            code.is_entry
            and owner is not code
            and owner.parent is not None
            and not _is_constant_closure(owner, name.id)
        ):
            report.add(
                "W07",
                name,
                f"kernel `{code.name}` takes `{name.id}` from `{owner.name}` around it; the kernel cache does not see it",
                "pass it as an argument",
            )


def _is_constant_closure(owner: FunctionCode, name: str) -> bool:
    values = owner.bindings[name]
    return (
        name in owner.functions
        or name in owner.classes
        or (len(values) == 1 and values[0] is not None and isinstance(values[0], ast.Constant | ast.Name))
    )
