"""What the text alone tells about a value: a tensor's buffer, dtype and shape, a register, a constant.

A name that is bound more than once keeps only what all its values agree on; a parameter tells nothing. So a rule
that needs a fact reports only where the fact is certain.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass

from neuron_port.simulator.linting.source import FunctionCode, SourceFile

_ALLOCATIONS = {
    "nki.language.ndarray": (0, 1, 2),
    "nki.language.zeros": (0, 1, 2),
    "nki.language.ones": (0, 1, 2),
    "nki.language.rand": (0, 1, 2),
    "nki.language.full": (0, 2, 3),
}  # positions of shape, dtype and buffer
_SAME_STORAGE = frozenset(
    {"reshape", "reshape_dim", "slice", "select", "permute", "broadcast", "expand_dim", "squeeze_dim"}
    | {"flatten_dims", "rearrange", "ap", "vector_select", "indirect", "view", "reinterpret_cast"}
)
_REGISTER_CALLS = frozenset(
    {
        "nki.isa.register_alloc",
        "nki.collectives.rank_id",
        "nki.collectives.collective_permute_implicit_current_processing_rank_id",
    }
)
_TILE_SIZES = {
    "pmax": 128,
    "psum_bank_fmax": 512,
    "psum_fmax": 512,
    "psum_bank_fmax_bytes": 2048,
    "gemm_stationary_fmax": 128,
    "bn_stats_fmax": 512,
}
_DEPTH_LIMIT = 8  # names followed before giving up; real kernels need two or three


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor as far as the text tells: None where it does not."""

    buffer: str | None  # sbuf, psum, private_hbm, shared_hbm
    dtype: str | None  # "float32"
    shape: tuple[int | None, ...] | None
    whole: bool  # the allocation itself, not a view of it


class Facts:
    """Answers questions about the expressions of one file."""

    def __init__(self, source: SourceFile) -> None:
        self.source = source
        self.loop_variables: dict[FunctionCode, set[str]] = {}

    def argument(self, call: ast.Call, position: int | None, name: str) -> ast.expr | None:
        """The argument given by position or by name; None when it is absent or hidden behind a star."""
        for keyword in call.keywords:
            if keyword.arg == name:
                return keyword.value
        if position is None or any(isinstance(value, ast.Starred) for value in call.args):
            return None
        return call.args[position] if position < len(call.args) else None

    def values(self, expression: ast.expr, scope: FunctionCode) -> list[tuple[ast.expr | None, FunctionCode]]:
        """What the expression stands for: itself, or for a name everything bound to it."""
        if not isinstance(expression, ast.Name):
            return [(expression, scope)]
        owner = scope.scope_of(expression.id)
        if owner is None:
            return [(None, scope)]
        return [(value, owner) for value in owner.bindings[expression.id]]

    def tensor(self, expression: ast.expr | None, scope: FunctionCode, depth: int = 0) -> Tensor | None:
        """The tensor that the expression is, or None when the text does not tell."""
        if expression is None or depth > _DEPTH_LIMIT:
            return None
        if isinstance(expression, ast.Name):
            found = [self.tensor(value, owner, depth + 1) for value, owner in self.values(expression, scope)]
            return _agreement(found)
        if isinstance(expression, ast.Subscript):
            base = self.tensor(expression.value, scope, depth + 1)
            return base and _view(base)
        if not isinstance(expression, ast.Call):
            return None
        name = self.source.full_name(expression.func, scope)
        if name in _ALLOCATIONS:
            return self._allocation(expression, _ALLOCATIONS[name], scope)
        if isinstance(expression.func, ast.Attribute) and expression.func.attr in _SAME_STORAGE:
            base = self.tensor(expression.func.value, scope, depth + 1)
            recast = expression.func.attr in ("view", "reinterpret_cast", "ap")
            return base and _view(base, dtype=None if recast else base.dtype)
        return None

    def _allocation(self, call: ast.Call, positions: tuple[int, int, int], scope: FunctionCode) -> Tensor:
        shape, dtype, buffer = (
            self.argument(call, position, name)
            for position, name in zip(positions, ("shape", "dtype", "buffer"), strict=True)
        )
        memory: str | None = "sbuf"
        if buffer is not None:
            memory = self._member(buffer, scope)
        elif any(keyword.arg is None for keyword in call.keywords):
            memory = None
        return Tensor(
            buffer="private_hbm" if memory == "hbm" else memory,
            dtype=self._member(dtype, scope) if dtype is not None else None,
            shape=self.shape(shape, scope),
            whole=True,
        )

    def _member(self, expression: ast.expr, scope: FunctionCode) -> str | None:
        """Last part of an `nl.` name, through one assignment: `nl.float32` -> "float32"."""
        found = set()
        for value, owner in self.values(expression, scope):
            name = self.source.full_name(value, owner) if value is not None else None
            if name is None and isinstance(expression, ast.Name):
                name = self.source.full_name(expression, scope)
            found.add(name)
        name = found.pop() if len(found) == 1 else None
        return name.rpartition(".")[2] if name and name.startswith("nki.language.") else None

    def shape(self, expression: ast.expr | None, scope: FunctionCode) -> tuple[int | None, ...] | None:
        """The shape that a tuple or list spells; None for a dimension that is no constant."""
        if isinstance(expression, ast.Name):
            values = self.values(expression, scope)
            expression, scope = values[0] if len(values) == 1 else (None, scope)
        if not isinstance(expression, ast.Tuple | ast.List):
            return None
        if any(isinstance(item, ast.Starred) for item in expression.elts):
            return None
        return tuple(self.integer(item, scope) for item in expression.elts)

    def integer(self, expression: ast.expr | None, scope: FunctionCode, depth: int = 0) -> int | None:
        """The value of a constant integer expression."""
        if depth > _DEPTH_LIMIT or expression is None:
            return None
        if isinstance(expression, ast.Constant):
            value = expression.value
            return value if isinstance(value, int) and not isinstance(value, bool) else None
        if isinstance(expression, ast.Name):
            values = self.values(expression, scope)
            return self.integer(*values[0], depth + 1) if len(values) == 1 else None
        if isinstance(expression, ast.Attribute):
            name = self.source.full_name(expression, scope) or ""
            return _TILE_SIZES.get(name.removeprefix("nki.language.tile_size."))
        if isinstance(expression, ast.UnaryOp) and isinstance(expression.op, ast.USub):
            operand = self.integer(expression.operand, scope, depth + 1)
            return None if operand is None else -operand
        if isinstance(expression, ast.BinOp):
            left = self.integer(expression.left, scope, depth + 1)
            right = self.integer(expression.right, scope, depth + 1)
            return None if left is None or right is None else _arithmetic(expression.op, left, right)
        return None

    def is_register(self, expression: ast.expr | None, scope: FunctionCode, depth: int = 0) -> bool:
        """Whether the expression certainly is a register: allocated, or a dynamic loop's variable."""
        if expression is None or depth > _DEPTH_LIMIT:
            return False
        if isinstance(expression, ast.Call):
            return self.source.full_name(expression.func, scope) in _REGISTER_CALLS
        if not isinstance(expression, ast.Name):
            return False
        owner = scope.scope_of(expression.id)
        if owner is None:
            return False
        if expression.id in self.dynamic_loop_variables(owner):
            return True
        values = owner.bindings[expression.id]
        return bool(values) and all(self.is_register(value, owner, depth + 1) for value in values)

    def dynamic_loop_variables(self, code: FunctionCode) -> set[str]:
        """Names in `code` that are registers because a hardware loop counts them."""
        if code not in self.loop_variables:
            found = {
                loop.target.id
                for loop in code.of(ast.For)
                if isinstance(loop.target, ast.Name)
                and isinstance(loop.iter, ast.Call)
                and self.source.full_name(loop.iter.func, code) == "nki.language.dynamic_range"
            }
            self.loop_variables[code] = found
        return self.loop_variables[code]


def _arithmetic(operator: ast.operator, left: int, right: int) -> int | None:
    if isinstance(operator, ast.Add):
        return left + right
    if isinstance(operator, ast.Sub):
        return left - right
    if isinstance(operator, ast.Mult):
        return left * right
    if isinstance(operator, ast.FloorDiv) and right != 0:
        return left // right
    if isinstance(operator, ast.Mod) and right != 0:
        return left % right
    return None


def _view(tensor: Tensor, dtype: str | None = "same") -> Tensor:
    kept = tensor.dtype if dtype == "same" else dtype
    return Tensor(buffer=tensor.buffer, dtype=kept, shape=None, whole=False)


def _agreement(found: list[Tensor | None]) -> Tensor | None:
    """What all of them say; None when one says nothing."""
    if not found or any(tensor is None for tensor in found):
        return None
    first, *others = [tensor for tensor in found if tensor is not None]
    same = all(
        other == first or (other.buffer, other.dtype) == (first.buffer, first.dtype) for other in others
    )
    if same:
        return first if all(other == first for other in others) else _view(first)
    return Tensor(
        buffer=first.buffer if all(other.buffer == first.buffer for other in others) else None,
        dtype=first.dtype if all(other.dtype == first.dtype for other in others) else None,
        shape=None,
        whole=False,
    )
