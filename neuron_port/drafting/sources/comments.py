"""Comments out of source code, strings left alone: what nobody executes can only instruct.

Python by its own tokenizer, CUDA by a state machine. A docstring becomes `...`, so that the code still parses.
"""

from __future__ import annotations

import ast
import io
import re
import textwrap
import tokenize
import warnings

from neuron_port.drafting.replies.parts import plain_lines
from neuron_port.errors import NeuronPortError
from neuron_port.simulator.parsing import parse_python

# Comments, and the literals inside of which they would be none; 1'000'000 is a number, whose quotes open nothing.
# A literal that is not closed ends with its line, so that every text is walked once.
_CUDA = re.compile(
    r"""
    (?P<raw>R"(?P<mark>[^()\\\s]{0,16})\((?:.*?\)(?P=mark)"|.*))
    | (?P<number>\b\d[\w.]*(?:'[\w.]+)*)
    | (?P<string>"(?:\\.|[^"\\\n])*+"?)
    | (?P<character>'(?:\\.|[^'\\\n])*+'?)
    | (?P<line>//(?:\\\n|[^\n])*)
    | (?P<block>/\*.*?(?:\*/|\Z))
    """,
    re.VERBOSE | re.DOTALL,
)


class CommentError(NeuronPortError):
    """Comments cannot be told from code."""


def without_comments(text: str, language: str) -> str:
    """The code without its comments and, in Python, without docstrings; language: triton, pytorch or cuda.

    Raises:
        CommentError: Python that its tokenizer refuses.
    """
    return _cuda_without_comments(text) if language == "cuda" else _python_without_comments(text)


def _cuda_without_comments(text: str) -> str:
    def replaced(found: re.Match[str]) -> str:
        if found.lastgroup not in ("line", "block"):
            return found[0]
        breaks = "\n" * found[0].count("\n")
        return breaks or ("" if found.lastgroup == "line" else " ")

    return _tidy(_CUDA.sub(replaced, plain_lines(text)))


def _python_without_comments(text: str) -> str:
    text = textwrap.dedent(plain_lines(text))  # a class cut out of its file may be indented
    lines = text.split("\n")
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (tokenize.TokenError, SyntaxError, ValueError) as error:
        raise CommentError(
            f"Comments cannot be told from code: {error}",
            hint="Correct the source, or show it with its comments.",
        ) from error
    for token in reversed(tokens):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            line = lines[row - 1]
            lines[row - 1] = line[:column] + line[token.end[1] :]
    return _tidy(_without_docstrings("\n".join(lines)))


def _without_docstrings(text: str) -> str:
    """Strings that stand as statements become `...`: docstrings, and comments written as strings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd escapes in strings are no concern of ours
            tree = parse_python(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise CommentError(
            f"Docstrings cannot be told from code: {error or type(error).__name__}",
            hint="Correct the source, or show it with its comments.",
        ) from error
    lines = text.encode().splitlines(keepends=True)  # the tree counts columns in UTF-8
    strings = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]
    for node in sorted(strings, key=lambda node: (node.lineno, node.col_offset), reverse=True):
        last = (node.end_lineno or node.lineno) - 1
        before = lines[node.lineno - 1][: node.col_offset]
        after = lines[last][node.end_col_offset or 0 :]
        lines[node.lineno - 1 : last + 1] = [before + b"..." + after + b"\n" * (last - node.lineno + 1)]
    return b"".join(lines).decode()


def _tidy(text: str) -> str:
    """Without blank space at line ends, and no more than two empty lines in a row."""
    lines = [line.rstrip() for line in text.split("\n")]
    return re.sub(r"\n{4,}", "\n\n\n", "\n".join(lines)).strip("\n") + "\n"
