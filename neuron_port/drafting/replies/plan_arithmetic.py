"""What a plan's numbers mean on the machine: every complaint is a sentence with the number, the limit and the cure.

Limits come from the record of the target; they are not written here.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping

from neuron_port.drafting.replies.plan_record import Plan, Tile
from neuron_port.simulator import dtypes
from neuron_port.simulator.dtypes import DType
from neuron_port.simulator.errors import SimulatorError
from neuron_port.simulator.linting.renames import REMOVED
from neuron_port.simulator.linting.signatures import known_names
from neuron_port.simulator.target import Target, find_target
from neuron_port.task import KernelTask

MAXIMUM_TILE_RANK = 5  # nl.ndarray: a tile on chip has 2 to 5 dimensions


def check_plan(plan: Plan, task: KernelTask, target: str | Target) -> list[str]:
    """What does not fit, as sentences; empty if the plan can be drafted from."""
    machine = find_target(target)
    return [
        *_check_tiling(plan, task, machine),
        *(complaint for tile in plan.tiles for complaint in _check_tile(tile, machine)),
        *_check_capacity(plan, machine),
        *_check_products(plan, machine),
        *_check_steps(plan),
        *_check_source_map(plan, task),
    ]


def _check_tiling(plan: Plan, task: KernelTask, target: Target) -> Iterator[str]:
    values = values_of_sizes(task)
    for tiling in plan.tiling:
        if tiling.tile < 1:
            yield f"Size {tiling.size} is tiled by {tiling.tile}; a tile has at least 1 element."
        elif tiling.axis == "partition" and tiling.tile > target.partitions:
            yield (
                f"Size {tiling.size} is tiled by {tiling.tile} along the partitions, which are {target.partitions}: "
                f"use tiles of at most {target.partitions} and loop over them."
            )
        if tiling.size not in values:
            yield f"The task has no size `{tiling.size}`; its sizes are {', '.join(values)}."
        elif tiling.tile >= 1 and tiling.tail == "none":
            cut = [value for value in values[tiling.size] if value % tiling.tile]
            if cut:
                yield (
                    f"Size {tiling.size} may be {cut[0]}, which tiles of {tiling.tile} do not divide "
                    f'({cut[0] % tiling.tile} are left): set its tail to "slice" and cut the last tile.'
                )
    tiled = {tiling.size for tiling in plan.tiling}
    for size in values:
        if size not in tiled:
            yield f"The plan does not say how size {size} is walked: add it to `tiling`."


def values_of_sizes(task: KernelTask) -> dict[str, tuple[int, ...]]:
    """For every size that the task names, values that it takes: in the cases, and the ends of its range."""
    values: dict[str, set[int]] = {}
    for case in task.cases:
        for name, value in case.sizes.items():
            values.setdefault(name, set()).add(value)
    for name, size in task.sizes.items():
        multiple = size.multiple
        least = -(-size.least // multiple) * multiple
        ends = (least, least + multiple, size.most // multiple * multiple)
        values.setdefault(name, set()).update(value for value in ends if value in size)
    return {name: tuple(sorted(found)) for name, found in values.items()}


def _check_tile(tile: Tile, target: Target) -> Iterator[str]:
    where = f"Tile `{tile.name}` {list(tile.shape)}"
    if not 2 <= len(tile.shape) <= MAXIMUM_TILE_RANK:
        yield f"{where} has {len(tile.shape)} dimensions; a tile has 2 to {MAXIMUM_TILE_RANK}: a column is [n, 1]."
    if any(size < 1 for size in tile.shape):
        yield f"{where} has a dimension below 1: give the sizes at their largest."
    elif tile.shape and tile.shape[0] > target.partitions:
        yield (
            f"{where} has {tile.shape[0]} partitions, at most {target.partitions}: put what is over into a free "
            "dimension, or loop over tiles."
        )
    if tile.buffers < 1:
        yield f"{where} has {tile.buffers} buffers; at least 1 is alive."
    dtype = _dtype(tile)
    if dtype is None:
        yield f"{where} has dtype `{tile.dtype}`, which NKI does not have: use float32, bfloat16 or int32, for example."
    elif tile.memory == "psum" and min(tile.shape, default=1) >= 1:
        capacity = target.psum_banks * target.psum_bank_bytes
        if _partition_bytes(tile, dtype) > capacity:
            yield (
                f"{where} takes {_partition_bytes(tile, dtype)} bytes per partition of PSUM, which has {capacity} in "
                f"{target.psum_banks} banks of {target.psum_bank_bytes}: compute fewer columns at a time."
            )


def _dtype(tile: Tile) -> DType | None:
    try:
        return dtypes.resolve(tile.dtype.removeprefix("nl."))
    except SimulatorError:
        return None


def _partition_bytes(tile: Tile, dtype: DType) -> int:
    return math.prod(tile.shape[1:]) * dtype.itemsize


def _check_capacity(plan: Plan, target: Target) -> Iterator[str]:
    """What all tiles take together, buffers counted: PSUM by whole banks, SBUF by bytes."""
    known = [
        (tile, dtype) for tile in plan.tiles if (dtype := _dtype(tile)) and min(tile.shape, default=0) >= 1
    ]
    banks = {
        tile.name: tile.buffers * -(-_partition_bytes(tile, dtype) // target.psum_bank_bytes)
        for tile, dtype in known
        if tile.memory == "psum"
    }
    if sum(banks.values()) > target.psum_banks:
        yield (
            f"The tiles in PSUM take {sum(banks.values())} banks ({_shares(banks, 'banks')}), there are "
            f"{target.psum_banks}: use fewer buffers or narrower tiles, or copy sums to SBUF sooner."
        )
    sizes = {
        tile.name: tile.buffers * _partition_bytes(tile, dtype)
        for tile, dtype in known
        if tile.memory == "sbuf"
    }
    usable = target.sbuf_usable_bytes_per_partition
    if sum(sizes.values()) > usable:
        yield (
            f"The tiles in SBUF take {sum(sizes.values())} bytes per partition ({_shares(sizes, 'bytes')}), usable are "
            f"{usable}: walk the longest free dimension in blocks, or keep fewer buffers."
        )


def _shares(amounts: Mapping[str, int], unit: str) -> str:
    largest = sorted(amounts.items(), key=lambda item: -item[1])[:4]
    return ", ".join(f"`{name}` {amount} {unit}" for name, amount in largest)


def _check_products(plan: Plan, target: Target) -> Iterator[str]:
    tiles = {tile.name: tile for tile in plan.tiles}
    for product in plan.products:
        where = f"The product into `{product.into}`"
        tile = tiles.get(product.into)
        if tile is None or tile.memory != "psum":
            yield f"{where} needs a tile of that name in PSUM: TensorE writes nowhere else."
        bfloat16 = tile is not None and target.bf16_accumulation and tile.dtype.endswith("bfloat16")
        limits = (
            ("a contraction", product.contraction, target.partitions, "add up several products in one PSUM tile"),
            ("m (stationary free)", product.m, target.stationary_free_max, "loop over blocks of m"),
            ("n (moving free)", product.n, target.moving_free_max_into(bfloat16=bfloat16), "loop over blocks of n"),
        )  # fmt: skip
        for what, value, limit, cure in limits:
            if not 1 <= value <= limit:
                yield f"{where} has {what} of {value}, which must be 1 to {limit}: {cure}."
        if tile is not None and tile.shape and tile.shape[0] < product.m:
            yield f"{where} has m of {product.m}, but the tile has {tile.shape[0]} partitions: they must be as many."
        if tile is not None and math.prod(tile.shape[1:]) < product.n:
            yield f"{where} has n of {product.n}, but the tile has {math.prod(tile.shape[1:])} columns: widen it."
        if tile is not None and _dtype(tile) not in (None, *_product_dtypes(target)):
            yield f"{where} accumulates in {tile.dtype}: sums of products in PSUM are float32."
    if not plan.products and any(step.instruction.endswith("nc_matmul") for step in plan.steps):
        yield "A step uses nc_matmul, but `products` is empty: give the sizes of each product."


def _product_dtypes(target: Target) -> tuple[DType, ...]:
    return (dtypes.float32, dtypes.bfloat16) if target.bf16_accumulation else (dtypes.float32,)


def _check_steps(plan: Plan) -> Iterator[str]:
    known = known_names("nki.isa")
    if not plan.steps:
        yield "The plan has no steps: list them from load to store, each with its instruction."
    for name in plan.instructions:
        if name not in known:
            removed = REMOVED.get(f"nki.isa.{name}")
            near = difflib.get_close_matches(name, known, n=1)
            cure = (
                removed[1]
                if removed
                else f"did you mean nisa.{near[0]}?"
                if near
                else "use one of the listed."
            )
            yield f"nki.isa has no `{name[:60]}`: {cure}"
    if plan.steps and not any(name.startswith("dma_") for name in plan.instructions):
        yield "No step moves data between HBM and SBUF: add nisa.dma_copy for loads and stores."


def _check_source_map(plan: Plan, task: KernelTask) -> Iterator[str]:
    if task.sources and not plan.source_map:
        yield "The task has a source, but `source_map` is empty: say what becomes of each part of it."
