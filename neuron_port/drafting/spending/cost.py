"""What language model calls cost: measured, at worst, and of a whole loop before it begins."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from neuron_port.llm.messages import Price, Request, Usage

# Byte-pair vocabularies take 3 to 4 bytes of English or code for a token, and never less than one.
BYTES_PER_TOKEN = 2.0
FEWEST_BYTES_PER_TOKEN = 1.0
TOKENS_AROUND_A_MESSAGE = 16  # a chat template's own: role, separators, the start of the reply


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What was, or may be, spent. `usd` is None when a price is not known. `seconds` are those of the calls, summed."""

    usd: float | None = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    calls: int = 0
    seconds: float = 0.0

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    @property
    def known_part(self) -> Cost:
        """The same with an unknown price counted as nothing: for sums that go on."""
        return replace(self, usd=0.0) if self.usd is None else self

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            usd=None if self.usd is None or other.usd is None else self.usd + other.usd,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            calls=self.calls + other.calls,
            seconds=self.seconds + other.seconds,
        )

    def __mul__(self, times: int) -> Cost:
        return Cost(
            usd=None if self.usd is None else self.usd * times,
            input_tokens=self.input_tokens * times,
            output_tokens=self.output_tokens * times,
            calls=self.calls * times,
            seconds=self.seconds * times,
        )

    def beyond(self, other: Cost) -> Cost:
        """By how much this exceeds `other`, each part at least 0."""
        return Cost(
            usd=max(0.0, (self.usd or 0.0) - (other.usd or 0.0)),
            input_tokens=max(0, self.input_tokens - other.input_tokens),
            output_tokens=max(0, self.output_tokens - other.output_tokens),
            calls=max(0, self.calls - other.calls),
            seconds=max(0.0, self.seconds - other.seconds),
        )


def cost_of(usage: Usage, price: Price | None, seconds: float = 0.0) -> Cost:
    """The cost of one call from the tokens that it was charged for."""
    return Cost(
        usd=None if price is None else price.cost_usd(usage),
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        calls=1,
        seconds=seconds,
    )


def worst_case(request: Request, price: Price | None, *, bytes_per_token: float = BYTES_PER_TOKEN) -> Cost:
    """What `request` can cost: its prompt estimated from its bytes, nothing cached, and a reply of full length."""
    contents = [message.content for message in request.messages]
    return cost_of(
        Usage(
            input_tokens=estimate_tokens(*contents, bytes_per_token=bytes_per_token),
            output_tokens=request.max_output_tokens,
        ),
        price,
    )


def estimate_tokens(*messages: str, bytes_per_token: float = BYTES_PER_TOKEN) -> int:
    """Tokens of a prompt, estimated from above: one for every two bytes, and some around each message."""
    size_bytes = sum(len(message.encode(errors="replace")) for message in messages)
    return int(-(-size_bytes // bytes_per_token)) + TOKENS_AROUND_A_MESSAGE * (len(messages) + 1)


@dataclass(frozen=True, kw_only=True)
class PlannedCalls:
    """Calls of one purpose that a loop may make, at the most, and the tokens of each, at the most."""

    purpose: str
    calls: int
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, kw_only=True)
class CostPlan:
    """The worst case of a whole loop, by purpose, before anything is spent."""

    lines: tuple[tuple[str, Cost], ...]

    @property
    def total(self) -> Cost:
        return sum((cost for _, cost in self.lines), Cost())

    def table(self) -> tuple[tuple[str, ...], ...]:
        """Cells as text: a row of headings, one for each purpose, one for the total."""
        head = ("purpose", "calls", "input tokens", "output tokens", "US dollars")
        cells = [
            (
                purpose,
                f"{cost.calls}",
                f"{cost.input_tokens:,}",
                f"{cost.output_tokens:,}",
                dollars(cost.usd),
            )
            for purpose, cost in (*self.lines, ("at worst", self.total))
        ]
        return (head, *cells)


def plan_cost(planned: Iterable[PlannedCalls], price: Price | None) -> CostPlan:
    """What a loop costs if every call that it may make is made and takes all its tokens."""
    lines = []
    for line in planned:
        usage = Usage(input_tokens=line.input_tokens, output_tokens=line.output_tokens)
        lines.append((line.purpose, cost_of(usage, price) * line.calls))
    return CostPlan(lines=tuple(lines))


def dollars(usd: float | None) -> str:
    """Dollars with the digits that matter: calls cost cents and less."""
    return "unknown" if usd is None else f"${usd:.2f}" if usd >= 1 or usd == 0 else f"${usd:.4f}"
