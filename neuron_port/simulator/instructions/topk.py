"""GpSimdE: the K largest values among the elements that 16 partitions hold together; SBUF only."""

from __future__ import annotations

import numpy as np

from neuron_port.simulator.checks import SBUF, check_destination, check_dtype, check_memory, check_source
from neuron_port.simulator.context import current_run, record
from neuron_port.simulator.dtypes import bfloat16, uint32
from neuron_port.simulator.errors import ConstraintError
from neuron_port.simulator.instructions.gather import CORE_PARTITIONS
from neuron_port.simulator.tensor import NkiTensor
from neuron_port.simulator.trace import NkiInstruction, engine
from neuron_port.simulator.values import write_raw

LEAST_ELEMENTS, END_ELEMENTS = 8, 65536  # nki.isa.topk: 8 <= n < 65536
END_SELECTED = 32768  # 1 <= K < 32768


def topk(
    val_dst: NkiTensor, idx_dst: NkiTensor, src: NkiTensor, n: int, name: str | None = None
) -> NkiInstruction:
    """val_dst = the K largest of n elements, smallest of them first; idx_dst = their positions.

    Each group of 16 partitions is one problem: element e lies on partition e % 16 of the group, in column
    e // 16. All 16 partitions of a group receive its result. Among equal values the earlier ones are taken first
    and come last; the documents leave both open.

    Args:
        val_dst: [P, K] @ SBUF, bfloat16; idx_dst: [P, K] @ SBUF, uint32; P a multiple of 16, 1 <= K <= n.
        src: [P, X] @ SBUF, bfloat16, X >= ceil(n / 16); n from 8 to 65535.
    Cost: 4 n + K cycles of GpSimdE.
    """
    check_source("topk", "src", src)
    for label, tile, dtype in (("val_dst", val_dst, bfloat16), ("idx_dst", idx_dst, uint32)):
        check_destination("topk", label, tile)
        check_memory("topk", label, tile, SBUF)
        check_dtype("topk", label, tile, (dtype,))
    check_memory("topk", "src", src, SBUF)
    check_dtype("topk", "src", src, (bfloat16,))
    partitions = src.array.shape[0]
    selected = _checked_sizes(val_dst, idx_dst, src, n)
    current_run().warn(
        "topk: the documents say both that partitions are independent and that 16 of them hold one problem; here "
        "all 16 partitions of a group get the group's result"
    )
    groups = partitions // CORE_PARTITIONS
    snake = src.array.reshape(groups, CORE_PARTITIONS, -1).transpose(0, 2, 1).reshape(groups, -1)[:, :n]
    order = np.argsort(-snake, axis=1, kind="stable")[:, :selected][:, ::-1]
    values = np.take_along_axis(snake, order, axis=1)
    write_raw(val_dst, np.repeat(values, CORE_PARTITIONS, axis=0))
    write_raw(idx_dst, np.repeat(order.astype(np.uint32), CORE_PARTITIONS, axis=0))
    return record("topk", engine.gpsimd, (val_dst, idx_dst, src), name, writes=2, n=n)


def _checked_sizes(val_dst: NkiTensor, idx_dst: NkiTensor, src: NkiTensor, n: int) -> int:
    """K, after all checks of sizes."""
    partitions = src.array.shape[0]
    if partitions % CORE_PARTITIONS:
        raise ConstraintError(
            f"topk: src {src!r} has {partitions} partitions, must be a multiple of {CORE_PARTITIONS}"
        )
    selected = val_dst.size // val_dst.array.shape[0]
    for label, tile in (("val_dst", val_dst), ("idx_dst", idx_dst)):
        if tile.array.shape != (partitions, selected):
            raise ConstraintError(f"topk: {label} {tile!r} must have shape ({partitions}, {selected})")
    if not isinstance(n, int | np.integer) or not LEAST_ELEMENTS <= n < END_ELEMENTS:
        raise ConstraintError(f"topk: n is {n!r}, must be an integer from 8 to 65535")
    columns = src.size // partitions
    if columns * CORE_PARTITIONS < n:
        raise ConstraintError(
            f"topk: src {src!r} holds {columns * CORE_PARTITIONS} elements in 16 partitions, n is {n}",
            hint="src needs ceil(n / 16) columns",
        )
    if not 1 <= selected < END_SELECTED or selected > n:
        raise ConstraintError(f"topk: val_dst {val_dst!r} asks for {selected} of {n} elements")
    return selected
