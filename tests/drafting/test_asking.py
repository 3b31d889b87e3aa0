"""Questions are paid once: kept replies are free, calls are reserved, and what a kill left open is accounted for."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from neuron_port.drafting.keeping.journal import Journal
from neuron_port.drafting.keeping.record_cache import RecordCache, open_replies, open_verdicts, verdict_key
from neuron_port.drafting.spending.asking import Asker, ReplayMissError, resume_budget
from neuron_port.drafting.spending.budget import Budget, BudgetExhausted, BudgetLimits
from neuron_port.drafting.spending.cost import worst_case
from neuron_port.errors import UsageError
from neuron_port.grading.verdict import Verdict
from neuron_port.llm.choose import choose_model
from neuron_port.llm.errors import LanguageModelError, TruncatedReplyError, WrongKeyError
from neuron_port.llm.messages import MayRetry, Message, OnText, Price, Reply, Request, Usage
from neuron_port.llm.retry import RetryPolicy
from neuron_port.llm.throttle import Throttle
from neuron_port.types import CaseResult, to_json
from tests.llm.scripted_server import Answer, ScriptedServer

PRICE = Price(input_usd=1.0, output_usd=10.0)
Script = Callable[[Request], Reply]


class ScriptedModel:
    """Answers by a function, and counts."""

    name = "scripted:model"

    def __init__(self, script: Script | None = None, price: Price | None = PRICE) -> None:
        self.price = price
        self.asked: list[str] = []
        self._script = script or answer

    def complete(
        self, request: Request, *, on_text: OnText | None = None, may_retry: MayRetry | None = None
    ) -> Reply:
        self.asked.append(request.messages[-1].content)
        reply = self._script(request)
        if on_text is not None:
            on_text(reply.text)
        return reply

    def probe(self) -> Reply:
        return self.complete(question("probe"))


def answer(request: Request) -> Reply:
    return Reply(
        text=f"reply to {request.messages[-1].content} {request.sample}",
        usage=Usage(input_tokens=10, output_tokens=20), finish="stop", model="m", seconds=0.5,
    )  # fmt: skip


def question(text: str, sample: int = 0) -> Request:
    message = Message(role="user", content=text)
    return Request(messages=(message,), max_output_tokens=100, sample=sample, purpose="draft")


class Run:
    """One session of a run in `home`: journal, replies, budget, and a way to ask."""

    def __init__(self, home: Path, limits: BudgetLimits | None = None, name: str = "run") -> None:
        self.said: list[str] = []
        self.journal = Journal(home / name)
        self.replies = open_replies(home, say=self.said.append)
        self.budget = resume_budget(
            self.journal, self.replies, limits or BudgetLimits(), price=PRICE, say=self.said.append
        )
        self.stage = self.budget.child("layer a").child("draft")

    def asker(self, model: ScriptedModel, *, replay: bool = False) -> Asker:
        return Asker(model, self.journal, self.replies, replay=replay, say=self.said.append)

    def kinds(self) -> list[str]:
        return [event["kind"] for event in self.journal.events()]

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.journal.close()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with Run(tmp_path) as run:
        yield run


def test_a_question_is_paid_once(run: Run) -> None:
    """The first time a question costs, the second time it is kept and costs nothing."""
    model = ScriptedModel()
    asker = run.asker(model)
    first = asker.ask(question("a"), run.stage, layer="a", stage="draft")
    spent = run.budget.spent
    assert asker.ask(question("a"), run.stage, layer="a", stage="draft") == first
    assert model.asked == ["a"]
    assert run.budget.spent == run.stage.spent == spent
    assert (spent.calls, spent.tokens, spent.seconds) == (1, 30, 0.5)
    assert spent.usd == pytest.approx((10 + 200) / 1e6)
    assert run.kinds() == ["opened", "call started", "call paid", "call reused"]
    paid = run.journal.events()[2]
    assert (paid["layer"], paid["stage"], paid["purpose"]) == ("a", "draft", "draft")
    assert paid["path"] == ["layer a", "draft"]


def test_the_reply_is_on_disk_before_it_counts_as_paid(run: Run) -> None:
    """When the journal says that a call was paid, its reply is there already."""
    seen: list[bool] = []
    append = run.journal.append

    def watching(event: dict[str, object]) -> object:
        if event["kind"] == "call paid":
            seen.append(run.replies.get(str(event["request"])) is not None)
        return append(event)

    run.journal.append = watching  # type: ignore[method-assign, assignment]
    run.asker(ScriptedModel()).ask(question("a"), run.stage)
    assert seen == [True]


def test_a_probe_is_paid_and_never_kept(run: Run) -> None:
    """A probe counts as a call each time, since it says whether the endpoint answers now; a replay makes none."""
    model = ScriptedModel()
    asker = run.asker(model)
    asker.probe(run.budget)
    asker.probe(run.budget)
    run.asker(model, replay=True).probe(run.budget)
    assert model.asked == ["probe", "probe"]
    assert run.budget.spent.calls == run.journal.state().spent.calls == 2


def test_a_probe_finds_a_limit_that_cannot_be_held(tmp_path: Path) -> None:
    """Dollars without a price are refused before anything is asked."""
    model = ScriptedModel(price=None)
    with (
        Run(tmp_path, BudgetLimits(usd=1.0)) as run,
        pytest.raises(UsageError, match="scripted:model is not known"),
    ):
        run.asker(model).probe(run.budget)
    assert model.asked == []


def test_pieces_are_heard(run: Run) -> None:
    """Text is handed on as it comes in."""
    heard: list[str] = []
    run.asker(ScriptedModel()).ask(question("a"), run.stage, on_text=heard.append)
    assert heard == ["reply to a 0"]


def test_another_run_reuses_at_no_cost(tmp_path: Path) -> None:
    """What one run paid for costs the next one nothing."""
    model = ScriptedModel()
    with Run(tmp_path, name="one") as one:
        one.asker(model).ask(question("a"), one.stage)
    with Run(tmp_path, BudgetLimits(calls=0), name="two") as two:
        assert two.asker(model).ask(question("a"), two.stage).text == "reply to a 0"
        assert two.budget.spent.calls == 0
        assert two.journal.events()[-1]["paid_by_this_run"] is False
    assert model.asked == ["a"]


def test_a_resumed_run_has_spent_what_it_spent_before(tmp_path: Path) -> None:
    """After a restart the spending of the first session counts once, on all levels, however often it is passed."""
    model = ScriptedModel()
    with Run(tmp_path) as run:
        run.asker(model).ask(question("a"), run.stage)
        spent = run.budget.spent
    for _ in range(2):
        with Run(tmp_path, BudgetLimits(calls=1)) as run:
            asker = run.asker(model)
            asker.ask(question("a"), run.stage)
            assert run.budget.spent == run.stage.spent == run.journal.state().spent == spent
            with pytest.raises(BudgetExhausted):
                asker.ask(question("b"), run.stage)
    assert model.asked == ["a"]


def test_budget_refuses_before_the_call(tmp_path: Path) -> None:
    """A call that could exceed the budget is not made, and the sentence says what it would have been."""
    model = ScriptedModel()
    with Run(tmp_path, BudgetLimits(usd=0.0001)) as run:
        with pytest.raises(BudgetExhausted, match="a draft call to scripted:model"):
            run.asker(model).ask(question("a"), run.stage)
        assert run.kinds() == ["opened"]
    assert model.asked == []


def kill_during_call(run: Run, text: str) -> None:
    """Leave the journal as a SIGKILL in the middle of a call does."""
    request = question(text)
    facts = {"request": request.key(ScriptedModel.name), "purpose": "draft", "layer": "", "stage": ""}
    worst = worst_case(request, PRICE)
    run.journal.append({"kind": "call started", **facts, "path": run.stage.path, "worst": worst})
    run.journal.close()


def test_a_call_without_a_reply_counts_at_its_worst_and_is_asked_again(tmp_path: Path) -> None:
    """Nobody knows what a call that was killed has cost: the budget has its worst case, and the loop its reply."""
    kill_during_call(Run(tmp_path), "a")
    model = ScriptedModel()
    with Run(tmp_path) as run:
        assert run.kinds() == ["opened", "call started", "opened", "call lost"]
        worst = worst_case(question("a"), PRICE)
        assert run.budget.spent == run.stage.spent == worst
        assert run.asker(model).ask(question("a"), run.stage).text == "reply to a 0"
        assert run.budget.spent.tokens == worst.tokens + 30
    with Run(tmp_path) as run:  # the call is settled: it is not lost twice
        assert run.budget.spent.tokens == worst.tokens + 30
        assert run.kinds().count("call lost") == 1


def test_a_call_whose_reply_turns_up_counts_as_it_was(tmp_path: Path) -> None:
    """A kill between keeping the reply and writing that it was paid costs what the call cost, and no second call."""
    run = Run(tmp_path)
    run.replies.keep(question("a").key(ScriptedModel.name), answer(question("a")))
    kill_during_call(run, "a")
    model = ScriptedModel()
    with Run(tmp_path) as run:
        assert run.kinds()[-1] == "call paid"
        assert run.journal.events()[-1]["found"] is True
        assert run.budget.spent.tokens == 30
        run.asker(model).ask(question("a"), run.stage)
        assert run.budget.spent.tokens == 30
    assert model.asked == []


@pytest.mark.parametrize(
    ("error", "tokens"),
    [
        (WrongKeyError("The key is not accepted."), 0),
        (TruncatedReplyError("cut", usage=Usage(input_tokens=10, output_tokens=5)), 15),
    ],
)
def test_a_failed_call_counts_what_was_charged(run: Run, error: LanguageModelError, tokens: int) -> None:
    """A call without a reply is journalled with its reason and what the provider probably charged."""

    def fail(request: Request) -> Reply:
        raise error

    with pytest.raises(type(error)):
        run.asker(ScriptedModel(fail)).ask(question("a"), run.stage)
    assert run.kinds() == ["opened", "call started", "call failed"]
    assert run.journal.events()[-1]["error_class"] == type(error).__name__
    assert run.budget.spent.tokens == run.journal.state().spent.tokens == tokens
    assert run.asker(ScriptedModel()).ask(question("a"), run.stage).text == "reply to a 0"


def test_an_interrupted_call_counts_at_its_worst(run: Run) -> None:
    """Ctrl-C in the middle of a call goes through, and the call counts whole."""

    def interrupt(request: Request) -> Reply:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.asker(ScriptedModel(interrupt)).ask(question("a"), run.stage)
    assert run.kinds()[-1] == "call lost"
    assert run.budget.spent == run.journal.state().spent == worst_case(question("a"), PRICE)


def test_replay_asks_nobody(tmp_path: Path) -> None:
    """In a replay kept replies are used, and a question without one is an error that names it."""
    with Run(tmp_path) as run:
        run.asker(ScriptedModel()).ask(question("a"), run.stage)
    model = ScriptedModel()
    with Run(tmp_path) as run:
        asker = run.asker(model, replay=True)
        assert asker.ask(question("a"), run.stage).text == "reply to a 0"
        with pytest.raises(ReplayMissError, match="draft question to scripted:model"):
            asker.ask(question("b"), run.stage)
    assert model.asked == []


def test_answers_come_in_the_order_of_the_questions(run: Run) -> None:
    """Side by side, later questions may be answered first; the results are in order, and all are paid."""
    numbers = {f"q{number}": number for number in range(6)}

    def slowest_first(request: Request) -> Reply:
        time.sleep((6 - numbers[request.messages[-1].content]) * 0.01)
        return answer(request)

    requests = [question(text) for text in numbers]
    answers = run.asker(ScriptedModel(slowest_first)).ask_all(requests, run.stage)
    assert answers == tuple(answer(request) for request in requests)
    assert run.budget.spent.calls == 6
    assert run.kinds().count("call paid") == 6


def test_calls_really_run_side_by_side(run: Run) -> None:
    """Four calls are under way at the same time."""
    together = threading.Barrier(4, timeout=20)

    def wait_for_the_others(request: Request) -> Reply:
        together.wait()
        return answer(request)

    answers = run.asker(ScriptedModel(wait_for_the_others)).ask_all(
        [question("a", n) for n in range(4)], run.stage
    )
    assert [reply.text for reply in answers if isinstance(reply, Reply)] == [
        f"reply to a {n}" for n in range(4)
    ]


def test_one_failure_spoils_no_other_answer(run: Run) -> None:
    """Of three questions one fails: its place has the error, and the others' replies are kept."""

    def fail_b(request: Request) -> Reply:
        if request.messages[-1].content == "b":
            raise WrongKeyError("no")
        return answer(request)

    first, second, third = run.asker(ScriptedModel(fail_b)).ask_all([question(t) for t in "abc"], run.stage)
    assert isinstance(first, Reply)
    assert isinstance(second, WrongKeyError)
    assert isinstance(third, Reply)


def test_the_budget_is_given_out_in_order(tmp_path: Path) -> None:
    """Where three of five calls fit at worst, the first three are made, whichever would be answered first."""
    limits = BudgetLimits(tokens=3 * worst_case(question("q0"), PRICE).tokens)
    model = ScriptedModel()
    requests = [question(f"q{number}") for number in range(5)]
    with Run(tmp_path, limits) as run:
        answers = run.asker(model).ask_all(requests, run.stage)
    assert [type(item) for item in answers] == [Reply] * 3 + [BudgetExhausted] * 2
    assert sorted(model.asked) == ["q0", "q1", "q2"]


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_resumed_batch_is_given_the_same_budget(tmp_path: Path, kept: int) -> None:
    """A batch that was killed after some replies is refused and allowed, when it goes on, as if nothing had been."""
    limits = BudgetLimits(tokens=3 * worst_case(question("q0"), PRICE).tokens)
    requests = [question(f"q{number}") for number in range(5)]
    with Run(tmp_path, limits) as run:
        run.asker(ScriptedModel()).ask_all(requests[:kept], run.stage)
    model = ScriptedModel()
    with Run(tmp_path, limits) as run:
        answers = run.asker(model).ask_all(requests, run.stage)
        assert [type(item) for item in answers] == [Reply] * 3 + [BudgetExhausted] * 2
        assert run.budget.spent.calls == 3
        assert run.budget.left().tokens == (limits.tokens or 0) - 3 * 30
    assert sorted(model.asked) == ["q0", "q1", "q2"][kept:]


def test_equal_questions_at_once_are_paid_once(run: Run) -> None:
    """Of two threads that ask the same, one pays and the other reads."""

    def slow(request: Request) -> Reply:
        time.sleep(0.05)
        return answer(request)

    model = ScriptedModel(slow)
    first, second = run.asker(model).ask_all([question("a"), question("a")], run.stage)
    assert first == second
    assert model.asked == ["a"]
    assert run.budget.spent.calls == 1


def test_ctrl_c_keeps_what_is_in_flight_and_cancels_the_rest(run: Run) -> None:
    """On Ctrl-C the calls under way are waited for and kept, those that wait their turn are never made."""

    def interrupt_once_under_way(request: Request) -> Reply:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        return answer(request)

    model = ScriptedModel(interrupt_once_under_way)
    asker = run.asker(model)
    asker.throttle = Throttle(concurrent_calls=1)
    with pytest.raises(KeyboardInterrupt):
        asker.ask_all([question(text) for text in "abcd"], run.stage)
    assert len(model.asked) == 1
    assert run.kinds() == ["opened", "call started", "call paid"]
    assert run.budget.left() == BudgetLimits()
    assert run.budget.spent.calls == 1
    assert "what is paid is kept" in run.said[-1]


def test_a_bug_in_one_thread_is_raised_after_all_have_ended(run: Run) -> None:
    """What is no answer is an error of ours: it goes through, and the other replies are kept."""

    def broken(request: Request) -> Reply:
        if request.messages[-1].content == "a":
            raise ZeroDivisionError
        return answer(request)

    with pytest.raises(ZeroDivisionError):
        run.asker(ScriptedModel(broken)).ask_all([question("a"), question("b")], run.stage)
    assert run.replies.get(question("b").key(ScriptedModel.name)) is not None


def test_an_estimate_that_was_too_low_is_raised_and_said(run: Run) -> None:
    """When the endpoint counts more tokens than were reserved, the next prompt is reserved at a byte for a token."""

    def dense(request: Request) -> Reply:
        size = len(request.messages[-1].content)
        return Reply(text="x", usage=Usage(input_tokens=size, output_tokens=1), finish="stop", model="m")

    asker = run.asker(ScriptedModel(dense))
    asker.ask(question("a" * 1000), run.stage)
    asker.ask(question("b" * 1000), run.stage)
    reserved = [
        event["worst"]["input_tokens"] for event in run.journal.events() if event["kind"] == "call started"
    ]
    assert reserved == [532, 1032]
    assert len(run.said) == 1
    assert "one is reserved for each byte" in run.said[0]


def test_spending_without_price_is_priced_when_the_price_is_known(tmp_path: Path) -> None:
    """A run that began without a price and goes on with one has its earlier calls in dollars too."""
    with Run(tmp_path) as run:
        run.asker(ScriptedModel(price=None)).ask(question("a"), run.stage)
        assert run.budget.spent.usd is None
    with Run(tmp_path) as run:
        assert run.budget.spent.usd == pytest.approx((10 + 200) / 1e6)


def test_a_damaged_reply_is_said_and_asked_again(run: Run) -> None:
    """A reply whose file is damaged counts as absent: the question is paid again, and a sentence says why."""
    model = ScriptedModel()
    asker = run.asker(model)
    first = asker.ask(question("a"), run.stage)
    path = run.replies.path(question("a").key(model.name))
    path.write_text(path.read_text().replace("reply to a", "reply to b"))
    assert asker.ask(question("a"), run.stage) == first
    assert run.said
    assert run.said[0] == f"{path} is damaged and counts as absent."
    assert len(model.asked) == 2
    assert run.budget.spent.calls == 2
    assert asker.ask(question("a"), run.stage) == first
    assert len(model.asked) == 2


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"key": "k"}', '{"key": "k", "sha256": "x", "record": 1}']
)
def test_any_damage_counts_as_absent(tmp_path: Path, content: str) -> None:
    """Whatever stands in a kept file, it is a record or it is absent."""
    said: list[str] = []
    replies = open_replies(tmp_path, say=said.append)
    replies.keep("k", answer(question("a")))
    replies.path("k").write_text(content)
    assert replies.get("k") is None
    assert len(said) == 1
    replies.keep("k", answer(question("a")))
    assert replies.get("k") == answer(question("a"))


def test_verdicts_are_kept_whole(tmp_path: Path) -> None:
    """A verdict comes back equal, with its cases, and its key changes with each thing that it depends on."""
    case = CaseResult(
        name="tail", kind="tail", tier="simulator", dtype="bfloat16", shapes=((3, 5),), seed=1,
        metrics={"error": float("inf")}, limits={"error": 0.1}, passed=False, detail="bad",
    )  # fmt: skip
    verdict = Verdict(
        passed=False, stage="ran", error_class="wrong values", cases=(case,), facts={"a": 1}, line=3
    )
    verdicts = open_verdicts(tmp_path)
    verdicts.keep("k", verdict)
    verdicts.keep("k", verdict)  # twice is harmless
    assert to_json(verdicts.get("k")) == to_json(verdict)
    assert verdicts.get("other") is None
    given = {"oracle_key": "o", "check": "hidden", "tier": "simulator", "verifier_version": "1"}
    keys = {verdict_key("x", **given), verdict_key("y", **given)}
    keys |= {verdict_key("x", **(given | {name: "other"})) for name in given}
    assert len(keys) == 6


def test_threads_may_keep_the_same_key_at_once(tmp_path: Path) -> None:
    """Equal keys written by many threads leave one whole file and nothing beside it."""
    replies: RecordCache[Reply] = open_replies(tmp_path)
    reply = answer(question("a" * 10_000))
    threads = [threading.Thread(target=replies.keep, args=("key", reply)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert replies.get("key") == reply
    assert [path.name for path in replies.path("key").parent.iterdir()] == ["key.json"]


def test_budget_of_a_new_run_is_empty(run: Run) -> None:
    """A run that was never opened before has spent nothing."""
    assert isinstance(run.budget, Budget)
    assert run.budget.spent.calls == 0


@pytest.mark.parametrize(("tokens", "attempts"), [(600, 1), (100_000, 4)])
def test_broken_attempts_stay_within_the_budget(tmp_path: Path, tokens: int, attempts: int) -> None:
    """A stream that always breaks off is tried again as often as the policy says, but not beyond the budget."""
    policy = RetryPolicy(attempts=4, sleep=lambda seconds: None)
    cut = Answer(text="word " * 400, cut_after=2)
    with ScriptedServer(lambda call: cut) as server, Run(tmp_path, BudgetLimits(tokens=tokens)) as run:
        model = choose_model(f"{server.url}#scripted", api_key="k", home=tmp_path, retry=policy)
        asker = Asker(model, run.journal, run.replies)
        with pytest.raises(TruncatedReplyError):
            asker.ask(question("a" * 400), run.budget)
        assert len(server.calls) == attempts
        assert 0 < run.budget.spent.tokens <= tokens
        assert run.budget.left().tokens == tokens - run.budget.spent.tokens
