"""What drafting may spend: dollars, tokens, calls and seconds, reserved at worst before each call and settled after.

Budgets nest: run, layer, stage. A reservation is made on all levels at once or on none, so that calls in flight can
never together exceed a limit. Seconds are those of the clock on the wall, since calls run side by side; everything
else adds up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

from neuron_port.drafting.spending.cost import Cost, dollars
from neuron_port.errors import NeuronPortError, UsageError
from neuron_port.llm.messages import Price

LimitName = Literal["usd", "tokens", "calls", "seconds"]
BudgetPath = tuple[str, ...]  # names of the levels below the run: ("layer rms_norm", "repair")


@dataclass(frozen=True, kw_only=True)
class BudgetLimits:
    """Upper limits of one level; None: no limit. `option` is the start of the options that raise them."""

    usd: float | None = None
    tokens: int | None = None
    calls: int | None = None
    seconds: float | None = None
    option: str = "--budget"  # "--budget-usd"; "": no option raises them


@dataclass(frozen=True, kw_only=True)
class Spending:
    """A cost and the levels below the run that it belongs to."""

    path: BudgetPath
    cost: Cost


class BudgetExhausted(NeuronPortError):  # noqa: N818 (a stop, not a mistake)
    """The next call could exceed a limit. `level`, `limit`, `allowed`, `spent` and `worst` say which and by what."""

    def __init__(
        self, level: str, limit: LimitName, limits: BudgetLimits, spent: Cost, worst: Cost, message: str
    ) -> None:
        if limits.option:
            cure = f"Raise {limits.option}-{limit} and run the same command again: what is paid for is kept."
        else:
            cure = f"The limit of {level} is a fixed share; no option raises it."
        super().__init__(message, hint=cure)
        self.level = level
        self.limit = limit
        self.allowed: float = getattr(limits, limit)
        self.spent = spent
        self.worst = worst


class Budget:
    """One level of what may be spent; make the run's, then `child` for a layer, and its child for a stage.

    Args:
        limits: of this level alone; the levels around it hold too.
        name: for messages: "the run", "layer rms_norm".
        clock: seconds from a fixed moment.
        earlier: what earlier, killed sessions of the same run spent; children find their share by their path.
        earlier_seconds: how long those sessions lasted, by path; () is the run.
        say: hears, once, that dollars cannot be limited.
    """

    def __init__(
        self,
        limits: BudgetLimits,
        name: str = "the run",
        *,
        clock: Callable[[], float] = time.monotonic,
        earlier: Iterable[Spending] = (),
        earlier_seconds: Mapping[BudgetPath, float] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._enter(limits, name, (), None, _Shared(clock, tuple(earlier), dict(earlier_seconds or {}), say))

    def _enter(
        self, limits: BudgetLimits, name: str, path: BudgetPath, parent: Budget | None, shared: _Shared
    ) -> None:
        self.limits = limits
        self.name = name
        self.path = path
        self._parent = parent
        self._shared = shared
        self._children: dict[str, Budget] = {}
        self._started = shared.clock()
        self._earlier_seconds = shared.earlier_seconds.get(path, 0.0)
        self._spent = Cost()  # its usd is the part that is known
        self._reserved = Cost()
        self._reservations = 0
        self._unpriced = False
        for spending in shared.earlier:
            if spending.path[: len(path)] == path:
                self._spend(spending.cost)

    def child(self, name: str, limits: BudgetLimits | None = None) -> Budget:
        """The level `name` inside this one; asked for again, the same one. Limits count the first time."""
        with self._shared.lock:
            if name not in self._children:
                below = Budget.__new__(Budget)
                below._enter(limits or BudgetLimits(), name, (*self.path, name), self, self._shared)
                self._children[name] = below
            return self._children[name]

    @property
    def spent(self) -> Cost:
        """Settled costs, those of earlier sessions included; usd is None when a price was not known."""
        with self._shared.lock:
            return self._spent + Cost(usd=None) if self._unpriced else self._spent

    @property
    def elapsed_seconds(self) -> float:
        """Seconds on the wall since this level began, those of earlier sessions included."""
        return self._earlier_seconds + self._shared.clock() - self._started

    def left(self) -> BudgetLimits:
        """What remains on this level alone, reservations taken off; None where there is no limit."""
        with self._shared.lock:
            used = self._spent + self._reserved
            limits = self.limits
            return BudgetLimits(
                usd=None if limits.usd is None else max(0.0, limits.usd - _known(used)),
                tokens=None if limits.tokens is None else max(0, limits.tokens - used.tokens),
                calls=None if limits.calls is None else max(0, limits.calls - used.calls),
                seconds=None if limits.seconds is None else max(0.0, limits.seconds - self.elapsed_seconds),
                option=limits.option,
            )

    def reserve(self, worst: Cost, *, what: str = "the next call") -> Reservation:
        """Set `worst` aside on this level and all around it, before a call.

        Raises BudgetExhausted, and reserves nothing, when a level could be exceeded; UsageError when a limit in
        dollars meets a cost without price and no limit of tokens stands beside it.
        """
        with self._shared.lock:
            chain = self._chain()
            for level in chain:
                level._check(worst, what, chain)
            return self._set_aside(worst)

    def hold(self, extra: Cost) -> Reservation:
        """Set aside without a check: for a call that an earlier session of this run was allowed and paid."""
        with self._shared.lock:
            return self._set_aside(extra)

    def require_time(self) -> None:
        """Raise BudgetExhausted when the seconds of this level, or of one around it, have passed."""
        for level in self._chain():
            level._check_seconds(Cost(), "further work")

    def require_price(self, price: Price | None, model: str) -> None:
        """Raise UsageError now, not at the first call, when dollars are limited and `model` has no known price."""
        if price is None:
            for level in self._chain():
                level._check_price(f"a call to {model}", self._chain())

    def _chain(self) -> tuple[Budget, ...]:
        """The run first, this level last."""
        return (self,) if self._parent is None else (*self._parent._chain(), self)

    def _check(self, worst: Cost, what: str, chain: tuple[Budget, ...]) -> None:
        if worst.usd is None:
            self._check_price(what, chain)
        self._check_seconds(worst, what)
        used = self._spent + self._reserved
        pairs: tuple[tuple[LimitName, float | None, float, float], ...] = (
            ("usd", self.limits.usd, _known(used), _known(worst)),
            ("tokens", self.limits.tokens, used.tokens, worst.tokens),
            ("calls", self.limits.calls, used.calls, worst.calls),
        )
        for name, allowed, before, more in pairs:
            if allowed is not None and before + more > allowed + 1e-9:  # sums of prices are not exact
                self._refuse(name, what, worst)

    def _check_price(self, what: str, chain: tuple[Budget, ...]) -> None:
        if self.limits.usd is None:
            return
        if all(level.limits.tokens is None for level in chain):
            raise UsageError(
                f"The price of {what} is not known, so a limit of {self.limits.usd:g} US dollars cannot be held.",
                hint="Give the price in config.toml under [prices], or limit tokens with --budget-tokens.",
            )
        self._shared.say_once(
            f"The price of {what} is not known: the limit of {self.limits.usd:g} US dollars is not held, "
            "the limit of tokens is."
        )

    def _check_seconds(self, worst: Cost, what: str) -> None:
        allowed = self.limits.seconds
        if allowed is not None and self.elapsed_seconds + worst.seconds >= allowed:
            self._refuse("seconds", what, worst)

    def _refuse(self, limit: LimitName, what: str, worst: Cost) -> None:
        allowed = _in_words(limit, getattr(self.limits, limit))
        if limit == "seconds":
            message = (
                f"The time of {self.name} is used up: {self.elapsed_seconds:.0f} s of {allowed} have passed."
            )
        else:
            spent, held, more = (_amount(cost, limit) for cost in (self._spent, self._reserved, worst))
            reserved = f", {_in_words(limit, held)} reserved for calls in flight" if held else ""
            message = (
                f"The budget of {self.name} is used up: {_in_words(limit, spent)} of {allowed} spent{reserved}, "
                f"and {what} could take {_in_words(limit, more)} at worst."
            )
        raise BudgetExhausted(self.name, limit, self.limits, self._spent, worst, message)

    def _set_aside(self, worst: Cost) -> Reservation:
        for level in self._chain():
            level._reservations += 1
            level._reserved += worst.known_part
        return Reservation(self, worst)

    def _joined(self) -> None:
        """Two reservations have become one."""
        with self._shared.lock:
            for level in self._chain():
                level._reservations -= 1

    def _spend(self, actual: Cost) -> None:
        self._spent += actual.known_part
        self._unpriced = self._unpriced or actual.usd is None

    def _close(self, worst: Cost, actual: Cost | None) -> None:
        with self._shared.lock:
            for level in self._chain():
                level._reservations -= 1
                level._reserved += worst.known_part * -1
                if level._reservations == 0:
                    level._reserved = Cost()  # no rounding error stays
                if actual is not None:
                    level._spend(actual)


class _Shared:
    """What all levels of one run have in common."""

    def __init__(
        self,
        clock: Callable[[], float],
        earlier: tuple[Spending, ...],
        earlier_seconds: dict[BudgetPath, float],
        say: Callable[[str], None] | None,
    ) -> None:
        self.clock = clock
        self.earlier = earlier
        self.earlier_seconds = earlier_seconds
        self.lock = threading.RLock()
        self._say = say
        self._said = False

    def say_once(self, sentence: str) -> None:
        if not self._said and self._say is not None:
            self._say(sentence)
        self._said = True


class Reservation:
    """What one call may take. End it with `settle` or `release`; left by `with` unsettled, it is released."""

    def __init__(self, budget: Budget, worst: Cost) -> None:
        self.worst = worst
        self._budget: Budget | None = budget

    def grow(self, extra: Cost) -> None:
        """Set more aside for the same call: an attempt that broke off was charged, and another is to be made.

        Raises BudgetExhausted, and sets nothing more aside, when a level could be exceeded.
        """
        assert self._budget is not None, "a reservation ends once"
        more = self._budget.reserve(extra, what="another attempt at a call that broke off")
        more._budget = None  # this reservation closes both
        self.worst = self.worst + extra
        self._budget._joined()

    def settle(self, actual: Cost) -> None:
        """Replace what was set aside by what was spent, which counts whole even if it is more."""
        assert self._budget is not None, "a reservation ends once"
        self._budget._close(self.worst, actual)
        self._budget = None

    def release(self) -> None:
        """Give everything back; a second time, or after `settle`, nothing happens."""
        if self._budget is not None:
            self._budget._close(self.worst, None)
            self._budget = None

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _known(cost: Cost) -> float:
    return 0.0 if cost.usd is None else cost.usd


def _amount(cost: Cost, limit: LimitName) -> float:
    return _known(cost) if limit == "usd" else float(getattr(cost, limit))


def _in_words(limit: LimitName, amount: float) -> str:
    if limit == "usd":
        return dollars(amount)
    return f"{amount:g} s" if limit == "seconds" else f"{amount:,.0f} {limit}"
