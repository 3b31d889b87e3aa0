"""Bounds and proxies that need no schedule: roofline, HBM traffic, energy."""

from __future__ import annotations

from collections.abc import Iterable

from neuron_port.simulator.memory import Allocation
from neuron_port.simulator.target import Target
from neuron_port.simulator.timing.costs import Cost
from neuron_port.simulator.timing.dma import Transfer
from neuron_port.simulator.timing.state import Work
from neuron_port.simulator.timing.timeline import Energy, Roofline
from neuron_port.simulator.trace import NkiInstruction, engine

# Picojoules, for comparing variants only. Arithmetic and SRAM: M. Horowitz, ISSCC 2014, figure 1.1.9 (45 nm; a
# 16- or 32-bit multiply and add; 64 bits from a 32 KiB SRAM). HBM2: O'Connor et al., MICRO 2017 (3.9 pJ per bit).
MAC_PJ = {1: 0.75, 2: 1.5, 4: 4.6}  # by operand bytes; 8 bits taken as half of 16
ELEMENT_PJ = 4.6  # one float32 element on VectorE, ScalarE or GpSimdE
SRAM_PJ_PER_BYTE = 2.5
HBM_PJ_PER_BYTE = 31.2

# Only these do no arithmetic.
MOVES = frozenset({"tensor_copy", "memset", "nc_transpose", "iota", "nc_stream_shuffle"})


def peak_macs_per_ns(target: Target, operand_bytes: int) -> float:
    """Multiply-accumulates per nanosecond of one TensorE at its effective clock (128 x 128 array)."""
    rate = 128 * 128 * target.tensor_effective_clock_ghz
    if operand_bytes >= 4:
        return rate / 4
    return rate * target.tensor_rows_per_cycle_8bit if operand_bytes == 1 else rate


def roofline_of(work: Work) -> Roofline:
    """The two bounds of all cores together; each has an even share of the HBM stack."""
    target = work.target
    cores = len(work.traces)
    compute_ns = 0.0
    macs = elements = 0
    for instruction, planned in _all(work):
        if instruction.macs:
            macs += instruction.macs
            compute_ns += instruction.macs / peak_macs_per_ns(target, _operand_bytes(instruction))
        elif (
            isinstance(planned, Cost)
            and instruction.engine is not engine.sync
            and instruction.opcode not in MOVES
        ):
            elements += planned.elements
    reads, writes = traffic_of(work)
    bandwidth = hbm_bytes_per_ns(target, cores)
    memory_ns = (reads + writes) / bandwidth
    compute_ns /= cores
    operations = 2 * macs + elements
    peak = 2 * peak_macs_per_ns(target, 2) * cores
    return Roofline(
        compute_ns=compute_ns,
        memory_ns=memory_ns,
        bound="compute" if compute_ns >= memory_ns else "memory",
        operations=operations,
        hbm_bytes=reads + writes,
        operations_per_byte=operations / (reads + writes) if reads + writes else 0.0,
        ridge_operations_per_byte=peak / bandwidth,
    )


def hbm_bytes_per_ns(target: Target, cores: int) -> float:
    """HBM bandwidth that the cores of one call have: the pair's for two, for one what its DMA engines sustain."""
    if cores > 1:
        return min(target.hbm_bytes_per_ns_per_core_pair, cores * target.dma_bytes_per_ns)
    return min(target.hbm_bytes_per_ns_per_core_pair, target.dma_bytes_per_ns)


def traffic_of(work: Work) -> tuple[int, int]:
    """(bytes read from HBM, bytes written to it), declared dtypes."""
    reads = writes = 0
    for _, planned in _all(work):
        if isinstance(planned, Transfer):
            reads += planned.hbm_read_bytes
            writes += planned.hbm_write_bytes
    return reads, writes


def energy_of(work: Work) -> Energy:
    """Picojoules by where they go; see the constants above for what they are worth."""
    tensor = vector = on_chip = 0.0
    for instruction, planned in _all(work):
        if isinstance(planned, Transfer):
            on_chip += planned.bytes * SRAM_PJ_PER_BYTE
            continue
        on_chip += planned.on_chip_bytes * SRAM_PJ_PER_BYTE
        if instruction.engine is engine.tensor:
            tensor += instruction.macs * MAC_PJ[min(4, _operand_bytes(instruction))]
        elif instruction.engine is not engine.sync:
            vector += planned.elements * ELEMENT_PJ
    reads, writes = traffic_of(work)
    return Energy(
        tensor_pj=tensor, vector_pj=vector, on_chip_pj=on_chip, hbm_pj=(reads + writes) * HBM_PJ_PER_BYTE
    )


def _operand_bytes(instruction: NkiInstruction) -> int:
    """Bytes of an element of the wider matmul operand."""
    return max(
        (item.dtype if isinstance(item, Allocation) else item[5]).itemsize
        for item in instruction.recorded[1:3]
    )


def _all(work: Work) -> Iterable[tuple[NkiInstruction, Cost | Transfer]]:
    for trace, plan in zip(work.traces, work.plans, strict=True):
        yield from zip(trace, plan, strict=True)
