"""Which functions of a file are kernel code: the entries, functions that use instructions, and what these call.

Host code beside a kernel (references, tests, wrappers) is never judged, unless a kernel calls it.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field

from neuron_port.simulator.linting.signatures import HOST_CALLABLE, signatures
from neuron_port.simulator.linting.source import ClassCode, FunctionCode, SourceFile

# What turns a plain function into a kernel when it is called with it.
_WRAPPERS = frozenset({"nki.jit", "nki.simulate", "nki.simulate_kernel", "nki.benchmark", "nki.baremetal"})
_REMOVED_DEVICE_NAMES = frozenset(
    {"nki.language.mgrid", "nki.language.arange", "nki.language.par_dim", "nki.language.loop_reduce"}
)


@dataclass
class KernelCode:
    """The kernel code of one file."""

    functions: list[FunctionCode] = field(default_factory=list)
    classes: list[ClassCode] = field(default_factory=list)


def jit_decorator(source: SourceFile, code: FunctionCode) -> ast.expr | None:
    """The `nki.jit` decorator of the function, with or without options."""
    if isinstance(code.node, ast.Module | ast.Lambda) or code.parent is None:
        return None
    for decorator in code.node.decorator_list:
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        name = source.full_name(called, code.parent)
        if name in ("nki.jit", "nki.trace", "nki.benchmark", "nki.profile", "nki.baremetal"):
            return decorator
    return None


def is_device_call(name: str | None) -> bool:
    """Whether a call of this full name can only stand in a kernel."""
    if name is None or name in HOST_CALLABLE:
        return False
    return name in signatures() or name in _REMOVED_DEVICE_NAMES or name.startswith("nki.isa.")


def _mark_entries(source: SourceFile) -> None:
    for code in source.functions:
        code.is_entry = jit_decorator(source, code) is not None
    for scope in [source.top, *source.functions]:
        for call in scope.of(ast.Call):
            if source.full_name(call.func, scope) in _WRAPPERS and call.args:
                kernel = call.args[0]
                if isinstance(kernel, ast.Name):
                    owner = scope.scope_of(kernel.id)
                    if owner is not None and kernel.id in owner.functions:
                        owner.functions[kernel.id].is_entry = True


def _uses_instructions(source: SourceFile, code: FunctionCode) -> bool:
    if any(is_device_call(source.full_name(call.func, code)) for call in code.of(ast.Call)):
        return True
    return any(source.full_name(item.value, code) == "nki.language.mgrid" for item in code.of(ast.Subscript))


def kernel_code(source: SourceFile) -> KernelCode:
    """Everything of the file that the NKI compiler would see, in order of line."""
    _mark_entries(source)
    waiting = [code for code in source.functions if code.is_entry or _uses_instructions(source, code)]
    reached: set[FunctionCode] = set()
    classes: set[ClassCode] = set()
    called_names: set[str] = set()
    while waiting:
        code = waiting.pop()
        if code in reached:
            continue
        reached.add(code)
        if code.owner is not None:
            classes.add(code.owner)
        for name in code.of(ast.Name):
            owner = code.scope_of(name.id) if isinstance(name.ctx, ast.Load) else None
            if owner is None:
                continue
            if name.id in owner.functions:
                waiting.append(owner.functions[name.id])
            if name.id in owner.classes:
                classes.add(owner.classes[name.id])
        called_names |= {node.attr for node in code.of(ast.Attribute)}
        waiting += [other for other in source.functions if other.parent is code and _is_lambda(other)]
        waiting += _methods(classes, called_names, reached)
    return KernelCode(
        functions=[code for code in source.functions if code in reached],
        classes=[code for code in source.classes if code in classes],
    )


def _is_lambda(code: FunctionCode) -> bool:
    return isinstance(code.node, ast.Lambda)


def _methods(
    classes: set[ClassCode], called_names: set[str], reached: set[FunctionCode]
) -> list[FunctionCode]:
    """Methods that kernel code may run: the implicit ones and those whose name it mentions."""
    implicit = {"__init__", "__post_init__", "__call__"}
    return [
        method
        for owner in classes
        for name, method in owner.methods.items()
        if method not in reached and (name in implicit or name in called_names)
    ]
