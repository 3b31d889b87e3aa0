"""VectorE: mean and variance, scans along the free dimension, and moves between partitions of a quadrant."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from neuron_port.simulator.checks import (
    check_destination,
    check_not_both_psum,
    check_source,
    check_tensors,
    check_tiles,
)
from neuron_port.simulator.context import record
from neuron_port.simulator.dtypes import FLOAT32
from neuron_port.simulator.errors import ConstraintError
from neuron_port.simulator.instructions.operators import Operator
from neuron_port.simulator.instructions.vector_engine import check_operator
from neuron_port.simulator.memory import BY_OTHERS
from neuron_port.simulator.tensor import NkiTensor
from neuron_port.simulator.trace import NkiInstruction, engine
from neuron_port.simulator.values import read, read_like, refuse_write, scalar_or_vector, write

QUADRANT = 32
UNCHANGED = 255


def bn_stats(dst: NkiTensor, data: NkiTensor, name: str | None = None) -> NkiInstruction:
    """dst [P, 6] = count, mean, variance * count of the even elements, then of the odd; 512 at most."""
    check_source("bn_stats", "data", data)
    check_destination("bn_stats", "dst", dst)
    partitions = data.array.shape[0]
    rows = read(data).reshape(partitions, -1)
    if rows.shape[1] > 512:
        raise ConstraintError(
            f"bn_stats: data {data!r} has {rows.shape[1]} elements per partition, at most 512",
            hint="run it on pieces of 512 and join them with one nisa.bn_aggr",
        )
    _check_free("bn_stats", "dst", dst, partitions, 6)
    statistics = np.zeros((partitions, 6), dtype=FLOAT32)
    for first in (0, 1):
        part = rows[:, first::2]
        if part.shape[1]:
            mean = part.mean(axis=1, dtype=FLOAT32)
            squares = np.square(part - mean[:, None]).sum(axis=1, dtype=FLOAT32)
            statistics[:, 3 * first : 3 * first + 3] = np.stack(
                [np.full_like(mean, part.shape[1]), mean, squares], 1
            )
    write(dst, statistics)
    return record("bn_stats", engine.vector, (dst, data), name)


def bn_aggr(dst: NkiTensor, data: NkiTensor, name: str | None = None) -> NkiInstruction:
    """dst [P, 2] = mean and variance of what data's (count, mean, variance * count) triples describe."""
    check_source("bn_aggr", "data", data)
    check_destination("bn_aggr", "dst", dst)
    partitions = data.array.shape[0]
    if data.size // partitions % 3:
        raise ConstraintError(f"bn_aggr: data {data!r} must hold triples of count, mean and variance * count")
    _check_free("bn_aggr", "dst", dst, partitions, 2)
    triples = read(data).reshape(partitions, -1, 3)
    counts, means, squares = triples[:, :, 0], triples[:, :, 1], triples[:, :, 2]
    total = counts.sum(axis=1, dtype=FLOAT32)
    mean = (counts * means).sum(axis=1, dtype=FLOAT32) / total
    between = (counts * np.square(means - mean[:, None])).sum(axis=1, dtype=FLOAT32)
    write(dst, np.stack([mean, (squares.sum(axis=1, dtype=FLOAT32) + between) / total], axis=1))
    return record("bn_aggr", engine.vector, (dst, data), name)


def tensor_tensor_scan(
    dst: NkiTensor,
    data0: NkiTensor,
    data1: NkiTensor,
    initial: float | NkiTensor,
    op0: Operator,
    op1: Operator,
    reverse0: bool = False,
    reverse1: bool = False,
    name: str | None = None,
) -> NkiInstruction:
    """dst_i = (data0_i op0 dst_(i-1)) op1 data1_i along the free dimension, from `initial`, in float32."""
    check_tiles("tensor_tensor_scan", ("dst", "data0", "data1"), dst, data0, data1)
    check_not_both_psum("tensor_tensor_scan", ("data0", "data1"), data0, data1)
    for op in (op0, op1):
        if check_operator("tensor_tensor_scan", op, unary=False).bitwise:
            raise ConstraintError(f"tensor_tensor_scan: {op!r} is bitwise, must be arithmetic")
    partitions = data0.array.shape[0]
    first = read(data0).reshape(partitions, -1)
    second = read_like(data1, first.shape)
    state = np.broadcast_to(
        scalar_or_vector("tensor_tensor_scan", "initial", initial, first), (partitions, 1)
    )[:, 0]
    results = np.empty(first.shape, dtype=FLOAT32)
    for column in range(first.shape[1]):
        inner = op0.alu(state, first[:, column]) if reverse0 else op0.alu(first[:, column], state)
        state = op1.alu(second[:, column], inner) if reverse1 else op1.alu(inner, second[:, column])
        results[:, column] = state
    write(dst, results)
    operands = (dst, data0, data1, initial) if isinstance(initial, NkiTensor) else (dst, data0, data1)
    return record("tensor_tensor_scan", engine.vector, operands, name)


def nc_stream_shuffle(
    dst: NkiTensor, src: NkiTensor, shuffle_mask: Sequence[int], name: str | None = None
) -> NkiInstruction:
    """dst[q * 32 + i] = src[q * 32 + shuffle_mask[i]] in each quadrant q of 32 partitions; 255 keeps dst."""
    opcode = "nc_stream_shuffle"
    check_tensors(opcode, ("dst", "src"), dst, src)
    mask = [int(entry) for entry in shuffle_mask]
    if len(mask) != QUADRANT or any(not 0 <= entry < QUADRANT and entry != UNCHANGED for entry in mask):
        raise ConstraintError(f"{opcode}: shuffle_mask {mask} must be 32 entries from 0 to 31, or 255")
    if dst.dtype is not src.dtype:
        raise ConstraintError(f"{opcode}: dst {dst!r} and src {src!r} must have the same dtype")
    from_partitions, to_partitions = src.array.shape[0], dst.array.shape[0]
    free = src.size // from_partitions
    if dst.size // to_partitions != free:
        raise ConstraintError(
            f"{opcode}: dst {dst!r} and src {src!r} must have equally many elements per partition"
        )
    active = -(-max(from_partitions, to_partitions) // QUADRANT) * QUADRANT
    step = 32 if active == 32 else 64 if active == 64 else 128
    for label, tile in (("dst", dst), ("src", src)):
        if tile.start % step:
            raise ConstraintError(
                f"{opcode}: {label} {tile!r} starts at partition {tile.start}; {active} active "
                f"partitions start at {', '.join(str(s) for s in range(0, 128, step))}"
            )
    moves = [
        (q * 32 + i, q * 32 + entry)
        for q in range(active // 32)
        for i, entry in enumerate(mask)
        if entry != UNCHANGED and q * 32 + i < to_partitions
    ]
    beyond = [source for _, source in moves if source >= from_partitions]
    if beyond:
        raise ConstraintError(
            f"{opcode}: the mask reads partition {beyond[0]} of src {src!r}",
            hint="use 255 for the partitions that have no source",
        )
    targets, sources = [target for target, _ in moves], [source for _, source in moves]
    used = src
    if sources:
        first = min(sources)
        used = src._view(
            src.array[first : max(sources) + 1], 0, src.offset_bytes + first * src.array.strides[0]
        )
    check_source(opcode, "src", used._view(used.array, 0))
    check_destination(opcode, "dst", dst._view(dst.array, 0))
    if not dst.array.flags.writeable:
        refuse_write(dst)
    dst.array[targets] = src.array[sources].reshape(len(sources), *dst.array.shape[1:])
    dst.storage.mark_selected(dst, targets, BY_OTHERS)
    return record(opcode, engine.vector, (dst, src), name, shuffle_mask=tuple(mask))


def _check_free(opcode: str, label: str, tile: NkiTensor, partitions: int, free: int) -> None:
    if tile.array.shape[0] != partitions or tile.size != partitions * free:
        raise ConstraintError(f"{opcode}: {label} {tile!r} must have shape ({partitions}, {free})")
