"""Text that a candidate makes is made of numbers and text: never of objects, whose text says more than a kernel may know.

The text of a function holds its address, which is another one in every process, and that of a tensor says that
this is the simulator. So f-strings, `str` and `%` look at what they are given: `plainly` rewrites the file so.
"""

from __future__ import annotations

import ast
import builtins
from typing import Any

import numpy as np

from neuron_port.simulator.dtypes import DType
from neuron_port.simulator.errors import ConstraintError
from neuron_port.simulator.memory import MemoryRegion
from neuron_port.simulator.registers import VirtualRegister
from neuron_port.simulator.tensor import NkiTensor

# Names that no candidate can write: they are no identifiers.
FORMATTED, REMAINDER = "formatted value", "remainder or text"
_PLAIN = (bool, int, float, str, type(None), slice, range, np.integer, np.floating, DType, MemoryRegion)


def plainly(source: str, filename: str) -> ast.Module:
    """The file's syntax tree with every formatted value and every `%` sent through the functions of `helpers`."""
    tree = _Rewriter().visit(ast.parse(source, filename))
    return ast.fix_missing_locations(tree)


def helpers() -> dict[str, Any]:
    """The functions that the rewritten file calls, and the candidate's `str`."""
    return {FORMATTED: _require_plain, REMAINDER: _remainder, "str": _Text}


def _require_plain(value: Any) -> Any:
    """`value`, if its text is the same in every process and on every machine.

    Raises:
        ConstraintError: it is another object, or holds one.
    """
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, tuple | list):
            waiting.extend(one)
        elif isinstance(one, dict):
            waiting.extend(one.keys())
            waiting.extend(one.values())
        elif not isinstance(one, _PLAIN):
            kind = (
                "tensor"
                if isinstance(one, NkiTensor)
                else "register"
                if isinstance(one, VirtualRegister)
                else ""
            )
            raise ConstraintError(
                f"text is made of a {kind or type(one).__name__}; a device has no text for it",
                hint="put numbers, shapes and dtypes into texts: x.shape instead of x",
            )
    return value


def _remainder(left: Any, right: Any) -> Any:
    return left % (_require_plain(right) if isinstance(left, str) else right)


class _TextType(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, builtins.str)


class _Text(metaclass=_TextType):
    """`str` for candidates: a conversion of plain values, and a type to ask for."""

    def __new__(cls, value: Any = "") -> Any:
        return builtins.str(_require_plain(value))


class _Rewriter(ast.NodeTransformer):
    def visit_FormattedValue(self, node: ast.FormattedValue) -> ast.AST:
        self.generic_visit(node)
        node.value = _call(FORMATTED, [node.value], node.value)
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.op, ast.Mod):
            return _call(REMAINDER, [node.left, node.right], node)
        return node


def _call(name: str, arguments: list[ast.expr], place: ast.expr) -> ast.expr:
    function = ast.copy_location(ast.Name(id=name, ctx=ast.Load()), place)
    return ast.copy_location(ast.Call(func=function, args=arguments, keywords=[]), place)
