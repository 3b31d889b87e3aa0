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

    `error_class` is short and stable ("syntax", "forbidden", "lint E10", "ConstraintError", "wrong values",
    "non-finite", "precision", "stateful" ...): repairs, memory and statistics are keyed by it. `guard` names the
    guard that a cheat ran into; a plain mistake has none.
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
    latency_ns: float | None = None  # predicted, worst public ordinary case
    facts: Mapping[str, Any] = field(default_factory=dict)
    hidden_seed: int | None = None
    cpu_seconds: float = 0.0
    isolation: tuple[str, ...] = ()

    @property
    def public_fraction(self) -> float:
        """Passed part of the public cases, all dtypes counted; 0 when none was run."""
        public = [case for case in self.cases if case.kind not in ("hidden", "repeat", "sabotage")]
        return sum(case.passed for case in public) / len(public) if public else 0.0
