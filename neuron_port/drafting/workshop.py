"""What all runs of one command share: the language model, the place of results, where kernels are tried, the budget.

home/drafting/<key>/    a run: events.jsonl, run.json
home/replies/           every reply that was ever paid for, by content
home/verdicts/          every verdict that was ever reached, by content
home/memory.sqlite      what was learnt
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from neuron_port.drafting.keeping.journal import Journal
from neuron_port.drafting.keeping.record_cache import RecordCache, open_replies, open_verdicts
from neuron_port.drafting.memory.lessons import Memory
from neuron_port.drafting.spending.asking import Asker
from neuron_port.drafting.spending.budget import BudgetLimits
from neuron_port.grading.verdict import Verdict
from neuron_port.llm.messages import LanguageModel, Reply
from neuron_port.llm.throttle import Throttle
from neuron_port.sandbox.executor import Executor, LocalExecutor

if TYPE_CHECKING:
    from neuron_port.grading.grader import Grader

Say = Callable[[str], None]


def silent(_: str) -> None:
    """Hears and says nothing."""


@dataclass(kw_only=True)
class Workshop:
    """Shared by the runs of one command; `limits` hold for all of them together."""

    home: Path
    model: LanguageModel
    limits: BudgetLimits = field(default_factory=BudgetLimits)
    executor: Executor = field(default_factory=LocalExecutor)
    throttle: Throttle = field(default_factory=Throttle)
    memory: Memory | None = None
    replay: bool = False
    say: Say = silent
    graders: dict[str, Grader] = field(default_factory=dict, repr=False)  # the latest, see trying.py

    @cached_property
    def replies(self) -> RecordCache[Reply]:
        return open_replies(self.home, say=self.say)

    @cached_property
    def verdicts(self) -> RecordCache[Verdict]:
        return open_verdicts(self.home, say=self.say)

    def asker(self, journal: Journal) -> Asker:
        """Who asks the model on behalf of one run; the run's budget has been resumed from the journal."""
        return Asker(
            self.model, journal, self.replies, throttle=self.throttle, replay=self.replay, say=self.say
        )
