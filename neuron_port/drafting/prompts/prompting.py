"""Prompts are files: `prompts/*.md`, rendered strictly, with every foreign word behind a fence.

A template says of each text that it prints what it is, and a bare `{{ text }}` is an error:

* `{{ text | ours }}`            we wrote it, or generated it from our own files: printed as it is
* `{{ text | fenced("source") }}`  data: code, messages, replies; between marks that the data cannot contain
* `{{ text | line }}`            data on one short line, without characters that could be markup
* `{{ text | name }}`            an identifier, and nothing else

Numbers need no filter. A variable that is missing, one that no template prints, and a template that does not exist
are errors.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from jinja2 import meta, nodes

from neuron_port.errors import NeuronPortError

LINE_LENGTH = 400  # characters of what `line` prints
# What chat templates take for the borders between speakers: `<|im_end|>`, `[/INST]`, `<<SYS>>`, `<start_of_turn>`.
_CHAT_MARKUP = re.compile(
    r"<\|[^|<>\n]{0,60}\|>|\[/?INST\]|<</?SYS>>|</?(?:start|end)_of_turn>|</?think(?:ing)?>"
)
_OUR_MARKUP = re.compile(r"<(?=/?[a-z]{1,24}-[0-9a-f]{12}\b)")
_KINDS = re.compile(r"[a-z]{1,24}")
_UNUSUAL = re.compile(r"[^\n\t\x20-\x7e]")
_VARIATION_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")
# Formatting characters that show nothing and may say something: bidirectional marks, zero width, tags (U+E0000).
_HIDDEN_CATEGORIES = frozenset({"Cf", "Co", "Cn", "Cs"})


class PromptError(NeuronPortError):
    """A template and its values do not fit together: a mistake of ours, never of the language model."""


class Printable(str):
    """Text that a filter has made fit to be printed."""

    __slots__ = ()


# ---- data behind fences ----------------------------------------------------------------------------------


def neutralised(text: str) -> str:
    """Text without what is invisible, and with a space inside of what could be taken for markup of a conversation.

    Code passes unchanged unless it contains such markup: `<<<grid, block>>>` and `a < b` do.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    visible = _UNUSUAL.sub(_visible, lines)
    spaced = _CHAT_MARKUP.sub(lambda found: found[0][0] + " " + found[0][1:], visible)
    return _OUR_MARKUP.sub("< ", spaced)


def _visible(found: re.Match[str]) -> str:
    """A character outside of printable ASCII: itself if it shows, else a space or nothing."""
    character = found[0]
    category = unicodedata.category(character)
    if category.startswith("Z"):
        return " "
    hidden = category in _HIDDEN_CATEGORIES or _VARIATION_SELECTORS.match(character)
    return "" if hidden or not character.isprintable() else character


def fence(text: str, kind: str) -> Printable:
    """The text between `<kind-mark>` and `</kind-mark>`, where the mark is a digest that the text does not contain.

    The mark depends on the text, so nobody can write a text that closes its own fence.
    """
    if not _KINDS.fullmatch(kind):
        raise PromptError(f"A fence cannot be named: `{kind}`", hint="Use up to 24 lower-case letters.")
    content = neutralised(text).strip("\n")
    attempt = 0
    while True:
        mark = hashlib.sha256(f"{kind} {attempt} {content}".encode()).hexdigest()[:12]
        if mark not in content:
            return Printable(f"<{kind}-{mark}>\n{content}\n</{kind}-{mark}>")
        attempt += 1


def as_line(text: Any) -> Printable:
    """Data on one line: no line breaks, no backticks, no markup of a conversation, at most LINE_LENGTH characters."""
    words = " ".join(neutralised(str(text)).split())
    plain = words.replace("`", "'")
    return Printable(plain if len(plain) <= LINE_LENGTH else plain[: LINE_LENGTH - 1] + "…")


def _as_name(text: str) -> Printable:
    if not isinstance(text, str) or not text.isidentifier() or not text.isascii():
        raise PromptError(f"A prompt was given `{as_line(text)}` where an identifier belongs")
    return Printable(text)


def _as_ours(text: str) -> Printable:
    return Printable(text)


def _only_printable(value: Any) -> Any:
    """What every printed expression passes through: text that no filter has looked at stops here."""
    if isinstance(value, jinja2.Undefined):
        str(value)  # StrictUndefined raises and names the variable
    if isinstance(value, (Printable, int, float)):
        return value
    raise PromptError(
        f"A template prints {type(value).__name__} `{as_line(value)}` without saying what it is",
        hint="Add `| fenced(...)`, `| line`, `| name` or `| ours`.",
    )


# ---- templates -------------------------------------------------------------------------------------------


def _file(name: str) -> Any:
    return resources.files("neuron_port.drafting").joinpath("prompts", f"{name}.md")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template_text),
        undefined=jinja2.StrictUndefined,
        finalize=_only_printable,
        autoescape=False,  # not HTML; _only_printable takes its place
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"fenced": fence, "line": as_line, "name": _as_name, "ours": _as_ours}
    return environment


def _template_text(name: str) -> str:
    file = _file(name)
    if not re.fullmatch(r"[a-z_]+", name) or not file.is_file():
        raise PromptError(f"No prompt is called: `{name}`", hint=f"There are: {', '.join(prompt_names())}")
    return str(file.read_text(encoding="utf-8"))


def prompt_names() -> tuple[str, ...]:
    """All templates by name, in alphabetical order; `task` and `patterns` are parts of others."""
    files = resources.files("neuron_port.drafting").joinpath("prompts").iterdir()
    return tuple(sorted(file.name.removesuffix(".md") for file in files if file.name.endswith(".md")))


@cache
def prompt_variables(name: str) -> frozenset[str]:
    """The variables that a template prints or asks about, with those of the templates that it includes."""
    tree = _environment().parse(_template_text(name))
    found = set(meta.find_undeclared_variables(tree))
    for include in tree.find_all(nodes.Include):
        if not isinstance(include.template, nodes.Const):
            raise PromptError(f"Prompt `{name}` includes a template whose name is computed")
        found |= prompt_variables(include.template.value)
    return frozenset(found)


def render(name: str, **values: Any) -> str:
    """The prompt of that name with its values.

    Raises:
        PromptError: no such template; a variable that is missing, or that the template does not use; a text that
            the template prints without saying what it is.
    """
    wanted = prompt_variables(name)
    _refuse(name, "is not given", wanted - set(values))
    _refuse(name, "does not use", set(values) - wanted)
    try:
        text = _environment().get_template(name).render(values)
    except jinja2.UndefinedError as error:
        raise PromptError(f"Prompt `{name}`: {error}") from error
    return text.strip() + "\n"


def _refuse(name: str, what: str, variables: Iterable[str]) -> None:
    listed = ", ".join(sorted(variables))
    if listed:
        raise PromptError(f"Prompt `{name}` {what}: {listed}")


@cache
def prompts_digest() -> str:
    """Sixteen characters that change when any template does."""
    text = "\0".join(f"{name}\0{_template_text(name)}" for name in prompt_names())
    return hashlib.sha256(text.encode()).hexdigest()[:16]
