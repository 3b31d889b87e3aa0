"""Advice on moving results out of PSUM: copies that the next instruction could do itself, and copies in small parts."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from neuron_port.profiling.advice.evidence import (
    Candidate,
    Change,
    Evidence,
    is_copy,
    key_of,
    keys_of,
    location_of,
    total_busy_ns,
)
from neuron_port.profiling.words import time_text
from neuron_port.simulator.memory import MemoryRegion
from neuron_port.simulator.timing.timeline import Scheduled

# Read PSUM as well as SBUF, and compute in float32 anyway.
CAN_READ_PSUM = frozenset(
    {
        "activation",
        "activation_reduce",
        "tensor_scalar",
        "tensor_tensor",
        "scalar_tensor_tensor",
        "tensor_reduce",
    }
)
SMALL_ELEMENTS = 256  # half a bank of float32
FEW = 4


def _empties_psum(one: Scheduled) -> bool:
    operands = one.instruction.operands
    return (
        is_copy(one)
        and len(operands) == 2
        and operands[1].allocation.buffer is MemoryRegion.psum
        and operands[0].allocation.buffer is MemoryRegion.sbuf
    )


def copied_before_use(evidence: Evidence) -> Iterator[Candidate]:
    """A copy out of PSUM whose only reader could have read PSUM itself."""
    for place, members in evidence.lines(_empties_psum).items():
        needless = [one for one in members if _reader_could_read_psum(evidence, one)]
        if not needless:
            continue
        reader = evidence.readers(needless[0].instruction.operands[0].allocation)[0].one.instruction
        yield Candidate(
            rule="psum-copied-first",
            location=location_of(place),
            measured=f"{len(needless)} copies out of PSUM, {time_text(total_busy_ns(needless))}, each read once, by "
            f"{reader.opcode} in line {reader.line}",
            change=f"Let {reader.opcode} read the PSUM tile itself and leave the copy out.",
            source="nki.isa: Vector and Scalar instructions take their input from SBUF or PSUM",
            effect=Change(left_out=keys_of(needless)),
        )


def _reader_could_read_psum(evidence: Evidence, one: Scheduled) -> bool:
    tile = one.instruction.operands[0].allocation
    readers = evidence.readers(tile)
    if len(readers) != 1 or len(evidence.writers(tile)) != 1:
        return False
    reader = readers[0].one.instruction
    others = [operand for operand in reader.operands[reader.writes :] if operand.allocation is not tile]
    return (
        reader.opcode in CAN_READ_PSUM
        and reader.engine.name in ("vector", "scalar")
        and one.instruction.operands[1].dtype
        == one.instruction.operands[0].dtype  # no rounding that is meant
        and not any(operand.allocation.buffer is MemoryRegion.psum for operand in others)
    )


def small_evacuations(evidence: Evidence) -> Iterator[Candidate]:
    """Many copies out of PSUM of a part of a bank each: one copy of several banks has the fixed cost once."""
    for place, members in evidence.lines(_empties_psum).items():
        elements = median(one.instruction.operands[1].elements_per_partition for one in members)
        if len(members) < FEW or elements > SMALL_ELEMENTS:
            continue
        together = min(len(members), max(2, int(4 * SMALL_ELEMENTS // max(elements, 1))))
        fixed_ns = _fixed_ns(evidence, members[0])
        yield Candidate(
            rule="psum-small-copies",
            location=location_of(place),
            measured=f"{len(members)} copies of {elements:.0f} elements per partition out of PSUM, "
            f"{time_text(median(one.busy_ns for one in members))} each, of which {time_text(fixed_ns)} are fixed cost",
            change=f"Write {together} results side by side into one PSUM tile [128, {together}, ...] (it may span banks) "
            "and copy them with one instruction.",
            source="nki_perf_guide.rst, optimisation 5a: about 100 cycles for each instruction",
            effect=Change(saved_ns={key_of(one): fixed_ns * (1 - 1 / together) for one in members}),
        )


def _fixed_ns(evidence: Evidence, one: Scheduled) -> float:
    """What the instruction takes beyond an element per cycle."""
    clock = evidence.target.scalar_clock_ghz if one.lane == "scalar" else evidence.target.vector_clock_ghz
    return max(0.0, one.busy_ns - one.instruction.operands[1].elements_per_partition / clock)
