"""How hard one kernel is tried: drafts, repairs, temperatures. The defaults are those of docs/drafting.md."""

from __future__ import annotations

from dataclasses import dataclass

from neuron_port.drafting.spending.cost import PlannedCalls, estimate_tokens
from neuron_port.errors import UsageError

# Replies are code: 300 lines of it are about 4,000 tokens, and some models think before they write.
MAX_OUTPUT_TOKENS = 12_000
PLAN_OUTPUT_TOKENS = 4_000
REVIEW_OUTPUT_TOKENS = 2_000
PROMPT_CHARACTERS = 60_000  # at most: dialect slice, exemplars, task, source, candidate and evidence


@dataclass(frozen=True, kw_only=True)
class DraftOptions:
    """What one drafting run does at most.

    Attributes:
        drafts: independent lines, drafted side by side.
        repairs: rounds of repair for each line.
        plan: ask for a plan first, and check its arithmetic.
        show_source: show the GPU source, where there is one.
        show_exemplars: show verified kernels of recipes and memory, and notes from memory.
        exclude: recipes that are not shown: benchmarks hide the one that solves the task.
        target: chip.
        repeat: tells apart independent runs, all else equal: each draws replies of its own.
        hidden_seed: of the hidden cases; None: drawn. Benchmarks give all runs of a task the same cases.
        frozen_memory: digest of the memory whose lessons are shown, where that decides what a run is; "" elsewhere.
    """

    drafts: int = 4
    repairs: int = 6
    temperatures: tuple[float, ...] = (0.2, 0.6, 0.8, 1.0)
    plan: bool = True
    show_source: bool = True
    show_exemplars: bool = True
    exclude: tuple[str, ...] = ()
    target: str = "trn2"
    max_output_tokens: int = MAX_OUTPUT_TOKENS
    repeat: int = 0
    hidden_seed: int | None = None
    frozen_memory: str = ""

    def __post_init__(self) -> None:
        if self.drafts < 1:
            raise UsageError(f"At least one draft is needed: `{self.drafts}`", hint="Use --drafts 1 or more.")
        if self.repairs < 0:
            raise UsageError(f"Repairs cannot be negative: `{self.repairs}`", hint="Use --repairs 0 or more.")

    def temperature(self, line: int) -> float:
        return self.temperatures[line % len(self.temperatures)]

    def planned_calls(self) -> tuple[PlannedCalls, ...]:
        """Every call that a run may make, for --dry-run. A reply that cannot be used is asked for once more."""
        prompt = estimate_tokens("x" * PROMPT_CHARACTERS)
        plans = 2 * (1 + self.repairs // 6) if self.plan else 0
        rows = (
            ("plan", plans, min(PLAN_OUTPUT_TOKENS, self.max_output_tokens)),
            ("draft", 2 * self.drafts, self.max_output_tokens),
            ("repair", 2 * self.drafts * self.repairs, self.max_output_tokens),
        )
        return tuple(
            PlannedCalls(purpose=name, calls=calls, input_tokens=prompt, output_tokens=tokens)
            for name, calls, tokens in rows
            if calls
        )
