"""Advice on the engines for elementwise work: tables, balance, instructions that are all overhead, idle partitions."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from statistics import median

from neuron_port.profiling.advice.evidence import (
    Candidate,
    Change,
    Evidence,
    key_of,
    location_of,
    total_busy_ns,
)
from neuron_port.profiling.by_line import place_of
from neuron_port.profiling.words import LANE_NAMES, share_text, time_text
from neuron_port.simulator.memory import MemoryRegion
from neuron_port.simulator.timing.constants import table_of
from neuron_port.simulator.timing.timeline import Scheduled
from neuron_port.simulator.trace import NkiInstruction, engine

ELEMENTWISE_LANES = ("vector", "scalar", "gpsimd")
BUSY, IDLE = 0.5, 0.35  # utilisation from which VectorE is short of time, and up to which others have some
TINY_ELEMENTS = 64  # per partition: below it an instruction takes its fixed cost, whatever it does
TINY_COUNT = 8
FEW_PARTITIONS, MANY_ELEMENTS = 32, 256
# What ScalarE computes as scale and bias of activation(copy), or as tensor_scalar itself since NeuronCore-v3.
SCALAR_STEPS = ("multiply", "add", None)


def tables_switched(evidence: Evidence) -> Iterator[Candidate]:
    """Activation functions of different tables in turn: every switch loads a table."""
    loads = [one for one in evidence.in_order if one.table_load_ns]
    tables = {(one.core, table_of(one.instruction.attributes["table"])) for one in loads}
    if len(loads) <= len(tables):
        return
    functions = sorted({str(one.instruction.attributes["table"]) for one in loads})
    place = place_of(max(loads[1:], key=lambda one: one.table_load_ns))
    yield Candidate(
        rule="tables-switched",
        location=location_of(place),
        measured=f"{len(loads)} table loads, {time_text(evidence.timeline.table_load_ns)}, for {len(tables)} tables: "
        f"{', '.join(functions)} take turns",
        change="Run all of one function before the next, for several tiles at a time; or compute one of them on "
        "VectorE (reciprocal, tensor_scalar) or with functions of the same table.",
        source="nki-dma-overview.rst: 1.29 µs for an ACT_TABLE_LOAD; work-with-neff-files.rst",
        effect=Change(table_share=len(tables) / len(loads)),
    )


def vector_bound(evidence: Evidence) -> Iterator[Candidate]:
    """VectorE is the bottleneck while another engine that could take a part of its work idles."""
    vector = evidence.utilisation("vector")
    busiest = max((use.utilisation for use in evidence.timeline.lanes), default=0.0)
    if vector < BUSY or vector < busiest:
        return
    for place, members in evidence.lines(lambda one: one.lane == "vector").items():
        other = _other_engine(evidence, members)
        if other is None:
            continue
        spare = (vector - evidence.utilisation(other)) / 2 * evidence.timeline.device_ns
        part = min(1.0, spare / max(total_busy_ns(members), 1.0))
        moved = [one for n, one in enumerate(members) if int((n + 1) * part + 1e-9) > int(n * part + 1e-9)]
        if not moved:
            continue
        how_many = "these" if len(moved) == len(members) else f"{len(moved)} of {len(members)} of these"
        yield Candidate(
            rule="vector-bound",
            location=location_of(place),
            measured=f"VectorE is {share_text(vector)} busy, {LANE_NAMES[other]} "
            f"{share_text(evidence.utilisation(other))}; this line takes {time_text(total_busy_ns(members))} of VectorE",
            change=f"Give {how_many} {members[0].instruction.opcode} to {LANE_NAMES[other]}: {_how(evidence, other)}.",
            source="trainium2_arch.rst: VectorE, ScalarE and GpSimdE run side by side",
            effect=Change(replaced={key_of(one): _on_engine(one.instruction, other) for one in moved}),
        )


def _other_engine(evidence: Evidence, members: list[Scheduled]) -> str | None:
    """The idle engine that can execute all members; None when there is none."""
    instructions = [one.instruction for one in members]
    operands = [operand for instruction in instructions for operand in instruction.operands]
    opcodes = {instruction.opcode for instruction in instructions}
    scalable = all(
        instruction.opcode == "tensor_copy"
        or (
            instruction.opcode == "tensor_scalar"
            and all(instruction.attributes.get(name) in SCALAR_STEPS for name in ("op", "op1"))
        )
        for instruction in instructions
    )
    if scalable and evidence.utilisation("scalar") <= IDLE:
        return "scalar"
    in_psum = any(operand.allocation.buffer is MemoryRegion.psum for operand in operands)
    # On NeuronCore-v2 VectorE and GpSimdE never access SBUF at the same time: nothing would be gained.
    movable = opcodes <= {"tensor_copy", "tensor_tensor", "memset"} and not in_psum
    if movable and evidence.target.generation >= 3 and evidence.utilisation("gpsimd") <= IDLE:
        return "gpsimd"
    return None


def _how(evidence: Evidence, other: str) -> str:
    if other == "gpsimd":
        return "engine=nisa.engine.gpsimd"
    if evidence.target.generation >= 3:
        return "engine=nisa.engine.scalar"
    return "nisa.activation(op=nl.copy) with scale and bias"


def _on_engine(instruction: NkiInstruction, other: str) -> NkiInstruction:
    moved = copy.copy(instruction)
    moved.engine = engine[other]
    return moved


def tiny_instructions(evidence: Evidence) -> Iterator[Candidate]:
    """Many instructions on a few elements for each partition: their time is fixed overhead."""
    for place, members in evidence.lines(lambda one: one.lane in ELEMENTWISE_LANES).items():
        elements = median(_widest(one) for one in members)
        if len(members) < TINY_COUNT or elements >= TINY_ELEMENTS or _from_psum(members):
            continue
        together = min(len(members), max(2, int(TINY_ELEMENTS * 4 // max(elements, 1))))
        yield Candidate(
            rule="tiny-instructions",
            location=location_of(place),
            measured=f"{len(members)} {members[0].instruction.opcode} of {elements:.0f} elements per partition, "
            f"{time_text(median(one.busy_ns for one in members))} each",
            change=f"Process {together} of them with one instruction: keep the small tiles side by side in one "
            "tile and let the instruction run over its free dimensions.",
            source="nki_perf_guide.rst, optimisation 5a: a fixed cost of about 100 cycles for each instruction",
            effect=Change(saved_ns={key_of(one): one.busy_ns * (1 - 1 / together) for one in members}),
        )


def idle_partitions(evidence: Evidence) -> Iterator[Candidate]:
    """Long rows on a few partitions: time follows from the elements of one partition, and 128 work at once."""
    for place, members in evidence.lines(lambda one: one.lane in ELEMENTWISE_LANES).items():
        partitions = max(operand.partitions for one in members for operand in one.instruction.operands)
        elements = median(_widest(one) for one in members)
        if partitions > FEW_PARTITIONS or elements < MANY_ELEMENTS:
            continue
        saved = {key_of(one): one.busy_ns * (1 - partitions / evidence.target.partitions) for one in members}
        yield Candidate(
            rule="partitions-idle",
            location=location_of(place),
            measured=f"{len(members)} {members[0].instruction.opcode} of {elements:.0f} elements on "
            f"{partitions} of 128 partitions",
            change="Spread the elements over all 128 partitions: an instruction takes as long for 128 rows as for one.",
            source="trainium_inferentia2_arch.rst: 128 lanes, time by elements per partition",
            effect=Change(saved_ns=saved),
        )


def _widest(one: Scheduled) -> int:
    return max((operand.elements_per_partition for operand in one.instruction.operands), default=0)


def _from_psum(members: list[Scheduled]) -> bool:
    """Whether the line empties PSUM, on which `psum.small_evacuations` has its own word."""
    return any(
        operand.allocation.buffer is MemoryRegion.psum
        for operand in members[0].instruction.operands[members[0].instruction.writes :]
    )
