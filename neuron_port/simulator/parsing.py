"""`ast.parse` for programs with threads.

CPython 3.11 keeps the depth of the tree that it builds in one place for all threads: when two build trees at once, either
may fail with "SystemError: AST constructor recursion depth mismatch" (python/cpython issue 106905). Kernels are read by
several threads, so trees are built one at a time; the interpreter's own lock would let no more than one run anyway.
"""

from __future__ import annotations

import ast
import threading

_ONE_AT_A_TIME = threading.RLock()


def parse_python(source: str, filename: str = "<unknown>") -> ast.Module:
    """The tree of a Python module. Raises what `ast.parse` raises."""
    with _ONE_AT_A_TIME:
        return ast.parse(source, filename)
