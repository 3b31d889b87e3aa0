"""What rules look at: the timeline by instruction and by line, and who wrote and read each tile in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from neuron_port.profiling.by_line import Place, critical_times, place_of
from neuron_port.simulator import Target
from neuron_port.simulator.memory import Allocation
from neuron_port.simulator.timing.timeline import Scheduled, Timeline
from neuron_port.simulator.trace import NkiInstruction, Operand, Trace

Key = tuple[int, int]  # core and index of an instruction


@dataclass(frozen=True, kw_only=True)
class Change:
    """What following a piece of advice would change in the schedule. The model is asked what that gains.

    Every instruction stays in its place in the program, so the order of everything else is kept.
    """

    saved_ns: Mapping[Key, float] = field(default_factory=dict)  # less time on its lane
    left_out: frozenset[Key] = frozenset()  # not executed at all
    replaced: Mapping[Key, NkiInstruction] = field(default_factory=dict)  # executed as this instead
    own_copies: frozenset[Allocation] = (
        frozenset()
    )  # written without waiting for users of its former contents
    table_share: float = 1.0  # of the loads of activation tables that remain
    is_warm: bool = False  # TensorE's clock is never slow
    memory_factor: int = 1  # on-chip memory that there is room for, as a multiple


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A change that a rule thinks worth making, before the model has said what it gains."""

    rule: str
    location: str  # file:line
    measured: str  # the quantity in this kernel, with units
    change: str  # what to do
    source: str  # where the rule comes from
    effect: Change


@dataclass(frozen=True, kw_only=True)
class Touch:
    """One access of an instruction to an allocation."""

    one: Scheduled
    operand: Operand


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One predicted run, indexed for the rules."""

    timeline: Timeline
    target: Target
    traces: Sequence[Trace]

    @cached_property
    def critical(self) -> dict[Key, float]:
        """Part of the device time that the critical path spends in each of its instructions."""
        return critical_times(self.timeline)

    @cached_property
    def by_key(self) -> dict[Key, Scheduled]:
        """Every instruction on the timeline."""
        return {key_of(one): one for one in self.timeline.scheduled}

    @cached_property
    def in_order(self) -> list[Scheduled]:
        """All instructions in program order, core after core."""
        return sorted(self.timeline.scheduled, key=key_of)

    @cached_property
    def touches(self) -> tuple[dict[Allocation, list[Touch]], dict[Allocation, list[Touch]]]:
        """Who wrote each allocation, and who read it, in program order."""
        written: dict[Allocation, list[Touch]] = {}
        read: dict[Allocation, list[Touch]] = {}
        for one in self.in_order:
            for number, operand in enumerate(one.instruction.operands):
                by = written if number < one.instruction.writes else read
                by.setdefault(operand.allocation, []).append(Touch(one=one, operand=operand))
        return written, read

    def writers(self, allocation: Allocation) -> list[Touch]:
        """All that write the allocation."""
        return self.touches[0].get(allocation, [])

    def readers(self, allocation: Allocation) -> list[Touch]:
        """All that read the allocation."""
        return self.touches[1].get(allocation, [])

    def lines(self, wanted: Callable[[Scheduled], bool]) -> dict[Place, list[Scheduled]]:
        """The instructions that `wanted` accepts, by source line, in program order."""
        groups: dict[Place, list[Scheduled]] = {}
        for one in self.in_order:
            if wanted(one):
                groups.setdefault(place_of(one), []).append(one)
        return groups

    def utilisation(self, lane: str) -> float:
        """The busiest core's use of a lane; 0 for a lane that nothing ran on."""
        return max((use.utilisation for use in self.timeline.lanes if use.lane == lane), default=0.0)


def key_of(one: Scheduled) -> Key:
    """Core and index."""
    return one.core, one.index


def keys_of(members: Iterable[Scheduled]) -> frozenset[Key]:
    """Core and index of each."""
    return frozenset(key_of(one) for one in members)


def location_of(place: Place) -> str:
    """`file:line` of a source line."""
    return f"{place[0]}:{place[1]}"


def is_copy(one: Scheduled) -> bool:
    """Whether it moves values and does nothing else to them."""
    instruction = one.instruction
    return instruction.opcode == "tensor_copy" or (
        instruction.opcode == "activation"
        and instruction.attributes.get("table") in ("copy", "identity")
        and len(instruction.operands) == 2
    )


def total_busy_ns(members: Iterable[Scheduled]) -> float:
    """Busy time of all members together."""
    return sum(one.busy_ns for one in members)
