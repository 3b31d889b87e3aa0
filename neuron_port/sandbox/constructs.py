"""The Python that a candidate may be written in: NKI's subset, as the lint knows it (docs/lint.md, W01)."""

from __future__ import annotations

import ast

# What kernels of AWS's own library are written in, less classes and what reaches beyond the file.
ALLOWED_NODES: frozenset[type[ast.AST]] = frozenset(
    {
        ast.Module, ast.Import, ast.ImportFrom, ast.alias,
        ast.FunctionDef, ast.arguments, ast.arg, ast.Return,
        ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Expr, ast.Pass, ast.Assert,
        ast.For, ast.While, ast.If, ast.Break, ast.Continue, ast.With, ast.withitem,
        ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.UAdd, ast.Invert,
        ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow,
        ast.LShift, ast.RShift, ast.BitAnd, ast.BitOr, ast.BitXor,
        ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Is, ast.IsNot, ast.In, ast.NotIn,
        ast.IfExp, ast.Call, ast.keyword, ast.Constant, ast.JoinedStr, ast.FormattedValue,
        ast.Name, ast.Attribute, ast.Subscript, ast.Slice, ast.Tuple, ast.List, ast.Dict, ast.Load, ast.Store,
    }
)  # fmt: skip

_CURES: dict[str, tuple[str, str]] = {
    "ListComp": ("a list comprehension", "build the list in a for loop with append"),
    "SetComp": ("a set comprehension", "build a list in a for loop with append"),
    "DictComp": ("a dict comprehension", "build the dict in a for loop"),
    "GeneratorExp": ("a generator expression", "build a list in a for loop with append"),
    "Try": ("try/except", "test the condition with if; nothing is raised on the device"),
    "TryStar": ("try/except*", "test the condition with if; nothing is raised on the device"),
    "Raise": ("raise", "assert condition, message"),
    "Yield": ("yield", "return a tuple, or append to a list that the caller passes"),
    "YieldFrom": ("yield from", "return a tuple, or append to a list that the caller passes"),
    "Await": ("await", "call a plain function"),
    "AsyncFunctionDef": ("an async function", "define it with def"),
    "AsyncFor": ("async for", "use a for loop"),
    "AsyncWith": ("async with", "use `with nl.no_reorder():`"),
    "NamedExpr": ("the walrus operator", "assign on a line of its own"),
    "Global": ("global", "pass the value as an argument and return the new one"),
    "Nonlocal": ("nonlocal", "pass the value as an argument and return the new one"),
    "Set": ("a set", "use a tuple or a list"),
    "Starred": ("a star before an expression", "write the elements one by one"),
    "Delete": ("del", "let the name go out of scope"),
    "Match": ("match", "use if and elif"),
    "Lambda": ("a lambda", "define a function with def"),
    "ClassDef": ("a class", "pass values as arguments, several of them as a tuple"),
    "MatMult": ("the operator @", "use nisa.nc_matmul"),
    "TypeAlias": ("a type alias", "write the annotation out, or leave it away"),
}


def cure_of(node: ast.AST) -> tuple[str, str]:
    """What a construct is called, and what to write instead."""
    kind = type(node).__name__
    return _CURES.get(kind, (f"the construct {kind}", "use plain assignments, loops, conditions and calls"))
