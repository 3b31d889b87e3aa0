"""Paid questions: reserved before, kept on the disk the moment they are answered, settled after; never paid twice.

What a kill can cost. A call is journalled as started before it is made, and its reply is on the disk before it is
journalled as paid. After a kill, a started call is either found (its reply is on the disk) or lost: nobody here can
know whether the provider charged for it, so it counts at its worst, and is asked again under the same
Idempotency-Key. One window cannot be closed by any client: a reply that was wholly sent, and charged, and had not yet
reached our disk. A provider that honours the key gives it again for nothing; from another, at most one call for each
call in flight at the kill is paid again, and the budget has counted it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from neuron_port.drafting.keeping.journal import Call, Journal
from neuron_port.drafting.keeping.record_cache import RecordCache
from neuron_port.drafting.spending.budget import Budget, BudgetExhausted, BudgetLimits, Reservation
from neuron_port.drafting.spending.cost import (
    BYTES_PER_TOKEN,
    FEWEST_BYTES_PER_TOKEN,
    Cost,
    cost_of,
    worst_case,
)
from neuron_port.errors import NeuronPortError
from neuron_port.llm.errors import LanguageModelError
from neuron_port.llm.messages import LanguageModel, OnText, Price, Reply, Request, Usage
from neuron_port.llm.throttle import Throttle

PROBE_TOKENS = 100  # in and out, each: more than any probe takes
Say = Callable[[str], None]
Answer = Reply | LanguageModelError | BudgetExhausted


class ReplayMissError(NeuronPortError):
    """A question that was never answered, while only recorded replies may be used."""


class _CancelledError(Exception):
    """A call that had not begun when Ctrl-C was pressed."""


def resume_budget(
    journal: Journal,
    replies: RecordCache[Reply],
    limits: BudgetLimits,
    *,
    price: Price | None,
    name: str = "the run",
    clock: Callable[[], float] = time.monotonic,
    say: Say | None = None,
) -> Budget:
    """The run's budget, with all that its earlier sessions spent.

    Calls that were in flight when the last session died are journalled as paid, if their reply is on the disk, or as
    lost, at their worst. Call this once, after opening the journal and before the first question.
    """
    for call in journal.state().in_flight:
        reply = replies.get(call.request)
        facts = {"call": call.number, **_call_facts(call)}
        if reply is not None:
            cost = cost_of(reply.usage, price, reply.seconds)
            journal.append({"kind": "call paid", "found": True, **facts, **_reply_facts(reply, cost)})
        else:
            journal.append({"kind": "call lost", **facts, "cost": call.cost})
    state = journal.state()
    earlier = [replace(spending, cost=_priced_now(spending.cost, price)) for spending in state.spending]
    return Budget(limits, name, clock=clock, earlier=earlier, earlier_seconds=state.elapsed_seconds, say=say)


@dataclass
class _Question:
    """A question between its reservation and its answer; `reply` is set if the cache had it."""

    request: Request
    key: str
    worst: Cost
    reservation: Reservation | None
    reply: Reply | None
    facts: dict[str, Any]  # for events

    def release(self) -> None:
        if self.reservation is not None:
            self.reservation.release()


class Asker:
    """Asks one model on behalf of one run. Threads may share it.

    Args:
        journal: of the run; `resume_budget` has been called on it.
        replies: what was ever answered; see `open_replies`.
        throttle: shared by all that ask the same endpoint; None: eight calls at once.
        replay: use kept replies only; a question without one raises ReplayMissError.
        say: hears sentences for people.
    """

    def __init__(
        self,
        model: LanguageModel,
        journal: Journal,
        replies: RecordCache[Reply],
        *,
        throttle: Throttle | None = None,
        replay: bool = False,
        say: Say | None = None,
    ) -> None:
        self.model = model
        self.journal = journal
        self.replies = replies
        self.throttle = throttle or Throttle()
        self.replay = replay
        self._say = say
        self._bytes_per_token = BYTES_PER_TOKEN
        self._paid = set(journal.state().paid_requests)

    def ask(
        self,
        request: Request,
        budget: Budget,
        *,
        layer: str = "",
        stage: str = "",
        on_text: OnText | None = None,
    ) -> Reply:
        """The reply to `request`: kept, at no cost, or asked for within `budget`.

        Raises BudgetExhausted before anything is asked, LanguageModelError when the endpoint gave no reply (what it
        charged all the same is counted), ReplayMissError.
        """
        return self._answer(self._prepare(request, budget, layer, stage), on_text, threading.Event())

    def probe(self, budget: Budget) -> None:
        """Make one call of a few tokens, within `budget`: a wrong key, name or address shows here. Not in a replay.

        Raises what `ask` raises, and UsageError when dollars are limited and the price is not known.
        """
        budget.require_price(self.model.price, self.model.name)
        if self.replay:
            return
        usage = Usage(input_tokens=PROBE_TOKENS, output_tokens=PROBE_TOKENS)
        worst = cost_of(usage, self.model.price)
        reservation = budget.reserve(worst, what=f"a probe of {self.model.name}")
        facts = {
            "request": "probe", "purpose": "probe", "layer": "", "stage": "",
            "path": budget.path, "model": self.model.name,
        }  # fmt: skip
        self._pay(self.model.probe, facts, worst, reservation)

    def ask_all(
        self, requests: Sequence[Request], budget: Budget, *, layer: str = "", stage: str = ""
    ) -> tuple[Answer, ...]:
        """Ask side by side; answers in the order of `requests`, each a reply or the reason why there is none.

        The budget is reserved in that order before the first call, so that what it refuses does not depend on which
        reply comes first. On Ctrl-C, what has not begun is cancelled, what is in flight is waited for and kept
        (a second Ctrl-C stops that too), and KeyboardInterrupt goes on. Other errors are raised once all have ended.
        """
        answers: list[Answer | BaseException | None] = [None] * len(requests)
        questions: dict[int, _Question] = {}
        cancelled = threading.Event()
        ended = [threading.Event() for _ in requests]

        def work(number: int) -> None:
            try:
                answers[number] = self._answer(questions[number], None, cancelled)
            except BaseException as error:  # handed to the thread that waits
                answers[number] = error
            finally:
                ended[number].set()

        try:
            for number, request in enumerate(requests):
                try:
                    questions[number] = self._prepare(request, budget, layer, stage)
                except BudgetExhausted as refused:
                    answers[number] = refused
        except BaseException:
            for question in questions.values():
                question.release()
            raise
        threads = {number: threading.Thread(target=work, args=(number,), daemon=True) for number in questions}
        self._run([(thread, ended[number]) for number, thread in threads.items()], cancelled)
        return tuple(_known_answer(answer) for answer in answers)

    def _run(
        self, threads: Sequence[tuple[threading.Thread, threading.Event]], cancelled: threading.Event
    ) -> None:
        """Start the threads and wait for their events: a `join` that Ctrl-C interrupts takes its thread for ended."""
        try:
            for thread, _ in threads:
                thread.start()
            for _, ended in threads:
                ended.wait()
        except KeyboardInterrupt:
            cancelled.set()
            if self._say is not None:
                self._say("Stopping: waiting for the calls in flight, so that what is paid is kept.")
            for thread, ended in threads:
                if thread.ident is not None:
                    ended.wait()
            raise

    def _prepare(self, request: Request, budget: Budget, layer: str, stage: str) -> _Question:
        """Look for a kept reply; without one, reserve."""
        key = request.key(self.model.name)
        worst = worst_case(request, self.model.price, bytes_per_token=self._bytes_per_token)
        facts = {
            "request": key, "purpose": request.purpose, "layer": layer, "stage": stage,
            "path": budget.path, "model": self.model.name,
        }  # fmt: skip
        reply = self.replies.get(key)
        reservation: Reservation | None = None
        if reply is None:
            if self.replay:
                raise ReplayMissError(
                    f"No reply is kept for this {request.purpose or 'nameless'} question to {self.model.name} "
                    f"({key}), and only kept replies may be used.",
                    hint="Run without --replay, or give the home folder and options of the run to be replayed.",
                )
            what = f"a {request.purpose} call" if request.purpose else "a call"
            reservation = budget.reserve(worst, what=f"{what} to {self.model.name}")
        elif key in self._paid:
            # This run was allowed this call by reserving its worst case, and must now be refused and allowed alike.
            actual = cost_of(reply.usage, self.model.price, reply.seconds)
            reservation = budget.hold(worst.beyond(actual))
        return _Question(request, key, worst, reservation, reply, facts)

    def _answer(self, question: _Question, on_text: OnText | None, cancelled: threading.Event) -> Reply:
        try:
            if question.reply is not None:
                return self._reuse(question, question.reply)
            with self.replies.alone(question.key):
                reply = self.replies.get(question.key)  # another thread or process was first
                if reply is not None:
                    return self._reuse(question, reply)
                return self._call(question, on_text, cancelled)
        finally:
            question.release()  # nothing is left of it after a call

    def _reuse(self, question: _Question, reply: Reply) -> Reply:
        paid = question.key in self._paid
        self.journal.append({"kind": "call reused", **question.facts, "paid_by_this_run": paid})
        self._learn(question, reply)
        return reply

    def _call(self, question: _Question, on_text: OnText | None, cancelled: threading.Event) -> Reply:
        reservation = question.reservation
        assert reservation is not None, "a call is reserved first"
        charged = Cost()

        def may_retry(wasted: Usage) -> bool:
            """Whether the budget has room for another attempt beside what broken ones were charged."""
            nonlocal charged
            total = cost_of(wasted, self.model.price)
            try:
                reservation.grow(replace(total.beyond(charged), calls=0))
            except BudgetExhausted:
                return False
            charged = total
            return True

        def complete() -> Reply:
            reply = self.model.complete(question.request, on_text=on_text, may_retry=may_retry)
            self.replies.keep(question.key, reply)
            return reply

        with self.throttle.turn(question.worst.tokens) as turn:
            if cancelled.is_set():
                raise _CancelledError
            reply, cost = self._pay(complete, question.facts, question.worst, reservation)
            turn.settle(cost.tokens)
        self._paid.add(question.key)
        self._learn(question, reply)
        return reply

    def _pay(
        self, complete: Callable[[], Reply], facts: dict[str, Any], worst: Cost, reservation: Reservation
    ) -> tuple[Reply, Cost]:
        """Make a call, with its lines in the journal before and after, and settle what it cost."""
        started = self.journal.append({"kind": "call started", **facts, "worst": worst})
        facts = {"call": started["n"], **facts}
        cost = worst
        try:
            reply = complete()
            cost = cost_of(reply.usage, self.model.price, reply.seconds)
            self.journal.append({"kind": "call paid", **facts, **_reply_facts(reply, cost)})
        except LanguageModelError as error:
            cost = cost_of(error.usage or Usage(input_tokens=0, output_tokens=0), self.model.price)
            failure = {"error_class": type(error).__name__, "message": error.message, "cost": cost}
            self.journal.append({"kind": "call failed", **facts, **failure})
            raise
        except BaseException:  # Ctrl-C in mid-call, a full disk: nobody knows what it cost
            self.journal.append({"kind": "call lost", **facts, "cost": cost})
            raise
        finally:
            reservation.settle(cost)
        return reply, cost

    def _learn(self, question: _Question, reply: Reply) -> None:
        """Estimate prompts from above by a byte for a token once two bytes have proved too many."""
        short = reply.usage.input_tokens > question.worst.input_tokens and not reply.usage.estimated
        if short and self._bytes_per_token > FEWEST_BYTES_PER_TOKEN:
            self._bytes_per_token = FEWEST_BYTES_PER_TOKEN
            if self._say is not None:
                self._say(
                    f"{self.model.name} counted {reply.usage.input_tokens} tokens where "
                    f"{question.worst.input_tokens} were reserved: from now on, one is reserved for each byte."
                )


def _known_answer(answer: Answer | BaseException | None) -> Answer:
    assert answer is not None, "every question has ended"
    if isinstance(answer, (Reply, LanguageModelError, BudgetExhausted)):
        return answer
    raise answer


def _reply_facts(reply: Reply, cost: Cost) -> dict[str, Any]:
    return {
        "cost": cost, "cached_input_tokens": reply.usage.cached_input_tokens, "estimated": reply.usage.estimated,
        "finish": reply.finish, "reported_model": reply.model,
    }  # fmt: skip


def _call_facts(call: Call) -> dict[str, Any]:
    return {
        "request": call.request, "purpose": call.purpose, "layer": call.layer, "stage": call.stage,
        "path": call.path,
    }  # fmt: skip


def _priced_now(cost: Cost, price: Price | None) -> Cost:
    """With dollars, if their price was not known when they were spent and is now; nothing counts as cached."""
    if cost.usd is not None or price is None:
        return cost
    usage = Usage(input_tokens=cost.input_tokens, output_tokens=cost.output_tokens)
    return replace(cost, usd=price.cost_usd(usage))
