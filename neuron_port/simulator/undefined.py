"""What becomes of values that nothing has written: which results depend on them.

A read of unwritten elements is noted before the instruction runs; when the instruction is recorded, the elements of
its destinations that depend on them are marked UNDEFINED in their storage. The dependence is exact for instructions
that work element by element, for transposes and for matmuls; otherwise a whole row or the whole destination counts.
Nothing here runs for kernels that write before they read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from neuron_port.simulator.context import Run, caller, current_run
from neuron_port.simulator.errors import location_of

if TYPE_CHECKING:
    from neuron_port.simulator.tensor import NkiTensor

# Where an undefined value would choose an address or a branch: instructions, or (instruction, operand).
DECIDING = frozenset(
    {
        "scalar_offset", "vector_offset", "register_load", "dma_compute", "nonzero_with_count", "sequence_bounds",
        "set_rng_seed", "rand_set_state", ("local_gather", "index"), ("nc_n_gather", "indices"),
    }
)  # fmt: skip
BY_ELEMENT = frozenset(
    {
        "activation", "activation_reduce", "activate2", "affine_select", "dma_copy", "exponential", "range_select",
        "reciprocal", "scalar_tensor_tensor", "select_reduce", "sendrecv", "tensor_copy",
        "tensor_copy_predicated", "tensor_scalar", "tensor_scalar_reduce", "tensor_tensor",
    }
)  # fmt: skip
# These take some elements and leave others; what they left out leaves no NaN behind.
SELECTING = frozenset(
    {
        "affine_select", "local_gather", "nc_n_gather", "range_select", "select_reduce", "tensor_copy_predicated",
    }
)  # fmt: skip
UNCHANGED = 255  # in the mask of nc_stream_shuffle


class Read:
    """One operand that the running instruction reads, of which some elements are undefined."""

    __slots__ = ("origin", "source", "undefined")

    def __init__(self, source: NkiTensor, undefined: np.ndarray, origin: tuple[str, str | None]) -> None:
        self.source = source
        self.undefined = undefined
        self.origin = origin


def note(source: NkiTensor, message: str, undefined: np.ndarray | None = None) -> None:
    """Remember that the running instruction reads undefined elements of `source`, before it writes anything.

    `undefined` says which, in the shape of the destination, where it is not all of `source` that is read.
    """
    run = current_run()
    storage = source.storage
    storage.poison()
    if undefined is None:
        undefined = storage.undefined_in(source.stored)
        if undefined.shape != source.array.shape:  # a reinterpreted view: which elements is not followed
            undefined = np.full(source.array.shape, bool(undefined.any()))
    if storage.origin is not None:
        origin = storage.origin
    else:
        origin = (message, location_of(*caller()))
        run.warn(message)
    run.undefined_reads.append(Read(source, undefined, origin))


def note_accumulated(dst: NkiTensor, undefined: np.ndarray) -> None:
    """Remember that the running matmul adds to undefined elements of `dst`."""
    origin = dst.storage.origin
    assert origin is not None
    shape = dst.array.shape
    current_run().undefined_reads.append(Read(dst, np.broadcast_to(undefined, shape).copy(), origin))


def scattered(run: Run, rows: NkiTensor, partitions: np.ndarray, indices: np.ndarray) -> None:
    """Mark the rows into which a scatter, which has just run, put undefined elements: rows[indices]."""
    reads, run.undefined_reads = run.undefined_reads, []
    for read in reads:
        result = np.zeros(rows.array.shape, dtype=bool)
        result[indices] = read.undefined.reshape(-1, *result.shape[1:])[partitions]
        rows.storage.mark_undefined(rows, result, read.origin)


def spread(
    run: Run, opcode: str, operands: Sequence[NkiTensor], writes: int, attributes: dict[str, Any]
) -> None:
    """Mark what the instruction, which has just run, computed from undefined elements."""
    reads, run.undefined_reads = run.undefined_reads, []
    for position, dst in enumerate(operands[:writes]):
        array = dst.array
        result = np.zeros(array.shape, dtype=bool)
        for read in reads:
            if opcode == "nc_stream_shuffle":
                _shuffle(read, result, attributes["shuffle_mask"])
            else:
                result |= _dependents(opcode, read, dst, operands, exact=position == 0)
        if opcode in SELECTING and array.dtype.kind == "f":
            result &= np.isnan(array)
        if result.any():
            dst.storage.mark_undefined(dst.stored, result, reads[0].origin)


def _shuffle(read: Read, result: np.ndarray, mask: Sequence[int]) -> None:
    """Rows move within each 32 partitions; the read begins at the first row that the mask uses."""
    first = min(entry for entry in mask if entry != UNCHANGED)
    rows = read.undefined.reshape(read.undefined.shape[0], *result.shape[1:])
    for target in range(result.shape[0]):
        entry = mask[target % len(mask)]
        source = target - target % len(mask) + entry - first
        if entry != UNCHANGED and source < rows.shape[0]:
            result[target] = rows[source]


def _dependents(
    opcode: str, read: Read, dst: NkiTensor, operands: Sequence[NkiTensor], *, exact: bool
) -> np.ndarray:
    """The elements of dst that depend on undefined elements of one operand; true, broadcastable to dst's shape."""
    undefined, shape = read.undefined, dst.array.shape
    size = math.prod(shape)
    if read.source is dst:
        return undefined
    if opcode in ("nc_matmul", "nc_matmul_mx") and exact and len(operands) >= 3:
        by_column = np.logical_or.reduce(undefined.reshape(undefined.shape[0], -1), axis=0)
        if read.source is operands[1] and by_column.size == shape[0]:
            return by_column.reshape((shape[0],) + (1,) * (len(shape) - 1))
        if read.source is operands[2] and by_column.size * shape[0] == size:
            return by_column.reshape((1, *shape[1:]))
    elif opcode == "nc_transpose" and undefined.size == size:
        return undefined.reshape(undefined.shape[0], -1).T.reshape(shape)
    elif opcode == "dma_transpose" and undefined.size == size:
        axes = {2: (1, 0), 3: (2, 1, 0), 4: (3, 1, 2, 0)}[undefined.ndim]
        return undefined.transpose(axes).reshape(shape)
    elif opcode in BY_ELEMENT and exact and undefined.size == size:
        return undefined.reshape(shape)
    if undefined.shape[0] == shape[0]:
        by_row = np.logical_or.reduce(undefined.reshape(shape[0], -1), axis=1)
        return by_row.reshape((shape[0],) + (1,) * (len(shape) - 1))
    return np.full(shape, bool(undefined.any()))
