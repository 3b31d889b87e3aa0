"""The kernel out of a reply: one Python module that defines the entry point, or a sentence that asks for it again.

Replies are hostile until proven otherwise: every step is bounded by the length of the reply, and nothing is executed.
"""

from __future__ import annotations

import ast
import hashlib
import html
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from neuron_port.drafting.replies.parts import Block, fenced_blocks, plain_lines, without_thoughts
from neuron_port.errors import NeuronPortError
from neuron_port.llm.messages import Finish
from neuron_port.sandbox.gate_text import RefusedError, parse_carefully
from neuron_port.sandbox.job import Failure

MAXIMUM_REPLY_CHARACTERS = 1_000_000
TAB_COLUMNS = 4
ENTITIES = frozenset({"lt", "gt", "amp", "quot"})
PYTHON_LANGUAGES = ("", "python", "py", "python3", "nki")


class ExtractionError(NeuronPortError):
    """A reply holds no usable module; the message is fit to be sent back to the model."""


@dataclass(frozen=True, kw_only=True)
class _Attempt:
    """One text that may be the module: what it parsed to, or why it did not."""

    code: str
    block: Block | None
    tree: ast.Module | None
    complaint: str = ""

    def defines(self, entry_point: str) -> bool:
        return self.tree is not None and entry_point in _functions(self.tree)


def extract_code(reply: str, entry_point: str, finish: Finish = "stop") -> str:
    """The last fenced module of the reply that defines `entry_point`, or the whole reply if that is one.

    Line breaks become one kind; HTML entities and tabs are resolved where the code does not parse with them.

    Raises:
        ExtractionError: no code, no entry point, code that does not parse or was cut off, a module in pieces.
    """
    if finish == "refused":
        raise ExtractionError("The provider's filter refused to answer")
    if len(reply) > MAXIMUM_REPLY_CHARACTERS:
        raise ExtractionError(
            f"The reply has {len(reply)} characters, at most {MAXIMUM_REPLY_CHARACTERS} are read"
        )
    text = without_thoughts(reply)
    if reply.strip() and not text.strip():
        raise ExtractionError("The reply ended before its thoughts did: there is no code after them")
    blocks = [block for block in fenced_blocks(text) if block.language in PYTHON_LANGUAGES]
    attempts = [_attempt(block.text, block) for block in blocks]
    usable = [attempt for attempt in attempts if attempt.defines(entry_point) and _complete(attempt, finish)]
    if usable:
        return _whole_module(usable[-1], attempts)
    if not blocks:
        whole = _attempt(text, None)
        if whole.defines(entry_point) and finish != "length":
            return whole.code
        attempts = [whole] if _looks_like_code(text, entry_point) else []
    raise ExtractionError(_complaint(attempts, entry_point, finish))


def _complete(attempt: _Attempt, finish: Finish) -> bool:
    """Code that the token limit cut may parse by chance: only a closed block is known to be whole."""
    return finish != "length" or (attempt.block is not None and attempt.block.closed)


def _attempt(text: str, block: Block | None) -> _Attempt:
    """The module of a text, tried as it is, then with entities resolved, tabs expanded and indentation removed."""
    parsed: list[_Attempt] = []
    complaints: list[str] = []
    for code in _spellings(text):
        tree, complaint = parse(code)
        if tree is None:
            complaints.append(complaint)
        elif _reads_entities_as_names(code, tree):
            parsed.append(_Attempt(code=code, block=block, tree=tree))
        else:
            return _Attempt(code=code, block=block, tree=tree)
    return parsed[0] if parsed else _Attempt(code=text, block=block, tree=None, complaint=complaints[0])


def _spellings(text: str) -> Iterator[str]:
    base = text.strip("\n") + "\n"
    spaced = base.expandtabs(TAB_COLUMNS)
    seen: set[str] = set()
    for code in (base, textwrap.dedent(base), spaced, textwrap.dedent(spaced)):
        for spelling in (code, html.unescape(code).replace("\xa0", " ")):
            if spelling not in seen:
                seen.add(spelling)
                yield spelling


def _reads_entities_as_names(code: str, tree: ast.Module) -> bool:
    """Whether `a &lt; b` was parsed as `a & lt` followed by `b`."""
    return "&" in code and any(isinstance(node, ast.Name) and node.id in ENTITIES for node in ast.walk(tree))


def parse(code: str) -> tuple[ast.Module | None, str]:
    """The module, or None and why not, in the parser's words. Code of any kind may be given."""
    try:
        return parse_carefully(code), ""
    except RefusedError as refused:
        return None, _parsers_words(refused.failure, code)


def _parsers_words(failure: Failure, code: str) -> str:
    """One line: where, what, and the line of code itself."""
    message = failure.message.removeprefix("the file is no Python: ")
    if failure.line is None:
        return message
    lines = code.split("\n")
    text = lines[failure.line - 1].strip()[:80] if 1 <= failure.line <= len(lines) else ""
    return f"line {failure.line}: {message}" + (f": `{text}`" if text else "")


def _functions(tree: ast.Module) -> list[str]:
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


def _imports_nki(attempt: _Attempt) -> bool:
    return attempt.tree is not None and any(
        alias.name.split(".")[0] == "nki"
        for node in attempt.tree.body
        if isinstance(node, ast.Import)
        for alias in node.names
    )


def _whole_module(chosen: _Attempt, attempts: list[_Attempt]) -> str:
    """The chosen code, unless the rest of the module stands in another block."""
    if not _imports_nki(chosen) and any(_imports_nki(attempt) for attempt in attempts):
        raise ExtractionError(
            f"The module is spread over {len(attempts)} fenced blocks: put imports, helpers and the entry point "
            "into one"
        )
    return chosen.code


def _looks_like_code(text: str, entry_point: str) -> bool:
    return f"def {entry_point}" in text or "import nki" in text or "@nki.jit" in text


def _complaint(attempts: list[_Attempt], entry_point: str, finish: Finish) -> str:
    """Why no attempt is usable, in one sentence that says what to send instead."""
    if finish == "length":
        return (
            "The reply was cut off at the token limit before the module was complete: write less before the code, "
            "and shorter code"
        )
    if not attempts:
        return "The reply holds no fenced `python` block: put the whole module into one"
    broken = [attempt for attempt in attempts if attempt.tree is None]
    mentioning = [attempt for attempt in broken if f"def {entry_point}" in attempt.code]
    if mentioning or len(broken) == len(attempts):
        return f"The code does not parse, {(mentioning or broken)[-1].complaint}"
    defined = [name for attempt in attempts if attempt.tree is not None for name in _functions(attempt.tree)]
    listed = ", ".join(f"`{name}`" for name in dict.fromkeys(defined[:8])) or "no function"
    return f"The module defines {listed}: the entry point must be a function called `{entry_point}`"


# ---- the same code again ---------------------------------------------------------------------------------


def normalised_digest(code: str) -> str:
    """Sixteen characters that stay when comments, blank space, quotes, parentheses or docstrings change.

    Names count: a renamed variable is other code. Code that does not parse goes by its text without blank space
    at line ends.
    """
    tree, _ = parse(code)
    if tree is not None:
        try:
            return _short_digest("tree " + ast.dump(_without_docstrings(tree)))
        except RecursionError:
            pass  # nested deeper than Python can walk: by its text, as below
    lines = [line.rstrip() for line in plain_lines(code).split("\n")]
    return _short_digest("text " + "\n".join(line for line in lines if line))


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            constant = first.value if isinstance(first, ast.Expr) else None
            if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
                node.body = node.body[1:]
    return tree


def _short_digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
