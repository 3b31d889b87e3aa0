"""Advice on transposes: done twice, done where a DMA can do them, or undone by swapping the factors of a product."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from neuron_port.profiling.advice.evidence import (
    Candidate,
    Change,
    Evidence,
    is_copy,
    key_of,
    keys_of,
    location_of,
)
from neuron_port.profiling.words import time_text
from neuron_port.simulator.memory import Allocation, MemoryRegion
from neuron_port.simulator.timing.timeline import DMA_LANE, Scheduled

DMA_TRANSPOSE_EXTRA = 1 / 0.9 - 1  # a transposing DMA reaches 90 % of the rate (trainium2_arch.rst)


def is_transpose(one: Scheduled) -> bool:
    """Whether it transposes a tile, on whichever engine."""
    return one.instruction.opcode in ("nc_transpose", "dma_transpose") or bool(
        one.instruction.attributes.get("is_transpose")
    )


def _source(one: Scheduled) -> int:
    """The operand that is transposed: a transposing matmul moves it."""
    return 2 if one.instruction.opcode.startswith("nc_matmul") else 1


def _evacuations(evidence: Evidence, members: Iterable[Scheduled]) -> list[Scheduled]:
    """The copies that move what the members wrote out of PSUM."""
    tiles = {
        one.instruction.operands[0].allocation
        for one in members
        if one.instruction.operands[0].allocation.buffer is MemoryRegion.psum
    }
    found = {
        key_of(touch.one): touch.one
        for tile in tiles
        for touch in evidence.readers(tile)
        if is_copy(touch.one)
    }
    return list(found.values())


def transposed_again(evidence: Evidence) -> Iterator[Candidate]:
    """The same tile transposed once more, with nothing written to it in between."""
    done: dict[object, int] = {}
    again: set[tuple[int, int]] = set()
    version: dict[object, int] = {}
    for one in evidence.in_order:
        operands = one.instruction.operands
        if is_transpose(one):
            source = operands[_source(one)]
            what = (one.core, source.allocation, source.shape, source.strides_bytes, source.offset_bytes)
            if done.get(what) == version.get(source.allocation, 0):
                again.add(key_of(one))
            done[what] = version.get(source.allocation, 0)
        for operand in operands[: one.instruction.writes]:
            version[operand.allocation] = version.get(operand.allocation, 0) + 1
    for place, members in evidence.lines(lambda one: key_of(one) in again).items():
        first = members[0].instruction.operands[_source(members[0])]
        yield Candidate(
            rule="transpose-repeated",
            location=location_of(place),
            measured=f"{len(members)} transposes of parts of `{first.allocation.name}` that were transposed before",
            change="Transpose it once, outside the loop, and keep the result.",
            source="kernel-optimization.rst: hoist what does not change",
            effect=Change(left_out=keys_of(members)),
        )


def transposed_after_load(evidence: Evidence) -> Iterator[Candidate]:
    """Tiles that come from HBM only to be transposed by TensorE: the DMA can transpose them on the way."""
    if evidence.target.generation < 3:  # DMA transposes since NeuronCore-v3 (trainium2_arch.rst)
        return
    for place, members in evidence.lines(_is_plain_transpose).items():
        tiles = {one.instruction.operands[1].allocation for one in members}
        straight = {tile for tile in tiles if _is_loaded_to_be_transposed(evidence, tile)}
        suited = [one for one in members if one.instruction.operands[1].allocation in straight]
        loads = {key_of(touch.one): touch.one for tile in straight for touch in evidence.writers(tile)}
        if not suited:
            continue
        dropped = [*suited, *_evacuations(evidence, suited)]
        yield Candidate(
            rule="transpose-by-dma",
            location=location_of(place),
            measured=f"{len(suited)} transposes on {suited[0].lane} and {len(dropped) - len(suited)} copies out of PSUM, "
            f"{time_text(sum(one.busy_ns for one in dropped))}, of tiles that were just loaded",
            change="Load them with nisa.dma_transpose: it does not take TensorE, PSUM or a copy (2-byte types).",
            source="trainium2_arch.rst: DMA transpose at up to 90 % of the DMA rate; dma_transpose, NKI 0.6",
            effect=Change(
                left_out=keys_of(dropped),
                saved_ns={key: -one.busy_ns * DMA_TRANSPOSE_EXTRA for key, one in loads.items()},
            ),
        )


def _is_plain_transpose(one: Scheduled) -> bool:
    return one.instruction.opcode == "nc_transpose"


def _is_loaded_to_be_transposed(evidence: Evidence, tile: Allocation) -> bool:
    """Whether all of a 16-bit tile comes from HBM and every reader transposes it."""
    writers = [touch.one for touch in evidence.writers(tile)]
    return (
        tile.dtype.itemsize == 2
        and bool(writers)
        and all(one.lane == DMA_LANE and not one.instruction.operands[1].on_chip for one in writers)
        and all(is_transpose(touch.one) for touch in evidence.readers(tile))
    )


def transposed_product(evidence: Evidence) -> Iterator[Candidate]:
    """A product that is copied out of PSUM only to be transposed: with the factors swapped it comes out transposed."""
    for place, members in evidence.lines(_is_plain_transpose).items():
        tiles = {one.instruction.operands[1].allocation for one in members}
        products = {tile for tile in tiles if _is_product_to_be_transposed(evidence, tile)}
        suited = [one for one in members if one.instruction.operands[1].allocation in products]
        if not suited:
            continue
        dropped = [*suited, *_evacuations(evidence, suited)]
        yield Candidate(
            rule="transpose-of-product",
            location=location_of(place),
            measured=f"{len(suited)} transposes, {time_text(sum(one.busy_ns for one in dropped))} with their copies, of "
            "what nc_matmul has just computed",
            change="Swap stationary and moving in that nc_matmul: (A^T B)^T = B^T A comes out transposed.",
            source="trainium_inferentia2_arch.rst: dst [M, N] = stationary [K, M]^T @ moving [K, N]",
            effect=Change(left_out=keys_of(dropped)),
        )


def _is_product_to_be_transposed(evidence: Evidence, tile: Allocation) -> bool:
    """Whether the tile holds matmul results, copied and nothing else, and every reader transposes it."""
    writers = [touch.one for touch in evidence.writers(tile)]
    if not writers or not all(is_copy(one) for one in writers):
        return False
    if not all(is_transpose(touch.one) for touch in evidence.readers(tile)):
        return False
    sources = {one.instruction.operands[1].allocation for one in writers}
    return all(
        touch.one.instruction.opcode.startswith("nc_matmul") and not is_transpose(touch.one)
        for source in sources
        for touch in evidence.writers(source)
    )
