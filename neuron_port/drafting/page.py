"""A run as one HTML file: the tree of candidates with verdicts, each with its source, evidence and what changed.

No network, no script, both colour schemes. Everything in it was written by a language model or about its code, so
everything is escaped, and the page's own policy allows nothing but its one style sheet.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from neuron_port.drafting.candidates import Judged
from neuron_port.drafting.keeping.files import replace_file
from neuron_port.drafting.spending.cost import dollars
from neuron_port.drafting.tree import Story, candidate_line, error_counts, result_words
from neuron_port.grading.verdict import STAGES


@dataclass(frozen=True, kw_only=True)
class DiffLine:
    """A line of a candidate beside its parent: `kind` is "same", "added" or "removed"."""

    kind: str
    number: int | None  # in the candidate; None for a removed line
    text: str
    failing: bool = False


@dataclass(frozen=True, kw_only=True)
class Node:
    """A candidate as the page shows it."""

    judged: Judged
    line: str
    words: str
    state: str  # "admitted", "passes", "refused", "none"
    reached: int  # stages passed, of len(STAGES) - 1
    source: tuple[DiffLine, ...]
    children: tuple[Node, ...]


def write_story(story: Story, path: Path) -> Path:
    """Write the page, wholly or not at all."""
    replace_file(path, render(story).encode())
    return path


def render(story: Story) -> str:
    """The page's HTML."""
    style = _asset("explain.css")
    errors = error_counts(story.candidates.values())
    return _environment().get_template("explain.html.j2").render(
        story=story,
        description=story.run.description,
        nodes=list(_nodes(story, None)),
        admitted=story.admitted,
        stages=STAGES[1:],
        errors=errors,
        most_errors=max(errors.values(), default=1),
        figures=list(_figures(story)),
        style=Markup(style),  # our own file
        style_digest="sha256-" + base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
    )  # fmt: skip


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("neuron_port.drafting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _asset(name: str) -> str:
    return resources.files("neuron_port.drafting").joinpath("templates", name).read_text(encoding="utf-8")


def _figures(story: Story) -> Iterator[tuple[str, str, str]]:
    """Name, value, and what it is made of."""
    spent, candidates = story.spent, story.candidates.values()
    with_code = sum(judged.candidate.source is not None for judged in candidates)
    paid = sum(call.status == "paid" for call in story.state.calls)
    yield "candidates", str(len(story.candidates)), f"{with_code} with code, {len(story.plans)} plans"
    yield (
        "calls",
        str(spent.calls),
        f"{paid} answered, in {story.state.sessions} session{'' if story.state.sessions == 1 else 's'}",
    )
    yield "tokens", f"{spent.tokens:,}", f"{spent.input_tokens:,} in, {spent.output_tokens:,} out"
    yield "cost", dollars(spent.usd), "of this run" if spent.usd is not None else "the price is not known"
    verdict = story.admitted.verdict if story.admitted else None
    if verdict is not None and verdict.latency_ns is not None:
        yield "latency", f"{verdict.latency_ns / 1e3:.2f} µs", "predicted by the simulator, not measured"


def _nodes(story: Story, parent: Judged | None) -> Iterator[Node]:
    for judged in story.children(parent.candidate.id if parent else None):
        verdict = judged.verdict
        yield Node(
            judged=judged,
            line=candidate_line(judged),
            words=result_words(judged),
            state=_state(judged),
            reached=STAGES.index(verdict.stage) if verdict else 0,
            source=tuple(_diff(parent, judged)),
            children=tuple(_nodes(story, judged)),
        )


def _state(judged: Judged) -> str:
    if judged.candidate.source is None:
        return "none"
    if judged.admitted:
        return "admitted"
    return "passes" if judged.verdict is not None and judged.verdict.passed else "refused"


def _diff(parent: Judged | None, judged: Judged) -> Iterator[DiffLine]:
    """The candidate's lines, with those that its parent had and it has not."""
    if judged.candidate.source is None:
        return
    new = judged.candidate.source.splitlines()
    old = (parent.candidate.source or "").splitlines() if parent else new
    failing = judged.verdict.line if judged.verdict and not judged.verdict.passed else None
    matcher = difflib.SequenceMatcher(a=old, b=new, autojunk=False)
    for tag, a, b, c, d in matcher.get_opcodes():
        if tag != "equal":
            yield from (DiffLine(kind="removed", number=None, text=text) for text in old[a:b])
        for number in range(c, d):
            kind = "same" if tag == "equal" else "added"
            yield DiffLine(kind=kind, number=number + 1, text=new[number], failing=number + 1 == failing)
