"""A budget refuses before a call what the call could exceed, on every level, whichever threads ask."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from neuron_port.drafting.spending.budget import Budget, BudgetExhausted, BudgetLimits, Spending
from neuron_port.drafting.spending.cost import (
    Cost,
    PlannedCalls,
    cost_of,
    estimate_tokens,
    plan_cost,
    worst_case,
)
from neuron_port.errors import UsageError
from neuron_port.llm.messages import Message, Price, Request, Usage

PRICE = Price(input_usd=2.0, output_usd=10.0, cached_input_usd=0.2)
CALL = Cost(usd=0.10, input_tokens=600, output_tokens=400, calls=1)


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("limits", "limit"),
    [
        (BudgetLimits(usd=0.2), "usd"),
        (BudgetLimits(tokens=2000), "tokens"),
        (BudgetLimits(calls=2), "calls"),
    ],
)
def test_what_fits_exactly_is_allowed_and_no_more(limits: BudgetLimits, limit: str) -> None:
    """Two calls that take exactly the limit are allowed; the third is refused by the name of that limit."""
    budget = Budget(limits)
    budget.reserve(CALL)
    budget.reserve(CALL)
    with pytest.raises(BudgetExhausted) as caught:
        budget.reserve(CALL)
    assert (caught.value.limit, caught.value.level) == (limit, "the run")
    assert f"--budget-{limit}" in str(caught.value.hint)


def test_refusal_names_level_limit_spent_worst_and_option() -> None:
    """The sentence of a refusal has everything that a person needs to decide what to do."""
    run = Budget(BudgetLimits(usd=10.0))
    layer = run.child("layer rms_norm", BudgetLimits(usd=0.25, option="--layer-budget"))
    layer.reserve(CALL).settle(CALL)
    layer.reserve(CALL)
    with pytest.raises(BudgetExhausted) as caught:
        layer.reserve(CALL, what="a repair call to openai:x")
    assert caught.value.message == (
        "The budget of layer rms_norm is used up: $0.1000 of $0.2500 spent, $0.1000 reserved for calls in flight, "
        "and a repair call to openai:x could take $0.1000 at worst."
    )
    assert "--layer-budget-usd" in str(caught.value.hint)
    assert (caught.value.spent, caught.value.worst, caught.value.allowed) == (CALL, CALL, 0.25)


def test_limit_of_the_outer_level_holds_inside() -> None:
    """A stage without limits of its own is refused by the run's, which is named."""
    run = Budget(BudgetLimits(calls=1))
    stage = run.child("layer a").child("repair")
    stage.reserve(CALL)
    with pytest.raises(BudgetExhausted, match="The budget of the run"):
        run.child("layer b").reserve(CALL)


def test_refusal_on_one_level_reserves_on_none() -> None:
    """What a layer refuses takes nothing from the run."""
    run = Budget(BudgetLimits(calls=5))
    layer = run.child("layer a", BudgetLimits(calls=0))
    with pytest.raises(BudgetExhausted, match="layer a"):
        layer.reserve(CALL)
    assert run.left().calls == 5


def test_settling_replaces_the_worst_case_by_what_was_spent() -> None:
    """After a call that took less than its worst case, the rest can be spent."""
    run = Budget(BudgetLimits(tokens=1500))
    stage = run.child("draft")
    stage.reserve(CALL).settle(Cost(usd=0.01, input_tokens=300, output_tokens=100, calls=1, seconds=2.5))
    assert (
        run.spent == stage.spent == Cost(usd=0.01, input_tokens=300, output_tokens=100, calls=1, seconds=2.5)
    )
    assert run.left().tokens == 1100
    stage.reserve(CALL)


def test_more_than_the_worst_case_counts_whole() -> None:
    """A call that took more than was reserved for it counts with all it took, and nothing is allowed after it."""
    run = Budget(BudgetLimits(tokens=1000))
    run.reserve(CALL).settle(CALL * 2)
    assert run.spent.tokens == 2000
    with pytest.raises(BudgetExhausted):
        run.reserve(Cost(input_tokens=1, calls=1))


def test_release_gives_back() -> None:
    """A call that was not made costs nothing, and leaving the `with` unsettled is such a call."""
    run = Budget(BudgetLimits(calls=1))
    run.reserve(CALL).release()
    with run.reserve(CALL):
        pass
    with run.reserve(CALL) as reservation:
        reservation.settle(CALL)
    assert run.spent == CALL
    assert run.left().calls == 0


def test_sums_of_prices_do_not_refuse_the_last_cent() -> None:
    """Ten dimes fit in a dollar although their sum in floating point does not."""
    run = Budget(BudgetLimits(usd=1.0))
    for _ in range(10):
        run.reserve(CALL).settle(CALL)
    assert run.spent.usd == pytest.approx(1.0)


def test_threads_cannot_exceed_a_limit_together() -> None:
    """Of 64 threads that reserve at once, exactly as many are allowed as fit."""
    run = Budget(BudgetLimits(calls=10))
    stages = [run.child(f"layer {number}").child("draft") for number in range(64)]
    start = threading.Barrier(64)
    allowed: list[int] = []

    def work(number: int) -> None:
        start.wait()
        try:
            stages[number].reserve(CALL).settle(CALL)
        except BudgetExhausted:
            return
        allowed.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(allowed) == run.spent.calls == 10


def test_seconds_are_those_on_the_wall() -> None:
    """Time passes whether calls are made or not; when it is over, calls and further work are refused."""
    clock = Clock()
    run = Budget(BudgetLimits(seconds=60), clock=clock)
    run.reserve(CALL).settle(
        Cost(calls=1, seconds=1000.0)
    )  # many calls side by side add up to more than the wall's
    clock.now += 59
    run.require_time()
    run.reserve(CALL).release()
    clock.now += 1
    for refused in (run.require_time, lambda: run.reserve(CALL)):
        with pytest.raises(BudgetExhausted, match=r"60 s of 60 s have passed") as caught:
            refused()
        assert caught.value.limit == "seconds"


def test_a_level_has_its_own_time() -> None:
    """A layer's seconds begin when the layer does."""
    clock = Clock()
    run = Budget(BudgetLimits(seconds=100), clock=clock)
    clock.now += 50
    layer = run.child("layer a", BudgetLimits(seconds=20))
    clock.now += 15
    layer.require_time()
    clock.now += 5
    with pytest.raises(BudgetExhausted, match="layer a"):
        layer.require_time()
    run.require_time()


def test_earlier_sessions_are_carried_in() -> None:
    """What killed sessions spent, and how long they took, counts on every level of its path and on no other."""
    clock = Clock()
    run = Budget(
        BudgetLimits(calls=5, seconds=100),
        clock=clock,
        earlier=[Spending(path=("layer a", "draft"), cost=CALL), Spending(path=("layer b",), cost=CALL)],
        earlier_seconds={(): 70.0, ("layer a",): 30.0},
    )
    layer = run.child("layer a", BudgetLimits(calls=2, seconds=40))
    assert (run.spent.calls, layer.spent.calls) == (2, 1)
    assert (layer.child("draft").spent.calls, layer.child("repair").spent.calls) == (1, 0)
    assert (run.elapsed_seconds, layer.elapsed_seconds) == (70.0, 30.0)
    layer.reserve(CALL)
    with pytest.raises(BudgetExhausted, match="layer a"):
        layer.reserve(CALL)


def test_child_is_the_same_when_asked_for_again() -> None:
    """A stage that is entered twice has one budget, not two."""
    run = Budget(BudgetLimits())
    run.child("repair", BudgetLimits(calls=1)).reserve(CALL)
    with pytest.raises(BudgetExhausted):
        run.child("repair").reserve(CALL)


@pytest.mark.parametrize(
    "refuse", [lambda b: b.reserve(Cost(usd=None, calls=1)), lambda b: b.require_price(None, "x")]
)
def test_dollars_without_a_price_are_refused(refuse: Callable[[Budget], object]) -> None:
    """A limit in dollars alone, with a model of unknown price, is an error that names both cures."""
    with pytest.raises(UsageError, match=r"price .* is not known") as caught:
        refuse(Budget(BudgetLimits(usd=5.0)))
    assert "--budget-tokens" in str(caught.value.hint)


def test_tokens_stand_in_for_dollars_and_that_is_said_once() -> None:
    """With a limit of tokens beside it, a limit in dollars without a price lets go, and says so one time."""
    said: list[str] = []
    run = Budget(BudgetLimits(usd=5.0, tokens=2500), say=said.append)
    layer = run.child("layer a", BudgetLimits(usd=1.0))
    unpriced = Cost(usd=None, input_tokens=600, output_tokens=400, calls=1)
    layer.reserve(unpriced).settle(unpriced)
    layer.reserve(unpriced).settle(unpriced)
    with pytest.raises(BudgetExhausted) as caught:
        layer.reserve(unpriced)
    assert caught.value.limit == "tokens"
    assert len(said) == 1
    assert "limit of tokens is" in said[0]
    assert run.spent.usd is None


def test_no_dollar_limit_needs_no_price() -> None:
    """Without a limit in dollars nobody asks for a price."""
    run = Budget(BudgetLimits())
    run.require_price(None, "x")
    run.reserve(Cost(usd=None, calls=1)).settle(Cost(usd=None, calls=1))
    assert run.spent.calls == 1


def test_known_part_of_mixed_prices_is_limited() -> None:
    """One model without a price does not set free the dollars of another that has one."""
    run = Budget(BudgetLimits(usd=0.25, tokens=10**6))
    run.reserve(Cost(usd=None, calls=1)).settle(Cost(usd=None, calls=1))
    run.reserve(CALL).settle(CALL)
    run.reserve(CALL).settle(CALL)
    with pytest.raises(BudgetExhausted) as caught:
        run.reserve(CALL)
    assert caught.value.limit == "usd"


def test_worst_case_is_a_full_reply_and_nothing_cached() -> None:
    """The worst case has an upper estimate of the prompt at the full price and every token of the reply."""
    request = Request(messages=(Message(role="user", content="x" * 2000),), max_output_tokens=500)
    worst = worst_case(request, PRICE)
    assert (worst.input_tokens, worst.output_tokens, worst.calls) == (1000 + 32, 500, 1)
    assert worst.usd == pytest.approx((1032 * 2.0 + 500 * 10.0) / 1e6)
    assert worst_case(request, None).usd is None
    actual = cost_of(Usage(input_tokens=1032, output_tokens=500, cached_input_tokens=1000), PRICE, 3.0)
    assert actual.usd is not None
    assert actual.usd < worst.usd
    assert actual.seconds == 3.0


def test_estimate_counts_bytes_not_characters() -> None:
    """Text outside of ASCII, which takes more tokens, is estimated higher, and text that is no UTF-8 at all works."""
    assert estimate_tokens("é" * 100) == 100 + 32
    assert estimate_tokens("x" * 100) == 50 + 32
    assert estimate_tokens("x" * 100, bytes_per_token=1.0) == 100 + 32
    assert estimate_tokens("\ud800") > 32


def test_plan_is_a_table_of_worst_cases() -> None:
    """A dry run shows calls by purpose with the most that they can cost, and the sum."""
    plan = plan_cost(
        [
            PlannedCalls(purpose="plan", calls=2, input_tokens=10_000, output_tokens=1000),
            PlannedCalls(purpose="draft", calls=4, input_tokens=20_000, output_tokens=8000),
        ],
        PRICE,
    )
    assert plan.total == plan.lines[0][1] + plan.lines[1][1]
    assert plan.total.calls == 6
    assert plan.table() == (
        ("purpose", "calls", "input tokens", "output tokens", "US dollars"),
        ("plan", "2", "20,000", "2,000", "$0.0600"),
        ("draft", "4", "80,000", "32,000", "$0.4800"),
        ("at worst", "6", "100,000", "34,000", "$0.5400"),
    )
    assert plan_cost([PlannedCalls(purpose="plan", calls=1, input_tokens=1, output_tokens=1)], None).table()[
        -1
    ][-1] == ("unknown")
