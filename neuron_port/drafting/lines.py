"""A line: one independent draft and its repairs, and the ladder that it climbs."""

from __future__ import annotations

from dataclasses import dataclass, field

from neuron_port.drafting.candidates import Candidate, Judged
from neuron_port.drafting.plans import Plans
from neuron_port.drafting.prompts.feedback import Attempt, Rung, next_rung
from neuron_port.drafting.replies.extraction import normalised_digest
from neuron_port.llm.messages import Reply
from neuron_port.types import digest


@dataclass(kw_only=True)
class Line:
    """One independent attempt at the task."""

    number: int
    plan: int
    attempts: list[Attempt] = field(default_factory=list)  # since the last new draft
    candidates: list[Judged] = field(default_factory=list)  # since the last new draft
    made: int = 0  # candidates in all
    sample: int = 0
    rung: Rung | None = None  # None: a first draft
    alive: bool = True

    @property
    def latest_kernel(self) -> Judged | None:
        """The latest candidate that has code: what a repair starts from, when the last reply held none."""
        return next((one for one in reversed(self.candidates) if one.candidate.source is not None), None)

    @property
    def drafts_anew(self) -> bool:
        """Whether its next kernel is a new draft, and no repair."""
        return self.rung is None or self.rung.action in ("redraft", "new plan")

    def add(self, reply: Reply, source: str | None, problem: str, plan: int | None) -> Judged:
        """Enter the candidate that a reply holds, or its failure to hold one."""
        parent = None
        if self.drafts_anew:
            self.candidates, self.attempts = [], []
        else:
            parent = (self.latest_kernel or self.candidates[-1]).candidate.id
        candidate = Candidate(
            id=f"{self.number + 1}.{self.made}",
            line=self.number,
            round=self.rung.round if self.rung else 0,
            parent=parent,
            rung="draft" if self.rung is None else self.rung.action,
            plan=plan,
            source=source,
            problem=problem,
            reply_key=digest(reply.text),
        )
        self.made += 1
        self.candidates.append(Judged(candidate=candidate))
        return self.candidates[-1]

    def climb(self, plans: Plans) -> None:
        """Decide what to do next, after the latest candidate was refused."""
        last = self.candidates[-1]
        self.attempts.append(self._attempt(last))
        if [one for one in self.candidates if one.candidate.source is not None] == [last]:
            plans.fail(self.plan, self.attempts[-1].code_digest, _outcome(last))
        self.rung = next_rung(self.attempts, implementations_failed=plans.failures(self.plan))
        self.alive = self.rung.action != "give up"
        if self.rung.reseeds or last.candidate.source is None:  # the same question would have the same reply
            self.sample += 1
        if self.rung.action == "new plan":
            self.plan = plans.after(self.plan)

    def _attempt(self, judged: Judged) -> Attempt:
        verdict, source = judged.verdict, judged.candidate.source
        return Attempt(
            error_class="no code" if source is None or verdict is None else verdict.error_class,
            code_digest=judged.candidate.reply_key if source is None else normalised_digest(source),
            round=0 if self.rung is None or self.drafts_anew else self.rung.round,
        )


def _outcome(judged: Judged) -> str:
    if judged.verdict is None:
        return judged.candidate.problem
    return f"{judged.verdict.error_class}: {judged.verdict.message}"
