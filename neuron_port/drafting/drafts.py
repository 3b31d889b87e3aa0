"""From a subject to a recipe folder: drafts its kernel and, when one is admitted, puts it on the shelf."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from neuron_port.drafting.folder import Provenance, Subject, write_draft
from neuron_port.drafting.keeping.journal import FoundRun, list_runs
from neuron_port.drafting.loop import REUSED, DraftResult, Recheck, draft
from neuron_port.drafting.options import DraftOptions
from neuron_port.drafting.page import write_story
from neuron_port.drafting.spending.budget import BudgetLimits
from neuron_port.drafting.spending.cost import Cost
from neuron_port.drafting.tree import read_story
from neuron_port.drafting.workshop import Say, Workshop, silent

PAGE = "explain.html"


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """Where accepted kernels go, and who hears how it is going."""

    folder: Path
    say: Say = silent


@dataclass(frozen=True, kw_only=True)
class Drafted:
    """What became of one subject: `result` is None when nothing was tried, and `outcome` says why."""

    name: str
    outcome: str
    layers: tuple[str, ...] = ()
    result: DraftResult | None = None
    folder: Path | None = None
    page: Path | None = None

    @property
    def admitted(self) -> bool:
        return self.folder is not None

    def facts(self) -> dict[str, Any]:
        """Plain data, for --json."""
        spent = self.result.spent if self.result else Cost()
        return {
            "name": self.name,
            "outcome": self.outcome,
            "layers": list(self.layers),
            "folder": str(self.folder) if self.folder else None,
            "page": str(self.page) if self.page else None,
            "run": self.result.run if self.result else None,
            "candidates": len(self.result.candidates) if self.result else 0,
            "calls": spent.calls,
            "tokens": spent.tokens,
            "cost_usd": spent.usd,
            "hidden_seed": self.result.hidden_seed if self.result else None,
        }


def draft_one(
    subject: Subject,
    workshop: Workshop,
    options: DraftOptions,
    shelf: Shelf,
    *,
    layers: tuple[str, ...] = (),
    checkpoint: str = "",
    recheck: Recheck | None = None,
) -> Drafted:
    """Draft a kernel for the subject; an admitted one becomes a folder, and every run a page that explains it.

    Raises:
        LanguageModelError: the endpoint failed for good; what is paid for is kept.
    """
    task = subject.task
    result = draft(
        task,
        workshop,
        options,
        layer=layers[0] if layers else "",
        checkpoint=checkpoint,
        recheck=recheck,
        progress=lambda text: shelf.say(f"{task.name}: {text}"),
    )
    folder = (
        _shelve(subject, workshop, options, result, shelf, rechecked=recheck is not None)
        if result.admitted
        else None
    )
    page = write_story(read_story(_run_of(workshop, result)), result.folder / PAGE)
    return Drafted(
        name=task.name, outcome=result.outcome, layers=layers, result=result, folder=folder, page=page
    )


def _shelve(
    subject: Subject,
    workshop: Workshop,
    options: DraftOptions,
    result: DraftResult,
    shelf: Shelf,
    *,
    rechecked: bool,
) -> Path:
    admitted = result.admitted
    assert admitted is not None
    assert admitted.verdict is not None
    assert result.source is not None
    provenance = Provenance(
        model="an earlier run, from memory" if admitted.candidate.rung == REUSED else workshop.model.name,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        cost=result.spent,
        verdict=admitted.verdict,
        oracle_key=result.oracle_key,
        target=options.target,
        run=result.run,
        rechecked=rechecked,
    )
    return write_draft(shelf.folder, subject, result.source, provenance)


def _run_of(workshop: Workshop, result: DraftResult) -> FoundRun:
    return next(run for run in list_runs(workshop.home) if run.key == result.run)


def remaining(limits: BudgetLimits, spent: Cost) -> BudgetLimits:
    """What is left of a command's limits for its next layer."""
    return replace(
        limits,
        usd=None if limits.usd is None else max(0.0, limits.usd - (spent.usd or 0.0)),
        tokens=None if limits.tokens is None else max(0, limits.tokens - spent.tokens),
        calls=None if limits.calls is None else max(0, limits.calls - spent.calls),
        seconds=None if limits.seconds is None else max(0.0, limits.seconds - spent.seconds),
    )
