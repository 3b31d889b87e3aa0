"""What to change in a kernel: every rule names line, quantity and source; the model says what following it gains.

A rule is a function from the evidence to its candidates, in the file of its subject. Adding it to RULES is all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from neuron_port.profiling.advice import dma, ends, engines, psum, tensor, transposes, waiting
from neuron_port.profiling.advice.evidence import Candidate, Evidence
from neuron_port.profiling.advice.what_if import gains_ns

__all__ = ["LEAST_SHARE", "RULES", "Advice", "Candidate", "Evidence", "advise"]

LEAST_SHARE = 0.01  # of the device time that a change must gain to be said

RULES: tuple[Callable[[Evidence], Iterable[Candidate]], ...] = (
    dma.small_transfers,
    dma.short_runs,
    dma.few_engines,
    dma.loaded_again,
    ends.exposed_first_load,
    ends.exposed_last_store,
    tensor.slow_clock,
    tensor.narrow_moving,
    tensor.short_contraction,
    tensor.float32_products,
    transposes.transposed_again,
    transposes.transposed_after_load,
    transposes.transposed_product,
    engines.tables_switched,
    engines.vector_bound,
    engines.tiny_instructions,
    engines.idle_partitions,
    waiting.one_buffer,
    waiting.memory_full,
    psum.copied_before_use,
    psum.small_evacuations,
)


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One thing to change."""

    rule: str
    location: str  # file:line
    measured: str  # the quantity in this kernel, with units
    change: str  # what to do
    source: str  # where the rule comes from
    gain_ns: float  # expected device time gained, from the predicted schedule


def advise(evidence: Evidence) -> tuple[Advice, ...]:
    """Everything that the rules find and that gains enough, by expected gain. Gains do not add up."""
    candidates = [candidate for rule in RULES for candidate in rule(evidence)]
    least_ns = LEAST_SHARE * evidence.timeline.device_ns
    found = [
        Advice(
            rule=candidate.rule,
            location=candidate.location,
            measured=candidate.measured,
            change=candidate.change,
            source=candidate.source,
            gain_ns=gain_ns,
        )
        for candidate, gain_ns in zip(candidates, gains_ns(evidence, candidates, least_ns), strict=True)
        if gain_ns >= least_ns and gain_ns > 0
    ]
    return tuple(sorted(found, key=lambda advice: (-advice.gain_ns, advice.rule, advice.location)))
