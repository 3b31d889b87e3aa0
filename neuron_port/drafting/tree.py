"""The tree of a run's candidates, with verdicts, as text: what `neuron-port explain` prints.

`read_story` folds a run's events into one record, which the text and the page (`drafting/page.py`) both show.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from neuron_port.drafting.candidates import Judged, read_candidates
from neuron_port.drafting.keeping.journal import FoundRun, RunState, fold, read_events
from neuron_port.drafting.spending.cost import Cost, dollars
from neuron_port.grading.verdict import Verdict

LINE_LENGTH = 160


@dataclass(frozen=True, kw_only=True)
class PlanTold:
    number: int
    text: str
    problems: tuple[str, ...]

    @property
    def gist(self) -> str:
        """Its summary, or the first line of what was no plan."""
        try:
            read = json.loads(self.text)
        except ValueError:
            read = None
        if isinstance(read, dict) and isinstance(read.get("summary"), str):
            return _cut(" ".join(read["summary"].split()))
        return _cut(self.text.strip().partition("\n")[0])


@dataclass(frozen=True, kw_only=True)
class Story:
    """One run: what it was about, its plans, its candidates by id, and how it ended."""

    run: FoundRun
    plans: tuple[PlanTold, ...]
    candidates: Mapping[str, Judged]
    state: RunState
    outcome: str  # why it ended; "" while it is under way, or after a kill
    hidden_seed: int | None

    @property
    def admitted(self) -> Judged | None:
        return next((judged for judged in self.candidates.values() if judged.admitted), None)

    @property
    def spent(self) -> Cost:
        return self.state.spent

    def children(self, parent: str | None) -> list[Judged]:
        return [judged for judged in self.candidates.values() if judged.candidate.parent == parent]


def read_story(run: FoundRun) -> Story:
    """The run as its journal has it; it may be under way."""
    events = read_events(run.folder)
    plans = tuple(
        PlanTold(number=event["plan"], text=event["text"], problems=tuple(event["problems"]))
        for event in events
        if event["kind"] == "plan"
    )
    decided = {event["name"]: event["value"] for event in events if event["kind"] == "decided"}
    state = fold(events)
    return Story(
        run=run,
        plans=plans,
        candidates=read_candidates(events),
        state=state,
        outcome=str(state.ended["reason"]) if state.ended else "",
        hidden_seed=decided.get("hidden seed"),
    )


def story_text(story: Story) -> str:
    """Headline, plans and the tree, a line for each candidate and one for its evidence."""
    lines = [headline(story), ""]
    for plan in story.plans:
        fit = "its arithmetic fits" if not plan.problems else f"refused: {plan.problems[0]}"
        lines.append(f"plan {plan.number + 1}: {plan.gist} ({fit})")
    lines.extend(_branches(story, None, ""))
    return "\n".join(lines) + "\n"


def headline(story: Story) -> str:
    description = story.run.description
    layer = f" ({description.layer})" if description.layer else ""
    spent = story.spent
    cost = f"{spent.calls} calls, {spent.tokens:,} tokens, {dollars(spent.usd)}"
    outcome = story.outcome or "not finished: run the same command again to go on"
    return f"{description.task}{layer} for {description.target}, {description.model}: {outcome}; {cost}"


def _branches(story: Story, parent: str | None, indent: str) -> Iterator[str]:
    children = story.children(parent)
    for number, judged in enumerate(children, start=1):
        last = number == len(children)
        yield f"{indent}{'└─' if last else '├─'} {candidate_line(judged)}"
        below = indent + ("   " if last else "│  ")
        verdict = judged.verdict
        if verdict is not None and not verdict.passed:
            yield f"{below}     {verdict.message}"
            more = [item for item in verdict.evidence if verdict.message not in item]
            yield from (f"{below}     {_cut(item)}" for item in more[:2])
        yield from _branches(story, judged.candidate.id, below)


def candidate_line(judged: Judged) -> str:
    candidate = judged.candidate
    made = f"{candidate.id} {candidate.rung}"
    code = "" if candidate.source is None else f", {candidate.sha256[:8]}"
    return f"{made}{code}: {result_words(judged)}"


def result_words(judged: Judged) -> str:
    """What became of a candidate: why it holds no kernel, why it was not judged, or its verdict."""
    candidate = judged.candidate
    if candidate.source is None:
        return f"no kernel: {candidate.problem}"
    if judged.verdict is None and candidate.problem:
        return candidate.problem
    return verdict_words(judged.verdict)


def verdict_words(verdict: Verdict | None) -> str:
    """A verdict in a few words: "refused at line 12, ConstraintError"."""
    if verdict is None:
        return "not judged yet"
    if verdict.passed:
        latency = "" if verdict.latency_ns is None else f", predicted {verdict.latency_ns / 1e3:.1f} µs"
        return f"{'ADMITTED' if verdict.stage == 'admitted' else 'passes'} ({verdict.tier}{latency})"
    place = "" if verdict.line is None else f" at line {verdict.line}"
    guard = f", guard: {verdict.guard}" if verdict.guard else ""
    passed = sum(case.passed for case in verdict.cases)
    cases = f", {passed} of {len(verdict.cases)} cases pass" if verdict.cases else ""
    return f"refused{place}: {verdict.error_class}{guard}{cases}"


def error_counts(candidates: Iterable[Judged]) -> dict[str, int]:
    """How often each kind of error ended a candidate, most frequent first."""
    counts: dict[str, int] = {}
    for judged in candidates:
        verdict = judged.verdict
        if judged.candidate.source is None:
            name = "no code"
        elif verdict is None or verdict.passed:
            continue
        else:
            name = verdict.error_class
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def story_facts(story: Story) -> dict[str, Any]:
    """The same as plain data, for --json."""
    return {
        "run": story.run.key,
        "folder": str(story.run.folder),
        "task": story.run.description.task,
        "layer": story.run.description.layer,
        "model": story.run.description.model,
        "target": story.run.description.target,
        "outcome": story.outcome,
        "hidden_seed": story.hidden_seed,
        "calls": story.spent.calls,
        "tokens": story.spent.tokens,
        "cost_usd": story.spent.usd,
        "errors": error_counts(story.candidates.values()),
        "candidates": [
            {
                "id": judged.candidate.id,
                "parent": judged.candidate.parent,
                "rung": judged.candidate.rung,
                "sha256": judged.candidate.sha256 if judged.candidate.source else None,
                "problem": judged.candidate.problem,
                "verdict": verdict_words(judged.verdict),
                "message": judged.verdict.message if judged.verdict else "",
            }
            for judged in story.candidates.values()
        ],
    }


def _cut(text: str) -> str:
    return text if len(text) <= LINE_LENGTH else f"{text[: LINE_LENGTH - 2]} …"
