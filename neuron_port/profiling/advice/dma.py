"""Advice on transfers: too small, in pieces too short, on few engines, of data that was there already."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from neuron_port.profiling.advice.evidence import Candidate, Change, Evidence, key_of, location_of
from neuron_port.profiling.by_line import place_of
from neuron_port.profiling.memory import memory_peaks
from neuron_port.profiling.words import bytes_text
from neuron_port.simulator.timing.timeline import DMA_LANE, Scheduled
from neuron_port.simulator.trace import Operand

RECOMMENDED_BYTES = 2048  # per partition (nki-dma-bandwidth-guide.rst)
SHORT_RUN_BYTES = 512
FEW_TRANSFER_BYTES = 32 * 1024  # below it a transfer is latency, however many engines it has
BANDWIDTH_GUIDE = "nki-dma-bandwidth-guide.rst: 21 % of the bandwidth at 512 B per partition, 82 % at 2 KiB"
OVERVIEW = "nki-dma-overview.rst: each of the 16 DMA engines serves 8 partitions"


def on_chip_side(one: Scheduled) -> Operand | None:
    """The destination or the first source that is in SBUF; None from HBM to HBM."""
    return next((operand for operand in one.instruction.operands[:2] if operand.on_chip), None)


def _is_transfer(one: Scheduled) -> bool:
    return one.lane == DMA_LANE and on_chip_side(one) is not None


def _bytes_per_partition(one: Scheduled) -> int:
    side = on_chip_side(one)
    return side.bytes_per_partition if side is not None else one.transfer_bytes


def _excess_ns(evidence: Evidence, one: Scheduled) -> float:
    """Time on its engines beyond its bytes at the sustained rate."""
    rate = evidence.target.dma_engine_bytes_per_ns * max(1, len(one.dma_engines))
    return max(0.0, one.busy_ns - one.transfer_bytes / rate)


def small_transfers(evidence: Evidence) -> Iterator[Candidate]:
    """Several transfers of one line with less than 2 KiB for each partition: one larger transfer has less overhead."""
    for place, members in evidence.lines(_is_transfer).items():
        size = median(_bytes_per_partition(one) for one in members)
        if len(members) < 2 or size >= RECOMMENDED_BYTES or _run_bytes(members) < SHORT_RUN_BYTES <= size:
            continue
        together = min(len(members), -(-RECOMMENDED_BYTES // max(1, int(size))))
        saved = {key_of(one): _excess_ns(evidence, one) for one in members}
        yield Candidate(
            rule="dma-small",
            location=location_of(place),
            measured=f"{len(members)} transfers of {bytes_text(size)} per partition",
            change=f"Move {together} of these tiles with one dma_copy: 2 KiB or more for each partition.",
            source=BANDWIDTH_GUIDE,
            effect=Change(saved_ns=saved),
        )


def _run_bytes(members: list[Scheduled]) -> float:
    return median(one.descriptor_bytes for one in members)


def short_runs(evidence: Evidence) -> Iterator[Candidate]:
    """Transfers in contiguous pieces below 512 B: every piece is a descriptor with its own overhead."""
    for place, members in evidence.lines(lambda one: one.lane == DMA_LANE).items():
        run = _run_bytes(members)
        total = sum(one.transfer_bytes for one in members)
        if (
            run >= SHORT_RUN_BYTES
            or total < FEW_TRANSFER_BYTES
            or run * 4 > median(one.transfer_bytes for one in members)
        ):
            continue
        side = on_chip_side(members[0])
        if side is not None and len(members) > 1 and side.bytes_per_partition <= run:
            continue  # each row is short because the tile is: dma-small says so
        pieces = sum(one.descriptors for one in members)
        yield Candidate(
            rule="dma-short-runs",
            location=location_of(place),
            measured=f"{bytes_text(total)} in {pieces:,} contiguous pieces of {bytes_text(run)}",
            change="Keep the innermost dimension of the HBM side contiguous and long (512 B, better 2 KiB), and "
            "rearrange on chip or store the tensor in the order in which it is read.",
            source=BANDWIDTH_GUIDE,
            effect=Change(saved_ns={key_of(one): _excess_ns(evidence, one) for one in members}),
        )


def few_engines(evidence: Evidence) -> Iterator[Candidate]:
    """Large transfers to few partitions: DMA engines follow from partitions, so most of them stand idle."""
    engines = evidence.target.dma_engines
    for place, members in evidence.lines(_is_transfer).items():
        used = median(len(one.dma_engines) for one in members)
        size = median(one.transfer_bytes for one in members)
        if used > engines / 2 or size < FEW_TRANSFER_BYTES:
            continue
        yield Candidate(
            rule="dma-few-engines",
            location=location_of(place),
            measured=f"{bytes_text(size)} per transfer on {used:.0f} of {engines} DMA engines",
            change="Spread the tile over all 128 partitions, so that every DMA engine takes a part.",
            source=OVERVIEW,
            effect=Change(saved_ns={key_of(one): one.busy_ns * (1 - used / engines) for one in members}),
        )


def loaded_again(evidence: Evidence) -> Iterator[Candidate]:
    """The same part of an input loaded again, although SBUF has room to keep it."""
    repeats: dict[tuple[str, int], list[Scheduled]] = {}
    kept_bytes: dict[tuple[str, int], int] = {}
    loaded: set[object] = set()
    counted: set[object] = set()
    for one in evidence.in_order:
        operands = one.instruction.operands
        if one.lane != DMA_LANE or len(operands) != 2 or operands[1].on_chip or not operands[0].on_chip:
            continue
        source = operands[1]
        if evidence.writers(source.allocation):
            continue
        what = (one.core, source.allocation, source.shape, source.strides_bytes, source.offset_bytes)
        if what in loaded:
            repeats.setdefault(place_of(one), []).append(one)
            if what not in counted:
                counted.add(what)
                kept_bytes[place_of(one)] = kept_bytes.get(place_of(one), 0) + operands[0].bytes_per_partition
        loaded.add(what)
    sbuf, _ = memory_peaks(evidence.traces, evidence.target)
    for place, members in repeats.items():
        needed, free = kept_bytes[place], sbuf.capacity - sbuf.used
        if needed > free:
            continue
        moved = sum(one.transfer_bytes for one in members)
        yield Candidate(
            rule="dma-repeated",
            location=location_of(place),
            measured=f"{len(members)} loads, {bytes_text(moved)}, of data that was loaded before",
            change=f"Load it once before the loop and keep it: it takes {bytes_text(needed)} per partition, "
            f"{bytes_text(free)} are free at the peak.",
            source="trainium2_arch.rst: SBUF has 20 times the bandwidth of HBM; the roofline counts every byte",
            effect=Change(left_out=frozenset(key_of(one) for one in members)),
        )
