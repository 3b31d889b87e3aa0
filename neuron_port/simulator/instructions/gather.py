"""GpSimdE: gathers by indices that 16 partitions share, one list for each of its eight cores; SBUF only."""

from __future__ import annotations

import numpy as np

from neuron_port.simulator.checks import SBUF, check_destination, check_dtype, check_memory, check_source
from neuron_port.simulator.context import record
from neuron_port.simulator.dtypes import uint16
from neuron_port.simulator.errors import ConstraintError, OutOfBoundsError
from neuron_port.simulator.tensor import NkiTensor
from neuron_port.simulator.trace import NkiInstruction, engine
from neuron_port.simulator.values import write_raw

CORE_PARTITIONS = 16  # partitions that one of the eight GpSimd cores reaches (trainium_inferentia2_arch.rst)
ELEMENTS_PER_INDEX = (1, 2, 4, 8, 16, 32)  # nki.isa.local_gather
MAXIMUM_INDICES = 4096  # for each core, nki.isa.local_gather


def local_gather(
    dst: NkiTensor,
    src_buffer: NkiTensor,
    index: NkiTensor,
    num_elem_per_idx: int = 1,
    num_valid_indices: int | None = None,
    name: str | None = None,
) -> NkiInstruction:
    """dst[p, j * e : (j + 1) * e] = src_buffer[p, i_j : i_j + e], e = num_elem_per_idx.

    i_0, i_1, ... are the first num_valid_indices of the indices that p's group of 16 partitions holds,
    counted along the partitions first; they are element offsets into the flattened partition.

    Args:
        dst: [P, num_valid_indices * e] @ SBUF, dtype of src_buffer.
        src_buffer: [P, N] @ SBUF, P a multiple of 16.
        index: [P, K] @ SBUF, uint16; at most 4096 indices for each group.
        num_elem_per_idx: 1, 2, 4, 8, 16 or 32.
    Raises:
        ConstraintError; OutOfBoundsError where the device would read undefined data.
    """
    for label, tile in (("src_buffer", src_buffer), ("index", index)):
        check_source("local_gather", label, tile)
        check_memory("local_gather", label, tile, SBUF)
    check_destination("local_gather", "dst", dst)
    check_memory("local_gather", "dst", dst, SBUF)
    check_dtype("local_gather", "index", index, (uint16,))
    check_dtype("local_gather", "dst", dst, (src_buffer.dtype,))
    partitions = _checked_partitions(dst, src_buffer, index)
    cores = partitions // CORE_PARTITIONS
    per_core = index.size // cores
    count = per_core if num_valid_indices is None else num_valid_indices
    _check_counts(dst, index, num_elem_per_idx, count, per_core)

    flat = index.array.reshape(cores, CORE_PARTITIONS, -1).transpose(0, 2, 1).reshape(cores, per_core)
    begins = flat[:, :count].astype(np.int64)
    rows = src_buffer.array.reshape(partitions, -1)
    if int(begins.max()) + num_elem_per_idx > rows.shape[1]:
        raise OutOfBoundsError(
            f"local_gather: index {int(begins.max())} with num_elem_per_idx={num_elem_per_idx} leaves the "
            f"{rows.shape[1]} elements per partition of src_buffer {src_buffer!r}",
            hint="indices count elements, not groups of num_elem_per_idx elements",
        )
    positions = (begins[:, :, None] + np.arange(num_elem_per_idx)).reshape(cores, -1)
    gathered = np.take_along_axis(rows, np.repeat(positions, CORE_PARTITIONS, axis=0), axis=1)
    write_raw(dst, gathered)
    return record(
        "local_gather",
        engine.gpsimd,
        (dst, src_buffer, index),
        name,
        num_elem_per_idx=num_elem_per_idx,
        num_valid_indices=count,
    )


def _checked_partitions(dst: NkiTensor, src_buffer: NkiTensor, index: NkiTensor) -> int:
    partitions: int = src_buffer.array.shape[0]
    for label, tile in (("index", index), ("dst", dst)):
        if tile.array.shape[0] != partitions:
            raise ConstraintError(
                f"local_gather: {label} {tile!r} must have the {partitions} partitions of src_buffer "
                f"{src_buffer!r}"
            )
    if partitions % CORE_PARTITIONS:
        raise ConstraintError(
            f"local_gather: src_buffer {src_buffer!r} has {partitions} partitions, must be a multiple of 16",
            hint="each GpSimd core works on 16 partitions",
        )
    return partitions


def _check_counts(dst: NkiTensor, index: NkiTensor, elements: int, count: int, per_core: int) -> None:
    if elements not in ELEMENTS_PER_INDEX:
        raise ConstraintError(
            f"local_gather: num_elem_per_idx is {elements!r}, must be one of "
            f"{', '.join(map(str, ELEMENTS_PER_INDEX))}"
        )
    if not 1 <= count <= per_core:
        raise ConstraintError(
            f"local_gather: num_valid_indices is {count}, but index {index!r} holds {per_core} for each core",
            hint="each core reads the indices of its 16 partitions",
        )
    if count > MAXIMUM_INDICES:
        raise ConstraintError(
            f"local_gather: {count} indices for each core, at most {MAXIMUM_INDICES}",
            hint="gather in several instructions",
        )
    free = dst.size // dst.array.shape[0]
    if count * elements != free:
        # NKI 0.6 ignores num_elem_per_idx in this case (release notes, known issues).
        raise ConstraintError(
            f"local_gather: dst {dst!r} has {free} elements per partition; num_valid_indices * "
            f"num_elem_per_idx is {count} * {elements} = {count * elements}",
            hint="the device ignores num_elem_per_idx unless they are equal: slice dst",
        )
