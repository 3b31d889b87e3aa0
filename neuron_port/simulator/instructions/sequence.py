"""GpSimdE: positions found in a sequence: where its segments begin and end, where it is not zero; SBUF only."""

from __future__ import annotations

from typing import Any

import numpy as np

from neuron_port.simulator.checks import (
    SBUF,
    check_destination,
    check_dtype,
    check_generation,
    check_memory,
    check_source,
    check_tensors,
    require_written,
    touch,
)
from neuron_port.simulator.context import record
from neuron_port.simulator.dtypes import float32, int32
from neuron_port.simulator.errors import ConstraintError
from neuron_port.simulator.instructions.gather import CORE_PARTITIONS
from neuron_port.simulator.tensor import NkiTensor
from neuron_port.simulator.trace import NkiInstruction, engine
from neuron_port.simulator.values import refuse_write, write


def sequence_bounds(dst: NkiTensor, segment_ids: NkiTensor, name: str | None = None) -> NkiInstruction:
    """dst[0, 0, i], dst[0, 1, i] = start and end (exclusive) of the segment that element i belongs to.

    A segment is a run of equal ids. Id 0 is padding, whose start is n and whose end is -1.

    Args:
        dst: [1, 2, n] @ SBUF, float32 or int32; segment_ids: [1, n] @ SBUF, float32 or int32, not negative.
    """
    check_source("sequence_bounds", "segment_ids", segment_ids)
    check_destination("sequence_bounds", "dst", dst)
    for label, tile in (("dst", dst), ("segment_ids", segment_ids)):
        check_memory("sequence_bounds", label, tile, SBUF)
        check_dtype("sequence_bounds", label, tile, (float32, int32))
    length = segment_ids.size
    if segment_ids.array.shape[0] != 1 or dst.array.shape != (1, 2, length):
        raise ConstraintError(
            f"sequence_bounds: segment_ids {segment_ids!r} must be (1, n) and dst {dst!r} (1, 2, n)",
            hint="the instruction works on one partition: call it once for each sequence",
        )
    ids = segment_ids.array.reshape(-1)
    if (ids < 0).any() or (ids != np.rint(ids)).any():
        raise ConstraintError(
            f"sequence_bounds: segment_ids {segment_ids!r} holds {ids[(ids < 0) | (ids != np.rint(ids))][0]}; "
            "ids are integers from 0 on"
        )
    write(dst, _bounds(ids).reshape(dst.array.shape).astype(np.float32))
    return record("sequence_bounds", engine.gpsimd, (dst, segment_ids), name)


def _bounds(ids: np.ndarray) -> np.ndarray:
    """[2, n] start and end of the run of equal ids around each element."""
    length = len(ids)
    edges = np.flatnonzero(np.concatenate(([True], ids[1:] != ids[:-1], [True])))
    run = np.repeat(np.arange(len(edges) - 1), np.diff(edges))
    padding = ids == 0
    return np.stack((np.where(padding, length, edges[run]), np.where(padding, -1, edges[run + 1])))


def nonzero_with_count(
    dst: NkiTensor,
    src: NkiTensor,
    index_offset: int = 0,
    padding_val: int = -1,
    name: str | None = None,
) -> NkiInstruction:
    """On partitions 0, 16, 32, ...: dst = positions of src's nonzero elements, then padding, then their count.

    Each GpSimd core reads and writes only the first of its 16 partitions; the others of dst stay as they are. A
    partition of src that nothing has written leaves its partition of dst unwritten. From NeuronCore-v3 on.

    Args:
        dst: [P, T + 1] @ SBUF, int32; src: [P, T] @ SBUF, float32 or int32.
        index_offset: added to the positions; padding_val: fills the slots between the last position and the count.
    """
    opcode = "nonzero_with_count"
    check_generation(opcode, 3)
    check_tensors(opcode, ("dst", "src"), dst, src)
    check_destination(opcode, "dst", dst)
    for label, tile, allowed in (("dst", dst, (int32,)), ("src", src, (float32, int32))):
        check_memory(opcode, label, tile, SBUF)
        check_dtype(opcode, label, tile, allowed)
    partitions = src.array.shape[0]
    length = src.size // partitions
    if dst.array.shape[0] != partitions or dst.size != partitions * (length + 1):
        raise ConstraintError(
            f"{opcode}: dst {dst!r} must have {partitions} partitions of {length + 1} elements, one more than src "
            f"{src!r}",
            hint="the last element of each partition is the count",
        )
    for label, value in (("index_offset", index_offset), ("padding_val", padding_val)):
        if not isinstance(value, int | np.integer) or not -(2**31) <= value < 2**31:
            raise ConstraintError(f"{opcode}: {label} is {value!r}, must be a 32-bit integer")
    read = _written_cores(opcode, src)
    if not dst.array.flags.writeable:
        refuse_write(dst)
    results = np.full((partitions, length + 1), padding_val, dtype=np.int32)
    values = src.array.reshape(partitions, length)
    for partition in read:
        found = np.flatnonzero(values[partition])
        results[partition, : len(found)] = found + index_offset
        results[partition, length] = len(found)
    dst.array[read] = results.reshape(dst.array.shape)[read]
    dst.storage.mark_selected(dst, read)
    touch(src.storage)
    return record(opcode, engine.gpsimd, (dst, src), name)


def _written_cores(opcode: str, src: NkiTensor) -> Any:
    """The first partitions of the cores whose source is written."""
    firsts = list(range(0, src.array.shape[0], CORE_PARTITIONS))
    if src.storage.state > 0:
        return firsts
    written = [first for first in firsts if src[first : first + 1].is_written()]
    if not written:
        require_written(opcode, "src", src)
    return written
