"""GpSimdE: index patterns, affine masks, gathers in a partition, reductions over partitions; SBUF only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from neuron_port.simulator.checks import (
    SBUF,
    check_destination,
    check_dtype,
    check_memory,
    check_source,
    check_tiles,
)
from neuron_port.simulator.context import record
from neuron_port.simulator.dtypes import FLOAT32, uint32
from neuron_port.simulator.errors import ConstraintError, OutOfBoundsError
from neuron_port.simulator.instructions.operators import COMPARISONS, Operator, add, equal, operator_named
from neuron_port.simulator.registers import VirtualRegister
from neuron_port.simulator.tensor import NkiTensor
from neuron_port.simulator.trace import NkiInstruction, engine
from neuron_port.simulator.values import read, write, write_raw


def iota(
    dst: NkiTensor,
    pattern: Sequence[Sequence[int]],
    offset: int | VirtualRegister = 0,
    channel_multiplier: int = 0,
    name: str | None = None,
) -> NkiInstruction:
    """dst[p, ...] = offset + p * channel_multiplier + sum of step * index over [[step, count], ...]."""
    check_tiles("iota", ("dst",), dst)
    check_memory("iota", "dst", dst, SBUF)
    values = _affine("iota", dst, pattern, offset, channel_multiplier)
    write(dst, values)
    return record("iota", engine.gpsimd, (dst,), name)


def affine_select(
    dst: NkiTensor,
    pattern: Sequence[Sequence[int]],
    channel_multiplier: int,
    on_true_tile: NkiTensor,
    on_false_value: float,
    cmp_op: Operator = equal,
    offset: int = 0,
    name: str | None = None,
) -> NkiInstruction:
    """dst = on_true_tile where cmp_op(v, 0) else on_false_value; v is the affine value of `iota`."""
    check_tiles("affine_select", ("dst", "on_true_tile"), dst, on_true_tile)
    check_memory("affine_select", "dst", dst, SBUF)
    check_memory("affine_select", "on_true_tile", on_true_tile, SBUF)
    if cmp_op not in COMPARISONS:
        raise ConstraintError(
            f"affine_select: cmp_op {cmp_op!r} does not compare", hint="use nl.greater_equal, ..."
        )
    if isinstance(on_false_value, NkiTensor):
        raise ConstraintError(f"affine_select: on_false_value is {on_false_value!r}, must be a number")
    values = _affine("affine_select", dst, pattern, offset, channel_multiplier)
    chosen = cmp_op.alu(values, 0).reshape(on_true_tile.array.shape)
    if dst.dtype is on_true_tile.dtype:  # bits are kept: a 32-bit integer need not fit float32
        other = dst.dtype.rounded(np.full(1, on_false_value, dtype=FLOAT32))
        write_raw(dst, np.where(chosen, on_true_tile.array, other))
    else:
        write(dst, np.where(chosen, read(on_true_tile), np.float32(on_false_value)))
    return record("affine_select", engine.gpsimd, (dst, on_true_tile), name)


def _affine(opcode: str, dst: NkiTensor, pattern: Any, offset: Any, channel_multiplier: int) -> np.ndarray:
    """The [P, N] int32 values of an affine pattern."""
    steps = [int(step) for step, _ in pattern]
    counts = [int(count) for _, count in pattern]
    partitions = dst.array.shape[0]
    if not 1 <= len(steps) <= 4 or int(np.prod(counts)) != dst.size // partitions:
        raise ConstraintError(
            f"{opcode}: pattern {pattern} counts {int(np.prod(counts))} elements in {len(steps)} "
            f"dimensions; dst {dst!r} has {dst.size // partitions} per partition (at most 4 "
            "dimensions)"
        )
    base = offset.value if isinstance(offset, VirtualRegister) else int(offset)
    free = np.zeros(counts, dtype=np.int64)
    for axis, (step, count) in enumerate(zip(steps, counts, strict=True)):
        shape = [1] * len(counts)
        shape[axis] = count
        free += (np.arange(count, dtype=np.int64) * step).reshape(shape)
    channels = np.arange(partitions, dtype=np.int64)[:, None] * channel_multiplier
    return (base + channels + free.reshape(1, -1)).astype(np.int32)


def nc_n_gather(
    dst: NkiTensor, data: NkiTensor, indices: NkiTensor, name: str | None = None
) -> NkiInstruction:
    """dst[p, i] = data[p, indices[p, i]] with the free dimensions of data flattened; indices are uint32."""
    check_tiles("nc_n_gather", ("dst", "indices"), dst, indices)
    check_source("nc_n_gather", "data", data)
    for label, tile in (("dst", dst), ("data", data), ("indices", indices)):
        check_memory("nc_n_gather", label, tile, SBUF)
    check_dtype("nc_n_gather", "indices", indices, (uint32,))
    check_dtype("nc_n_gather", "dst", dst, (data.dtype,))
    partitions = dst.array.shape[0]
    if data.array.shape[0] != partitions:
        raise ConstraintError(
            f"nc_n_gather: data {data!r} must have {partitions} partitions like dst {dst!r}"
        )
    rows = data.array.reshape(partitions, -1)
    chosen = indices.array.reshape(partitions, -1).astype(np.int64)
    if chosen.max() >= rows.shape[1]:
        raise OutOfBoundsError(
            f"nc_n_gather: index {chosen.max()} in indices leaves the {rows.shape[1]} elements per partition "
            f"of data {data!r}",
            hint="indices count elements within the partition, from 0",
        )
    write_raw(dst, np.take_along_axis(rows, chosen, axis=1))
    return record("nc_n_gather", engine.gpsimd, (dst, data, indices), name)


def tensor_partition_reduce(
    dst: NkiTensor, op: Operator, data: NkiTensor, name: str | None = None
) -> NkiInstruction:
    """dst [1, N] = data reduced over its partitions by add, average, maximum, bitwise_or or bitwise_and."""
    check_source("tensor_partition_reduce", "data", data)
    check_destination("tensor_partition_reduce", "dst", dst)
    check_memory("tensor_partition_reduce", "dst", dst, SBUF)
    check_memory("tensor_partition_reduce", "data", data, SBUF)
    partitions = data.array.shape[0]
    if dst.array.shape[0] != 1 or dst.size * partitions != data.size:
        raise ConstraintError(
            f"tensor_partition_reduce: dst {dst!r} must have 1 partition of {data.size // partitions} "
            "elements"
        )
    average = op is operator_named("average")
    names = ("add", "average", "maximum", "bitwise_or", "bitwise_and")
    if op not in [operator_named(name) for name in names]:
        raise ConstraintError(f"tensor_partition_reduce: op {op!r} must be one of {', '.join(names)}")
    if op.bitwise:
        write_raw(dst, op.reduce(data.array, axis=0))
    else:
        total = (add if average else op).reduce(read(data), axis=0)
        write(dst, np.asarray(total / np.float32(partitions) if average else total, dtype=FLOAT32))
    return record("tensor_partition_reduce", engine.gpsimd, (dst, data), name)
