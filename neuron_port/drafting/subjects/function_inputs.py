"""The little language of a function's inputs: `-i x=TxH`, `--size T=1..300`, `-s eps=1e-6`; and the cases that follow."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from neuron_port.errors import UsageError
from neuron_port.recipe import Case, CaseKind, Size, Style

_INPUT = re.compile(r"(?P<dims>\w+(?:x\w+)*)(?::(?P<kind>float|weight|index<(?P<limit>\w+)))?")
_SIZE = re.compile(r"(?P<least>\d+)(?:\.\.(?P<most>\d+)(?:/(?P<multiple>\d+))?)?")
ORDINARY, TAILS, STRESS = 128, (3, 130), 17
STYLES: tuple[Style, ...] = ("constant rows", "outliers", "one hot", "clustered", "long tail", "signed zeros")


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """A tensor argument: its shape in named sizes and numbers; `limit` bounds an integer input, "" of the others."""

    name: str
    shape: tuple[int | str, ...]
    kind: Literal["float", "weight", "index"]
    limit: str = ""


def parse_sizes(texts: Sequence[str]) -> dict[str, Size]:
    """`T=1..300`, `K=128..1024/128`, `H=512`.

    Raises:
        UsageError: another form, or a name that is given twice.
    """
    sizes: dict[str, Size] = {}
    for text in texts:
        name, _, value = text.partition("=")
        found = _SIZE.fullmatch(value)
        if not name.isidentifier() or "x" in name or found is None:
            raise UsageError(
                f"Size `{text}` cannot be read",
                hint="Write NAME=NUMBER, NAME=LEAST..MOST or NAME=LEAST..MOST/MULTIPLE, names without an x.",
            )
        if name in sizes:
            raise UsageError(f"Size `{name}` is given twice", hint="Give each size once.")
        least = int(found["least"])
        size = Size(least=least, most=int(found["most"] or least), multiple=int(found["multiple"] or 1))
        if least < 1 or size.most < least or size.multiple < 1 or least % size.multiple:
            raise UsageError(
                f"Size `{text}` holds no number", hint="LEAST is positive, a multiple, and at most MOST."
            )
        sizes[name] = size
    return sizes


def parse_inputs(texts: Sequence[str], sizes: Mapping[str, Size]) -> list[InputSpec]:
    """`x=TxH`, `weight=H:weight`, `ids=T:index<V`.

    Raises:
        UsageError: another form, a size that nobody gave, a name that is given twice, a size that is not used.
    """
    specs: list[InputSpec] = []
    for text in texts:
        name, _, value = text.partition("=")
        found = _INPUT.fullmatch(value)
        if not name.isidentifier() or found is None:
            raise UsageError(
                f"Input `{text}` cannot be read",
                hint="Write NAME=TxH, NAME=TxH:weight or NAME=T:index<V, in sizes and numbers.",
            )
        if name in {spec.name for spec in specs}:
            raise UsageError(f"Input `{name}` is given twice", hint="Give each input once.")
        shape = tuple(_dimension(word, text, sizes) for word in found["dims"].split("x"))
        limit = found["limit"] or ""
        if limit:
            _dimension(limit, text, sizes)
        kind: Any = "index" if limit else found["kind"] or "float"
        specs.append(InputSpec(name=name, shape=shape, kind=kind, limit=limit))
    used = {word for spec in specs for word in (*spec.shape, spec.limit)}
    for name in sizes:
        if specs and name not in used:
            raise UsageError(f"Size `{name}` occurs in no input", hint="Leave it out, or name it in an -i.")
    return specs


def _dimension(word: str, text: str, sizes: Mapping[str, Size]) -> int | str:
    if word.isdigit():
        if int(word) < 1:
            raise UsageError(f"Input `{text}` has an axis of no element")
        return int(word)
    if word not in sizes:
        near = difflib.get_close_matches(word, sizes, n=1)
        hint = f"Did you mean `{near[0]}`?" if near else f"--size {word}=512, or --size {word}=1..300."
        raise UsageError(f"Input `{text}` names the size `{word}`, which nobody gave", hint=hint)
    return word


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """`eps=1e-6`: Python literals; anything else is a word."""
    settings: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"Setting `{text}` cannot be read", hint="Write NAME=VALUE, such as eps=1e-6.")
        try:
            settings[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            settings[name] = value
    return settings


def sized_cases(
    sizes: Mapping[str, Size], attributes: Mapping[str, Any], has_values: bool
) -> tuple[Case, ...]:
    """Cases that reach tails of every free size, and values that break careless kernels."""

    def case(name: str, kind: CaseKind, wish: int, scale: float = 1.0, style: Style = "normal") -> Case:
        chosen = {key: nearest(size, wish) for key, size in sizes.items()}
        return Case(name=name, kind=kind, sizes=chosen, attributes=dict(attributes), scale=scale, style=style)

    is_free = any(size.least != size.most for size in sizes.values())
    cases = [case("ordinary", "ordinary", ORDINARY)]
    if is_free:
        cases += [case("the least", "ordinary", 1), *(case(f"about {n}", "tail", n) for n in TAILS)]
    else:
        cases.append(case("the same sizes again", "tail", ORDINARY))
    if has_values:
        cases += [case("tiny values", "stress", STRESS, 1e-3), case("large values", "stress", STRESS, 30.0)]
        cases += [case(style, "stress", STRESS, style=style) for style in STYLES]
    else:
        cases.append(case("other indices", "stress", STRESS))
    distinct: dict[str, Case] = {}
    for item in cases:
        key = str((item.kind if item.kind == "stress" else "", dict(item.sizes), item.scale, item.style))
        distinct.setdefault(key if is_free else item.name, item)
    return tuple(distinct.values())


def nearest(size: Size, wish: int) -> int:
    """The value that the size may take nearest to `wish`, not below its least."""
    clamped = max(size.least, min(size.most, wish))
    return max(size.least, clamped - clamped % size.multiple)
