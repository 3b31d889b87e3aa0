"""A DMA transfer as the engines see it: contiguous pieces (descriptors), engines, queue, and time on each engine.

The engines of a transfer follow from its SBUF partitions: each of the 16 serves 8 of them (nki-dma-overview.rst), so a
tile of 4 whole rows uses one engine. Time on an engine is bytes at its theoretical rate plus an overhead for each
descriptor, and never beats the documented sustained rate.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from neuron_port.simulator.target import Target
from neuron_port.simulator.timing.constants import Costs
from neuron_port.simulator.trace import NkiInstruction, Operand

PARTITIONS_PER_ENGINE = 8  # 128 partitions over 16 engines (nki-dma-overview.rst)
LEAST_SPLIT_BYTES = 4096  # HBM to HBM: no engine gets less than the size that saturates it (bandwidth guide)
DESCRIPTORLESS = frozenset({"dma_transpose"})


class Transfer(NamedTuple):
    """One DMA instruction: what each of `engines` does for `engine_ns`."""

    engines: tuple[int, ...]
    engine_ns: float  # time on each engine, start-up and completion excluded
    queue: str  # "load", "store", or who makes its descriptors: "sync", "scalar", "gpsimd"
    issue_ns: float  # time that the maker of its descriptors is occupied
    bytes: int
    descriptors: int
    hbm_read_bytes: int
    hbm_write_bytes: int

    @property
    def descriptor_bytes(self) -> int:
        """Average size of a contiguous piece."""
        return self.bytes // max(1, self.descriptors)


def transfer_of(instruction: NkiInstruction, target: Target, costs: Costs, cores: int) -> Transfer:
    """How `instruction` is carried out; `cores` share the bandwidth of their HBM stack evenly."""
    operands = instruction.operands
    dst = operands[0]
    sources = [o for o in operands[1:] if o.elements >= dst.elements or o.elements_per_partition > 1] or [dst]
    src = sources[0]
    if instruction.opcode == "dma_compute":
        moved = sum(o.elements * o.dtype.itemsize for o in sources)
    else:
        moved = dst.elements * max(dst.dtype.itemsize, src.dtype.itemsize)
    pieces = descriptors_of(dst, src)
    engines = engines_of(dst, src, moved, pieces, target)
    descriptors = max(len(engines), pieces)
    engine_ns = _engine_ns(instruction, dst, src, moved, descriptors, len(engines), target, costs, cores)
    ranks = instruction.attributes.get("ranks")
    if ranks:  # a collective: hops of a ring; the bandwidth of links between chips is not modelled
        engine_ns += (ranks - 1) * costs.hop_ns
    queue, issue_ns = _queue(instruction, dst, descriptors, target, costs)
    return Transfer(
        engines,
        engine_ns,
        queue,
        issue_ns,
        moved,
        descriptors,
        0 if src.on_chip else sum(o.elements * o.dtype.itemsize for o in sources if not o.on_chip),
        0 if dst.on_chip else dst.elements * dst.dtype.itemsize,
    )


def engines_of(dst: Operand, src: Operand, moved: int, pieces: int, target: Target) -> tuple[int, ...]:
    """The DMA engines that serve the partitions of the on-chip side; enough for the size from HBM to HBM.

    A full tile has 8 rows for each engine. Where few partitions are cut into many pieces, as by an element-wise
    transpose, every 8 pieces are taken to get an engine too: "parallelized up to 16 DMA engines, depending on the
    shape" (nki-dma-overview.rst) says no more.
    """
    most = target.dma_engines
    side = dst if dst.on_chip else src
    if not side.on_chip:
        return tuple(range(max(1, min(most, moved // LEAST_SPLIT_BYTES))))
    first = side.start_partition // PARTITIONS_PER_ENGINE
    end = -(-(side.start_partition + side.partitions) // PARTITIONS_PER_ENGINE)
    count = min(most, max(end - first, pieces // PARTITIONS_PER_ENGINE))
    first = min(first, most - count)
    return tuple(range(first, first + count))


def descriptors_of(dst: Operand, src: Operand) -> int:
    """Contiguous pieces of the transfer: HBM runs, cut further where a partition's side is not contiguous.

    Neighbouring partitions are one piece when HBM runs on through them: the profile of a [128, 128] bfloat16 load
    shows one 2 KiB read for each engine, not eight of 256 B (nki-dma-overview.rst).
    """
    run = dst.elements
    for side in (dst, src):
        length = contiguous_run(side)
        if side.on_chip and length >= side.elements_per_partition:
            if not dst.on_chip or not src.on_chip:
                continue  # the HBM side decides
            length = side.elements_per_partition
        run = min(run, length)
    return math.ceil(dst.elements / max(1, run))


def contiguous_run(operand: Operand) -> int:
    """Elements that lie next to each other, from the last dimension on; within a partition on chip."""
    run = 1
    first = 1 if operand.on_chip else 0
    sizes, strides = operand.shape[first:], operand.strides[first:]
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size == 1:
            continue
        if stride != run:
            break
        run *= size
    return run


def _engine_ns(
    instruction: NkiInstruction,
    dst: Operand,
    src: Operand,
    moved: int,
    descriptors: int,
    engines: int,
    target: Target,
    costs: Costs,
    cores: int,
) -> float:
    share = _largest_share(dst if dst.on_chip else src, engines)
    sustained = target.dma_engine_bytes_per_ns
    if cores > 1:
        sustained = min(sustained, target.hbm_bytes_per_ns_per_core_pair / cores / target.dma_engines)
    bytes_ = moved * share
    if instruction.opcode in DESCRIPTORLESS:
        efficiency = costs.transpose_efficiency_sbuf if src.on_chip else costs.transpose_efficiency_hbm
        return bytes_ / (sustained * efficiency)
    if instruction.opcode == "dma_compute":
        sustained *= costs.reduce_efficiency
    pieces = math.ceil(descriptors * share)
    overhead = pieces * costs.descriptor_ns
    return max(bytes_ / target.dma_engine_theoretical_bytes_per_ns + overhead, bytes_ / sustained)


def _largest_share(side: Operand, engines: int) -> float:
    """Part of the transfer that falls to the busiest engine."""
    if side.on_chip and engines == -(-side.partitions // PARTITIONS_PER_ENGINE):
        return min(1.0, PARTITIONS_PER_ENGINE / side.partitions)
    return 1 / engines


def _queue(
    instruction: NkiInstruction, dst: Operand, descriptors: int, target: Target, costs: Costs
) -> tuple[str, float]:
    """Who makes the descriptors, and how long that takes. Unspecified modes are taken to be prebuilt."""
    attributes = instruction.attributes
    mode = attributes.get("dge_mode")
    if attributes.get("indirect") in ("gather", "scatter") or mode == "swdge":
        cycles = costs.gpsimd_start_cycles + descriptors * costs.swdge_cycles_per_descriptor
        return "gpsimd", cycles / target.gpsimd_clock_ghz
    if mode == "hwdge":
        trigger = attributes.get("trigger")
        return ("scalar" if trigger == "scalar" else "sync"), costs.hwdge_issue_ns
    return ("load" if dst.on_chip else "store"), costs.trigger_ns
