"""Opens what a drafting command works with, from its options: language model, budget, executor, memory."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neuron_port.errors import UsageError

if TYPE_CHECKING:
    from neuron_port.drafting.spending.budget import BudgetLimits
    from neuron_port.drafting.workshop import Workshop
    from neuron_port.llm.messages import Price

DEFAULT_TOKENS = 2_000_000  # where nothing limits a run, this does: some tens of candidates


def home_folder() -> Path:
    """Where results are kept: $NEURON_PORT_HOME, or ~/.cache/neuron-port."""
    return Path(os.environ.get("NEURON_PORT_HOME") or Path.home() / ".cache" / "neuron-port")


def say(text: str) -> None:
    """For people: on stderr."""
    click.echo(text, err=True)


def quiet(text: str) -> None:
    """For machines: nothing."""


def require_folder(file: Path) -> None:
    """Raise UsageError, before anything is paid for, when `file` could not be written for want of its folder."""
    if not file.absolute().parent.is_dir():
        raise UsageError(
            f"No such folder: `{file.parent}`", hint=f"Create it, or write `{file.name}` elsewhere."
        )


@contextmanager
def open_workshop(
    *,
    llm: str | None,
    llm_base_url: str | None,
    llm_price: str | None,
    llm_concurrency: int,
    budget_usd: float | None,
    budget_tokens: int | None,
    budget_calls: int | None,
    budget_seconds: float | None,
    replay: bool,
    executor: str,
    workers: int | None,
    silent: bool,
) -> Iterator[Workshop]:
    """The workshop of one command; leaving it ends every process that tries kernels.

    Raises:
        UsageError: an option that cannot be used.
        LanguageModelError: no key, or no such model.
    """
    from neuron_port.drafting.memory.lessons import Memory
    from neuron_port.drafting.workshop import Workshop
    from neuron_port.llm.choose import choose_model
    from neuron_port.llm.throttle import Throttle
    from neuron_port.recipe import NKI_VERSION
    from neuron_port.sandbox.executor import make_executor
    from neuron_port.task import VERIFIER_VERSION

    home = home_folder()
    told = quiet if silent else say
    model = choose_model(llm, base_url=llm_base_url, price=parse_price(llm_price), home=home, say=told)
    limits = limits_of(budget_usd, budget_tokens, budget_calls, budget_seconds)
    with (
        Memory(home / "memory.sqlite", dialect=NKI_VERSION, verifier_version=VERIFIER_VERSION) as memory,
        closing(make_executor(executor, workers)) as running,
    ):
        yield Workshop(
            home=home,
            model=model,
            limits=limits,
            executor=running,
            throttle=Throttle(concurrent_calls=llm_concurrency),
            memory=memory,
            replay=replay,
            say=told,
        )


def limits_of(
    usd: float | None, tokens: int | None, calls: int | None, seconds: float | None
) -> BudgetLimits:
    """The limits of a run; tokens are always limited."""
    from neuron_port.drafting.spending.budget import BudgetLimits

    return BudgetLimits(usd=usd, tokens=tokens or DEFAULT_TOKENS, calls=calls, seconds=seconds)


def parse_price(text: str | None) -> Price | None:
    """US dollars per million tokens from `IN,OUT`.

    Raises:
        UsageError: another form.
    """
    if text is None:
        return None
    from neuron_port.llm.messages import Price

    try:
        input_usd, output_usd = (float(part) for part in text.split(","))
        if not (0 <= input_usd < math.inf and 0 <= output_usd < math.inf):
            raise ValueError(text)
    except ValueError:
        raise UsageError(
            f"`{text}` is not a price",
            hint="For example --llm-price 1.25,10: dollars per million tokens in and out.",
        ) from None
    return Price(input_usd=input_usd, output_usd=output_usd, source="--llm-price")


def cost_words(cost: Any) -> str:
    """A cost in words: "12 calls, 96,300 tokens, $0.42"."""
    from neuron_port.drafting.spending.cost import dollars

    usd = "price unknown" if cost.usd is None else dollars(cost.usd)
    return f"{cost.calls} calls, {cost.tokens:,} tokens, {usd}"
