"""Advice on TensorE: its clock, and matmuls that use a part of the array or more passes than the data needs."""

from __future__ import annotations

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
from neuron_port.profiling.words import share_text, time_text
from neuron_port.simulator.memory import Allocation
from neuron_port.simulator.timing.constants import COSTS
from neuron_port.simulator.timing.timeline import DMA_LANE, Scheduled

NOTABLE_COLD_SHARE = 0.1  # of TensorE's busy time
LEAST_COLUMNS = 64  # a matmul takes 64 cycles at least (Neuron 2.26, nc_matmul)
FEW = 4  # instructions of a line below which it is no pattern


def _is_product(one: Scheduled) -> bool:
    return one.instruction.opcode.startswith("nc_matmul") and not one.instruction.attributes.get(
        "is_transpose"
    )


def slow_clock(evidence: Evidence) -> Iterator[Candidate]:
    """TensorE runs at half its clock because it has been idle too often."""
    members = [one for one in evidence.in_order if one.lane == "tensor"]
    busy = total_busy_ns(members)
    if evidence.timeline.tensor_cold_ns <= NOTABLE_COLD_SHARE * busy:
        return
    lost: dict[tuple[str, int], float] = {}
    for one in members:
        lost[place_of(one)] = lost.get(place_of(one), 0.0) + one.cold_ns
    place = max(lost, key=lambda place: lost[place])
    yield Candidate(
        rule="tensor-cold",
        location=location_of(place),
        measured=f"{time_text(evidence.timeline.tensor_cold_ns)} of {time_text(busy)} on TensorE are lost to its slow "
        f"clock, most in this line; TensorE is {share_text(evidence.utilisation('tensor'))} busy",
        change="Keep TensorE busy for more than half of every 3 µs: load tiles ahead, issue matmuls together instead of "
        "one between other steps, and let matmuls on any tile warm it up while the first load arrives.",
        source="neuron-explorer overview-summary-page.rst and troubleshooting.rst: half rate for ~3 µs, and again below "
        "50 % utilisation",
        effect=Change(is_warm=True),
    )


def narrow_moving(evidence: Evidence) -> Iterator[Candidate]:
    """Matmuls with fewer moving columns than the 64 (or M) cycles that they take at least."""
    for place, members in evidence.lines(_is_product).items():
        columns = median(one.instruction.operands[2].elements_per_partition for one in members)
        stationary = median(one.instruction.operands[1].elements_per_partition for one in members)
        least = min(LEAST_COLUMNS, stationary)
        if len(members) < FEW or columns >= least:
            continue
        yield Candidate(
            rule="matmul-narrow-moving",
            location=location_of(place),
            measured=f"{len(members)} matmuls move {columns:.0f} columns each, and take the time of {least:.0f}",
            change="Give one matmul more moving columns, up to 512: several rows of the batch, or several products with "
            "the same stationary tile, side by side.",
            source="nc_matmul, Neuron 2.26: max(min(64, N_stationary), N_moving) cycles; trainium_inferentia2_arch.rst",
            effect=Change(saved_ns={key_of(one): one.busy_ns * (1 - columns / least) for one in members}),
        )


def short_contraction(evidence: Evidence) -> Iterator[Candidate]:
    """Matmuls that contract over at most half of the 128 rows leave the rest of the array idle."""
    for place, members in evidence.lines(_is_product).items():
        if any(one.instruction.attributes.get("tile_size") for one in members):
            continue
        rows = max(one.instruction.operands[1].partitions for one in members)
        least = 32 if evidence.target.generation >= 3 else 64
        size = max(least, 1 << (rows - 1).bit_length())
        beside = evidence.target.partitions // size
        if len(members) < FEW or beside < 2:
            continue
        yield Candidate(
            rule="matmul-short-contraction",
            location=location_of(place),
            measured=f"{len(members)} matmuls contract over {rows} of 128 rows",
            change=f"Contract over more rows at once, or run {beside} of them side by side: tile_position=(row, 0), "
            f"tile_size=({size}, 128).",
            source="trainium_inferentia2_arch.rst and trainium2_arch.rst: row tiling",
            effect=Change(saved_ns={key_of(one): one.busy_ns * (1 - 1 / beside) for one in members}),
        )


def float32_products(evidence: Evidence) -> Iterator[Candidate]:
    """Float32 matmuls take four passes; data that came as 16 bits loses nothing in one."""
    passes = COSTS[evidence.target.generation].passes_float32
    for place, members in evidence.lines(_is_product).items():
        members = [one for one in members if str(one.instruction.operands[1].dtype) == "float32"]
        if not members:
            continue
        tiles = {operand.allocation for one in members for operand in one.instruction.operands[1:3]}
        narrow = [tile for tile in tiles if _came_as_16_bits(evidence, tile)]
        if len(narrow) == len(tiles):
            origin = "its tiles hold values that were 16-bit before: nothing would be lost"
        else:
            origin = "bfloat16 keeps 8 bits of each factor; sums stay float32"
        yield Candidate(
            rule="matmul-float32",
            location=location_of(place),
            measured=f"{len(members)} float32 matmuls take {time_text(total_busy_ns(members))} in {passes} passes; "
            f"{origin}",
            change="Keep both factors in bfloat16: one pass instead of four.",
            source="trainium_inferentia2_arch.rst: float32 at a quarter of the rate; kernel-optimization.rst",
            effect=Change(saved_ns={key_of(one): one.busy_ns * (1 - 1 / passes) for one in members}),
        )


def _came_as_16_bits(evidence: Evidence, tile: Allocation) -> bool:
    """Whether all that was written to the tile was a copy of 16-bit values."""
    writers = [touch.one for touch in evidence.writers(tile)]
    return bool(writers) and all(
        (one.lane == DMA_LANE or one.instruction.opcode == "tensor_copy")
        and len(one.instruction.operands) > 1
        and one.instruction.operands[1].dtype.itemsize == 2
        for one in writers
    )
