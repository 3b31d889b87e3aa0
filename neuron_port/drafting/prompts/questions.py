"""The requests of one run: for each purpose the messages of `briefing.py`, with limits, temperature and sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from neuron_port.drafting.options import PLAN_OUTPUT_TOKENS, REVIEW_OUTPUT_TOKENS, DraftOptions
from neuron_port.drafting.prompts.briefing import (
    REVIEW_QUESTIONS,
    approaches,
    question,
    reask,
    system_message,
)
from neuron_port.drafting.prompts.dialect import dialect_slice, primitives_of
from neuron_port.drafting.prompts.feedback import Rung, findings
from neuron_port.drafting.replies.planning import Plan, plan_schema
from neuron_port.grading.verdict import Verdict
from neuron_port.llm.messages import Message, Request
from neuron_port.task import KernelTask

# A request's `sample` is line + REDRAFT * new drafts of that line + REPEAT * repeat of the run.
REDRAFT, REPEAT = 1_000, 1_000_000
NO_PLAN = "None was made: choose tiles, layout and instructions yourself."


@dataclass(frozen=True, kw_only=True)
class ShownKernel:
    """A verified kernel to learn from."""

    title: str
    text: str


@dataclass(kw_only=True)
class Questions:
    """Makes the requests of one run. The first message is made once: it must stay the same to the letter."""

    task: KernelTask
    options: DraftOptions
    exemplars: Sequence[ShownKernel] = ()
    notes: Sequence[str] = ()  # from memory, for drafts
    system: Message = field(init=False)

    def __post_init__(self) -> None:
        if not self.options.show_source:
            self.task = replace(self.task, sources=())
        target = self.options.target
        dialect = dialect_slice(primitives_of(self.task), target, without=self.options.exclude)
        shown = [{"title": kernel.title, "text": kernel.text} for kernel in self.exemplars]
        self.system = system_message(target, dialect, shown)
        self._approaches = tuple(approaches(self.options.drafts))

    def plan(self, failed: Sequence[Mapping[str, str]] = ()) -> Request:
        """For the first plan, or, after `failed` ones (keys "plan" and "outcome"), for another."""
        schema = plan_schema()
        if failed:
            asked = question("new_plan", self.task, plan_schema=schema, failures=list(failed))
        else:
            asked = question("plan", self.task, plan_schema=schema)
        return self._request("plan", asked, PLAN_OUTPUT_TOKENS, sample=len(failed))

    def draft(self, plan: Plan | None, line: int, sample: int = 0) -> Request:
        """For a first kernel; `sample` tells apart new drafts of the same line."""
        asked = question(
            "draft",
            self.task,
            plan=plan.text() if plan else NO_PLAN,
            notes=list(self.notes),
            approach=self._approaches[line] if self.options.drafts > 1 else "",
        )
        return self._code("draft", asked, line, sample)

    def repair(
        self, rung: Rung, source: str, verdict: Verdict, notes: Sequence[str], line: int, sample: int = 0
    ) -> Request:
        """For a correction of `source`, or for a simpler kernel in its place, as the rung says."""
        values = findings(verdict, source, rung, notes=notes, without=self.options.exclude)
        if rung.template == "simplify":
            values["rounds"] = rung.round - 1
        asked = question(rung.template, self.task, candidate=source, **values)
        return self._code("repair", asked, line, sample)

    def reask(self, asked: Request, reply: str, problem: str, wanted: str) -> Request:
        """The same question again, after a reply that could not be used."""
        spoken = Message(role="assistant", content=reply[:2000] or "(nothing)")
        return replace(asked, messages=(*asked.messages, spoken, reask(problem, reply, wanted)))

    def optimize(
        self, source: str, facts: Mapping[str, Any], direction: str, ledger: Sequence[str], sample: int
    ) -> Request:
        """For a faster kernel; `facts` holds "latency_us", "case" and "profile"."""
        asked = question(
            "optimize", self.task, candidate=source, direction=direction, ledger=list(ledger), **facts
        )
        return self._code("optimize", asked, 1, sample)

    def review(self, before: str, after: str, claim: str, evidence: Sequence[str]) -> Request:
        """For an independent opinion on a faster kernel."""
        asked = question(
            "review",
            self.task,
            before=before,
            after=after,
            claim=claim,
            evidence=list(evidence),
            questions=list(REVIEW_QUESTIONS),
        )
        return self._request("review", asked, REVIEW_OUTPUT_TOKENS)

    def _code(self, purpose: str, asked: Message, line: int, sample: int) -> Request:
        """A question whose answer is a module. Each line draws its own samples."""
        temperature = self.options.temperature(line)
        number = line + REDRAFT * sample
        return self._request(purpose, asked, self.options.max_output_tokens, temperature, number)

    def _request(
        self,
        purpose: str,
        asked: Message,
        max_output_tokens: int,
        temperature: float | None = None,
        sample: int = 0,
    ) -> Request:
        return Request(
            messages=(self.system, asked),
            max_output_tokens=min(max_output_tokens, self.options.max_output_tokens),
            temperature=temperature,
            sample=sample + REPEAT * self.options.repeat,
            purpose=purpose,
        )
