"""How an ATen operator is written by people: `x * y`, `x.mean(...)`, `functional.linear(...)`, where that is exact.

Whatever has no shorter name is printed as `torch.ops.aten.<name>.<overload>(...)`, which always runs.
"""

from __future__ import annotations

import ast
import builtins
import keyword
import math
import operator
from collections.abc import Mapping
from typing import Any

import torch

from neuron_port.simulator.parsing import parse_python

Written = tuple[str, tuple[str, ...], str]  # opening, arguments, closing
INFIX = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "matmul": "@", "mm": "@",
    "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
    "__and__": "&", "__or__": "|", "bitwise_and": "&", "bitwise_or": "|",
    "logical_and": "&", "logical_or": "|",
}  # fmt: skip
ONLY_BOOLEAN = ("logical_and", "logical_or")
METHODS = {
    "pow", "mean", "sum", "amax", "amin", "prod", "transpose", "permute", "unsqueeze", "squeeze", "expand",
    "reshape", "repeat", "flatten", "unflatten", "contiguous", "clone", "t", "masked_fill", "chunk",
    "split", "unbind", "clamp", "clamp_min", "clamp_max", "cumsum", "sqrt", "rsqrt", "exp", "log", "abs",
    "sigmoid", "tanh", "sin", "cos", "square", "reciprocal", "floor", "round", "erf", "var", "std",
    "gather", "index_select", "tril", "triu", "roll", "flip", "select", "narrow", "softmax", "log_softmax",
    "repeat_interleave", "expand_as", "type_as", "movedim",
}  # fmt: skip
TORCH = {
    "cat", "stack", "where", "arange", "full", "zeros", "ones", "outer", "addmm", "baddbmm", "bmm",
    "maximum", "minimum", "einsum", "full_like", "zeros_like", "ones_like", "empty_like", "rsub",
}  # fmt: skip
FUNCTIONAL = {
    "linear", "gelu", "silu", "relu", "mish", "elu", "leaky_relu", "softplus", "hardtanh", "hardsigmoid",
    "hardswish", "conv1d", "rms_norm", "group_norm", "scaled_dot_product_attention", "relu6", "logsigmoid",
    "selu", "celu",
}  # fmt: skip
RENAMED = {"view": "reshape", "_unsafe_view": "reshape", "__and__": "bitwise_and", "__or__": "bitwise_or"}
IGNORED_OPTIONS = ("layout", "pin_memory", "requires_grad", "non_blocking", "copy")
FAR = 2**62  # an open end of a slice is the largest int64
RESERVED = {"torch", "functional", "dtype", "tokens", *keyword.kwlist, *dir(builtins)}


class Expressions:
    """Names of the graph's values, and the expression of each node in the function's dtype."""

    def __init__(self, dtype: torch.dtype, anchor: str, taken: set[str]) -> None:
        self.own_dtype = dtype
        self.anchor = anchor  # a floating point argument: its dtype is the function's
        self.names: dict[torch.fx.Node, str] = {}
        self.tokens = ""  # how the free size is read off an argument
        self.uses_tokens = False
        self.uses_dtype = False
        self._taken = {*taken, *RESERVED}

    def define(self, node: torch.fx.Node, wish: str) -> str:
        """A name for the node's value that nothing else has."""
        base = wish.strip("_").rstrip("0123456789").rstrip("_") or "value"
        name, number = base, 1
        while name in self._taken:
            number += 1
            name = f"{base}_{number}"
        self._taken.add(name)
        self.names[node] = name
        return name

    # -- numbers
    def symbol(self, node: torch.fx.Node) -> None:
        """A size: the number of tokens, or arithmetic on it."""
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt) and value.node.expr.is_Symbol and self.tokens:
            self.names[node] = "tokens"
            return
        if isinstance(value, (int, float)):
            self.names[node] = repr(value)
            return
        items = [self.text(item) for item in node.args]
        known: dict[Any, str] = {
            operator.mul: "*",
            operator.add: "+",
            operator.sub: "-",
            operator.floordiv: "//",
        }
        sign = known.get(node.target)
        if sign is not None:
            self.names[node] = f"({items[0]} {sign} {items[1]})"
        elif getattr(node.target, "__name__", "").startswith("sym_size"):
            self.names[node] = f"{items[0]}.shape[{items[1]}]"
        else:
            module = getattr(node.target, "__module__", "")
            self.names[node] = (
                f"{'torch' if module == 'torch' else module}.{node.target.__name__}({', '.join(items)})"  # type: ignore[union-attr]
            )

    def dtype_text(self, dtype: torch.dtype) -> str:
        if dtype is self.own_dtype:
            self.uses_dtype = True
            return "dtype"
        return str(dtype)

    def text(self, value: Any) -> str:
        """An argument as it is written."""
        if isinstance(value, torch.fx.Node):
            name = self.names[value]
            self.uses_tokens |= "tokens" in used_names(name)
            return name.removeprefix("(").removesuffix(")") if _is_wrapped(name) else name
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(self.text(item) for item in value)}]"
        if isinstance(value, torch.dtype):
            return self.dtype_text(value)
        if isinstance(value, torch.device):
            return f"{self.anchor}.device"
        if isinstance(value, float) and not math.isfinite(value):
            return f'float("{value}")'
        return f'"{value}"' if isinstance(value, str) else repr(value).replace("e+", "e")

    # -- operators
    def expression(self, node: torch.fx.Node) -> Written | str:
        """(opening, arguments, closing), or a name when the node's value has one already."""
        if node.target is operator.getitem:
            return (f"{self.text(node.args[0])}[{node.args[1]}]", (), "")
        target = node.target
        if not isinstance(target, torch._ops.OpOverload):
            return ("", (), f"{target}")
        name = target._schema.name.removeprefix("aten::")
        same = self._same_value(node, name)
        if same is not None:
            return same
        options = {key: self.text(item) for key, item in node.kwargs.items() if key not in IGNORED_OPTIONS}
        written = self._special(node, name, options) if target.namespace == "aten" else None
        return written or self._general(node, target, name, options)

    def _same_value(self, node: torch.fx.Node, name: str) -> str | None:
        """The name of the operand where the operator changes nothing."""
        first = node.args[0] if node.args else None
        if not isinstance(first, torch.fx.Node):
            return None
        before, after = first.meta.get("val"), node.meta.get("val")
        if not (torch.is_tensor(before) and torch.is_tensor(after)):
            return None
        unchanged = before.dtype == after.dtype and before.shape == after.shape
        casts = name in ("to", "_to_copy", "type_as", "lift_fresh_copy", "detach", "alias")
        idle = (name == "dropout" and node.args[2] is False) or name in ("contiguous", "clone")
        whole = name == "slice" and node.args[2:4] == (0, 2**63 - 1) and len(node.args) < 5
        return self.names[first] if unchanged and (casts or idle or whole) else None

    def _special(self, node: torch.fx.Node, name: str, options: Mapping[str, str]) -> Written | None:
        args = node.args
        words = [self.text(item) for item in args]
        if name in ("to", "_to_copy"):
            value = node.meta["val"]
            return (f"{words[0]}.to(", (self.dtype_text(value.dtype),), ")")
        if name in INFIX and len(words) == 2 and not options and _is_plain(node, name):
            return (f"{words[0]} {INFIX[name]} {words[1]}", (), "")
        if name == "neg":
            return (f"-{words[0]}", (), "")
        if name in ("bitwise_not", "logical_not") and _is_boolean(args[0]):
            return (f"~{words[0]}", (), "")
        if name == "rsub" and len(words) == 2 and not options:
            return (f"{words[1]} - {words[0]}", (), "")
        if name == "layer_norm":
            return ("functional.layer_norm(", tuple(words[:5]), ")")
        if name == "embedding":
            return ("functional.embedding(", (words[1], words[0]), ")")
        if name == "slice":
            return (f"{words[0]}[{self._slice(node)}]", (), "")
        if name == "select" and isinstance(args[1], int) and args[1] >= 0:
            return (f"{words[0]}[{':, ' * args[1]}{words[2]}]", (), "")
        return None

    def _slice(self, node: torch.fx.Node) -> str:
        """The index of aten.slice(x, axis, start, end, step)."""
        _, axis, start, end, step = (*node.args, *(0, None, None, 1)[len(node.args) - 1 :])[:5]
        first = "" if start in (0, None) else self.text(start)
        last = "" if end is None or (isinstance(end, int) and end > FAR) else self.text(end)
        step_text = "" if step == 1 else f":{self.text(step)}"
        assert isinstance(axis, int)
        rank = node.meta["val"].ndim
        before = "..., " if axis in (-1, rank - 1) and rank > 1 else ":, " * (axis % rank)
        return f"{before}{first}:{last}{step_text}"

    def _general(
        self, node: torch.fx.Node, target: torch._ops.OpOverload, name: str, options: Mapping[str, str]
    ) -> Written:
        words = [self.text(item) for item in node.args]
        named = [f"{key}={item}" for key, item in options.items()]
        plain = RENAMED.get(name, name)
        if target.namespace == "aten" and plain in METHODS and words:
            return (f"{words[0]}.{plain}(", (*words[1:], *named), ")")
        if target.namespace == "aten" and plain in TORCH:
            return (f"torch.{plain}(", (*words, *named), ")")
        if target.namespace == "aten" and plain in FUNCTIONAL:
            return (f"functional.{plain}(", (*words, *named), ")")
        overload = target._overloadname
        return (f"torch.ops.{target.namespace}.{name}.{overload}(", (*words, *named), ")")


def _is_wrapped(name: str) -> bool:
    return name.startswith("(") and name.endswith(")") and name.count("(") == 1


def _is_boolean(value: Any) -> bool:
    made = value.meta.get("val") if isinstance(value, torch.fx.Node) else None
    return torch.is_tensor(made) and made.dtype is torch.bool


def _is_plain(node: torch.fx.Node, name: str) -> bool:
    """Whether the infix form means the same: Python's `&` is logical on booleans only."""
    return name not in ONLY_BOOLEAN or all(_is_boolean(item) for item in node.args)


def used_names(text: str) -> set[str]:
    """The identifiers that occur in Python statements."""
    return {item.id for item in ast.walk(parse_python(_inside_function(text))) if isinstance(item, ast.Name)}


def _inside_function(text: str) -> str:
    """Statements with `return` parse inside a function only."""
    return "def _():\n" + "\n".join(f"    {line}" for line in text.splitlines())
