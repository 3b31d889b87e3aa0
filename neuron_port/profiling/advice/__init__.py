"""What to change in a kernel: every rule looks at the predicted timeline and names line, quantity, source and gain.

A rule is a function from the evidence to its findings, in the file of its subject. Adding it to RULES is all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from neuron_port.profiling.advice.evidence import Advice, Evidence

__all__ = ["RULES", "Advice", "Evidence", "advise"]

RULES: tuple[Callable[[Evidence], Sequence[Advice]], ...] = ()


def advise(evidence: Evidence) -> tuple[Advice, ...]:
    """Everything that the rules find worth changing, by expected gain."""
    found = [advice for rule in RULES for advice in rule(evidence)]
    return tuple(sorted(found, key=lambda advice: (-advice.gain_ns, advice.rule, advice.location)))
