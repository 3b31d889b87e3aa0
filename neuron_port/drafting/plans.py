"""The plans of one run: asked for, checked by arithmetic, given up after two independent kernels failed on one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from neuron_port.drafting.candidates import RunLog
from neuron_port.drafting.prompts.questions import Questions
from neuron_port.drafting.replies.planning import Plan, PlanError, check_plan, parse_plan
from neuron_port.llm.messages import Reply, Request

Ask = Callable[[Request], Reply]
WANTED = "the plan as one JSON object"


class Plans:
    """Plans by number, from 0; None stands for drafting without one."""

    def __init__(self, questions: Questions, ask: Ask, log: RunLog) -> None:
        self._questions = questions
        self._ask = ask
        self._log = log
        self._plans: list[Plan | None] = []
        self._failures: defaultdict[int, set[str]] = defaultdict(set)  # code of first drafts that failed
        self._outcomes: dict[int, str] = {}  # what became of a plan, for the next one

    def __getitem__(self, number: int) -> Plan | None:
        return self._plans[number]

    def begin(self, *, without: bool) -> None:
        """Ask for the first plan, or decide to draft without one."""
        self._plans.append(None if without else self._make([]))

    def fail(self, number: int, code_digest: str, outcome: str) -> None:
        """A first draft on this plan was refused; the same code counts once."""
        self._failures[number].add(code_digest)
        self._outcomes[number] = outcome

    def failures(self, number: int) -> int:
        """How many different first drafts on this plan were refused."""
        return len(self._failures[number])

    def after(self, number: int) -> int:
        """The number of a plan that has not failed yet; the first line that needs one asks for it."""
        if number == len(self._plans) - 1:
            failed = [
                {"plan": plan.text(), "outcome": self._outcomes.get(index, "its kernels were refused")}
                for index, plan in enumerate(self._plans)
                if plan is not None
            ]
            self._plans.append(self._make(failed) if failed else None)
        return len(self._plans) - 1

    def _make(self, failed: Sequence[dict[str, str]]) -> Plan | None:
        """A plan whose arithmetic fits, after one more question if need be; None: drafts do without."""
        number = len(self._plans)
        request = self._questions.plan(failed)
        reply = self._ask(request)
        plan, problems = self._read(reply)
        if problems:
            self._log.plan(number, plan.text() if plan else reply.text[:400], problems)
            again = self._questions.reask(request, reply.text, " ".join(problems), WANTED)
            plan, problems = self._read(self._ask(again))
        self._log.plan(number, plan.text() if plan else "", problems)
        return None if problems else plan

    def _read(self, reply: Reply) -> tuple[Plan | None, list[str]]:
        try:
            plan = parse_plan(reply.text)
        except PlanError as error:
            return None, [error.message]
        return plan, check_plan(plan, self._questions.task, self._questions.options.target)
