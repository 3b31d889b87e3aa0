"""The verdict on a candidate kernel: how far it came, and, where it failed, evidence that a repair can start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from neuron_port.types import CaseResult, Tier

# In this order. A verdict names the last stage that the candidate passed.
Stage = Literal["nothing", "parsed", "linted", "ran", "public", "hidden", "admitted"]
STAGES: tuple[Stage, ...] = ("nothing", "parsed", "linted", "ran", "public", "hidden", "admitted")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was found about one candidate by one grading.

    `error_class` is short and stable, because repairs, memory and statistics are keyed by it: what the gate says
    ("syntax", "forbidden import" ...), "lint E10", "no load", "no compute", "no store", the class of the simulator's or
    Python's error, "cpu time" and the other limits, "missing outputs", "wrong number of outputs", "wrong shape",
    "wrong dtype", "non-finite", "wrong values", "trivial answer", "invariant", and the guards' own: "no work",
    "precision", "literals", "determinism", "stateful", "inputs changed", "aliasing".
    `guard` names the guard that a cheat ran into; a plain mistake has none.
    """

    passed: bool  # everything that was asked for
    stage: Stage
    tier: Tier = "simulator"
    error_class: str = ""
    message: str = ""  # one sentence
    hint: str = ""
    line: int | None = None
    evidence: tuple[
        str, ...
    ] = ()  # localised: case, tile, coordinates, expected and got. Never hidden inputs.
    guard: str = ""
    cases: tuple[CaseResult, ...] = ()
    public_total: int = 0  # public cases in all dtypes, whether they were reached or not
    latency_ns: float | None = (
        None  # predicted, largest public ordinary case in the last of the task's dtypes
    )
    facts: Mapping[str, Any] = field(default_factory=dict)
    hidden_seed: int | None = None
    hidden_left_out: tuple[
        str, ...
    ] = ()  # hidden cases on which the reference itself tells nothing: kind and dtype
    cpu_seconds: float = 0.0
    isolation: tuple[str, ...] = ()

    @property
    def public_fraction(self) -> float:
        """Passed part of the public cases, all dtypes counted; 0 when none was run."""
        public = [case for case in self.cases if case.kind not in ("hidden", "repeat", "sabotage")]
        return sum(case.passed for case in public) / max(self.public_total, len(public), 1)
