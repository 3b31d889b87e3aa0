"""What rules look at: the timeline by instruction and by line, who wrote and who read each tile, and what time is worth.

Expected gains come from the predicted schedule: shortening an instruction gains what it saves as far as the critical
path runs through it. Overlap that the change would make possible elsewhere is not counted, so a gain is an estimate
from below, except where a rule says how it counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from neuron_port.profiling.by_line import Place, critical_times, place_of
from neuron_port.simulator import Target
from neuron_port.simulator.memory import Allocation
from neuron_port.simulator.timing.timeline import Scheduled, Timeline
from neuron_port.simulator.trace import Operand, Trace

LEAST_SHARE = 0.01  # of the device time that a change must be worth to be said


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One thing to change."""

    rule: str
    location: str  # file:line
    measured: str  # the quantity in this kernel, with units
    change: str  # what to do
    source: str  # where the rule comes from
    gain_ns: float  # expected, from the predicted schedule


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One predicted run, indexed for the rules."""

    timeline: Timeline
    target: Target
    traces: Sequence[Trace]

    @cached_property
    def critical(self) -> dict[tuple[int, int], float]:
        """(core, index): part of the device time that the critical path spends in the instruction."""
        return critical_times(self.timeline)

    @cached_property
    def by_key(self) -> dict[tuple[int, int], Scheduled]:
        """(core, index): the instruction on the timeline."""
        return {(one.core, one.index): one for one in self.timeline.scheduled}

    @cached_property
    def in_order(self) -> list[Scheduled]:
        """The instructions of core 0 in program order; the other core runs the same kernel."""
        return sorted((one for one in self.timeline.scheduled if one.core == 0), key=lambda one: one.index)

    @cached_property
    def histories(self) -> dict[Allocation, list[tuple[Scheduled, Operand, bool]]]:
        """Allocation: who touched it on core 0, in program order, with which operand, and whether it wrote."""
        touched: dict[Allocation, list[tuple[Scheduled, Operand, bool]]] = {}
        for one in self.in_order:
            for number, operand in enumerate(one.instruction.operands):
                wrote = number < one.instruction.writes
                touched.setdefault(operand.allocation, []).append((one, operand, wrote))
        return touched

    def least_gain_ns(self) -> float:
        """What a change must be worth to be said."""
        return LEAST_SHARE * self.timeline.device_ns

    def gain_ns(self, members: Iterable[Scheduled], saved_ns: Callable[[Scheduled], float]) -> float:
        """Device time gained when each member gets shorter by `saved_ns`, as far as the critical path runs through it."""
        return sum(min(saved_ns(one), self.critical.get((one.core, one.index), 0.0)) for one in members)

    def lines(self, members: Iterable[Scheduled]) -> dict[Place, list[Scheduled]]:
        """Members by source line."""
        groups: dict[Place, list[Scheduled]] = {}
        for one in members:
            groups.setdefault(place_of(one), []).append(one)
        return groups

    def worth_saying(self, advice: Iterable[Advice]) -> list[Advice]:
        """Those that gain enough."""
        return [one for one in advice if one.gain_ns >= self.least_gain_ns()]


def location_of(place: Place) -> str:
    """`file:line` of a source line."""
    return f"{place[0]}:{place[1]}"
