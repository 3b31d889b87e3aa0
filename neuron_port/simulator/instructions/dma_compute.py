"""DMA with arithmetic: sums of up to sixteen tensors, and read-modify-write of gathered or scattered rows.

The DMA engines add in float32 and round once, on write. Like every DMA they never touch PSUM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from neuron_port.simulator.checks import require_written, touch
from neuron_port.simulator.context import current_run, record
from neuron_port.simulator.dtypes import FLOAT32
from neuron_port.simulator.errors import ConstraintError, OutOfBoundsError
from neuron_port.simulator.indirect import IndirectTensor
from neuron_port.simulator.instructions.dma import oob_mode
from neuron_port.simulator.instructions.operators import Operator, add
from neuron_port.simulator.memory import MemoryRegion
from neuron_port.simulator.tensor import NkiTensor
from neuron_port.simulator.trace import NkiInstruction, engine
from neuron_port.simulator.values import refuse_write, write, write_raw

MAXIMUM_SOURCES = 16  # nki.isa.dma_compute, NKI 0.6
OobMode = oob_mode


def dma_compute(
    dst: NkiTensor,
    srcs: Sequence[NkiTensor],
    reduce_op: Operator,
    scales: Sequence[float] | None = None,
    unique_indices: bool = True,
    oob_mode: oob_mode = oob_mode.error,
    name: str | None = None,
) -> NkiInstruction:
    """dst = srcs[0] + srcs[1] + ..., in float32, rounded once to dst's dtype; HBM or SBUF on any side.

    With rows chosen by .ap(vector_offset=...), and exactly two sources, it is a read-modify-write:
    scatter: dst(HBM)[indices] = dst(HBM)[indices] + src(SBUF), with the indirect dst among srcs as well;
    gather: dst(SBUF) = dst(SBUF) + src(HBM)[indices], with dst among srcs as well.

    Args:
        srcs: 1 to 16 tensors, each of dst's number of elements; dtypes may differ.
        reduce_op: nl.add; scales: all 1.0.
        unique_indices: True. A scatter whose indices repeat is refused: the additions would race.
        oob_mode: skip leaves the rows of invalid indices untouched.
    Raises:
        ConstraintError, OutOfBoundsError, UnwrittenReadError.
    """
    sources = _checked_sources(dst, srcs, reduce_op, scales)
    indirect = [source for source in sources if isinstance(source, IndirectTensor)]
    if not indirect and not isinstance(dst, IndirectTensor):
        if oob_mode is OobMode.skip:
            raise ConstraintError(
                "dma_compute: oob_mode.skip is given, but no tensor has a vector_offset",
                hint="leave oob_mode out: static addresses are checked when the kernel is built",
            )
        return _sum(dst, sources, name)
    for tile in (dst, *indirect):
        if isinstance(tile, IndirectTensor) and not tile.vector:
            raise ConstraintError(
                f"dma_compute: {tile!r} has a run-time address; only rows chosen by a vector_offset have one",
                hint="copy that part to SBUF with nisa.dma_copy first",
            )
    if not unique_indices:
        raise ConstraintError(
            "dma_compute: unique_indices=False is not supported with a vector_offset",
            hint="make the indices unique (add up duplicates on chip first) and pass unique_indices=True",
        )
    if len(sources) != 2 or len(indirect) != 1:
        raise ConstraintError(
            f"dma_compute: a read-modify-write takes two sources, one of them with a vector_offset; given are "
            f"{len(sources)}, {len(indirect)} of them with one"
        )
    other = sources[0] if sources[1] is indirect[0] else sources[1]
    if isinstance(dst, IndirectTensor):
        return _scatter_add(dst, indirect[0], other, oob_mode, name)
    return _gather_add(dst, indirect[0], other, oob_mode, name)


def _checked_sources(dst: Any, srcs: Any, reduce_op: Any, scales: Any) -> list[NkiTensor]:
    """The sources, after every rule that does not depend on addresses."""
    if not isinstance(srcs, list | tuple) or not 1 <= len(srcs) <= MAXIMUM_SOURCES:
        count = len(srcs) if isinstance(srcs, list | tuple) else type(srcs).__name__
        raise ConstraintError(
            f"dma_compute: srcs is {count}, must be a list of 1 to {MAXIMUM_SOURCES} tensors"
        )
    sources = list(srcs)
    for label, tensor in (("dst", dst), *((f"srcs[{i}]", source) for i, source in enumerate(sources))):
        if not isinstance(tensor, NkiTensor):
            raise ConstraintError(f"dma_compute: {label} is {tensor!r}, must be a tensor")
        if tensor.buffer is MemoryRegion.psum:
            raise ConstraintError(
                f"dma_compute: {label} {tensor!r} is in PSUM, which DMA cannot access",
                hint="copy through SBUF with nisa.tensor_copy",
            )
        if tensor.size != dst.size:
            raise ConstraintError(
                f"dma_compute: {label} {tensor!r} has {tensor.size} elements, dst {dst!r} has {dst.size}",
                hint="slice all tensors to the same number of elements; nothing broadcasts",
            )
    if reduce_op is not add:
        raise ConstraintError(f"dma_compute: reduce_op is {reduce_op!r}, must be nl.add")
    if scales is not None and (len(scales) != len(sources) or any(scale != 1.0 for scale in scales)):
        raise ConstraintError(
            f"dma_compute: scales is {scales!r}, must be 1.0 for each of the {len(sources)} sources",
            hint="leave scales out, and scale on chip with nisa.tensor_scalar",
        )
    return sources


def _sum(dst: NkiTensor, sources: list[NkiTensor], name: str | None) -> NkiInstruction:
    for position, source in enumerate(sources):
        require_written("dma_compute", f"srcs[{position}]", source)
    total = _float(sources[0].array).reshape(dst.array.shape)
    for source in sources[1:]:
        total = total + _float(source.array).reshape(total.shape)
    write(dst, total)
    return _finish(dst, sources, name, dst.size, dge_mode="none")


def _gather_add(
    dst: NkiTensor, rows: IndirectTensor, other: NkiTensor, mode: oob_mode, name: str | None
) -> NkiInstruction:
    """dst [P, ...] in SBUF += the rows of HBM that the indices choose."""
    if dst.buffer is not MemoryRegion.sbuf or not _same_view(dst, other):
        raise ConstraintError(
            f"dma_compute: gathered rows of {rows!r} are added to {other!r} and stored in {dst!r}; both must "
            "be the same tile in SBUF",
            hint="pass dst itself as the second source, or sum without it by nisa.tensor_tensor",
        )
    table, partitions, indices = _chosen(rows, mode)
    require_written("dma_compute", "dst", dst)
    storage = rows.storage
    if storage.state <= 0 and storage.undefined_in(table)[indices].any():
        require_written("dma_compute", "srcs", rows.base)
    by_row = dst.array.reshape(rows.counts).copy()
    addend = _float(table.array[indices])
    by_row[partitions] = dst.dtype.rounded(_float(by_row[partitions]) + addend)
    write_raw(dst, by_row)
    return _finish(dst, [dst, _moved(rows, table)], name, addend.size, rows.index, "gather")


def _scatter_add(
    dst: IndirectTensor, rows: IndirectTensor, other: NkiTensor, mode: oob_mode, name: str | None
) -> NkiInstruction:
    """The rows of HBM that the indices choose += other [P, ...] in SBUF; no index may repeat."""
    if not _same_rows(dst, rows):
        raise ConstraintError(
            f"dma_compute: the indirect source {rows!r} is not the indirect dst {dst!r}",
            hint="pass the same .ap(..., vector_offset=...) as dst and as one of srcs",
        )
    if other.buffer is not MemoryRegion.sbuf:
        raise ConstraintError(
            f"dma_compute: the addend {other!r} of a scatter is in {other.buffer.name.upper()}, must be in SBUF"
        )
    table, partitions, indices = _chosen(dst, mode)
    _refuse_repeated(dst, partitions, indices)
    require_written("dma_compute", "srcs", other)
    storage = dst.storage
    if storage.state <= 0 and storage.undefined_in(table)[indices].any():
        require_written("dma_compute", "dst", dst.base)
    if not table.array.flags.writeable:
        refuse_write(dst.base)
    addend = _float(other.array).reshape(dst.counts)[partitions]
    table.array[indices] = dst.dtype.rounded(_float(table.array[indices]) + addend)
    storage.mark_selected(table, indices)
    shown = _moved(dst, table)
    return _finish(shown, [shown, other], name, addend.size, dst.index, "scatter")


def _chosen(rows: IndirectTensor, mode: oob_mode) -> tuple[NkiTensor, np.ndarray, np.ndarray]:
    """(all rows [R, ...], partitions with a valid index, their indices)."""
    table = rows.rows_view()
    indices = rows.row_indices()
    valid = (indices >= 0) & (indices < table.shape[0])
    if mode is not OobMode.skip and not valid.all():
        partition = int(np.argmin(valid))
        raise OutOfBoundsError(
            f"dma_compute: index {indices[partition]} of partition {partition} leaves the {table.shape[0]} "
            f"rows of {rows.base!r}",
            hint="bound the indices, or use oob_mode=nisa.oob_mode.skip to leave such rows untouched",
        )
    partitions = np.flatnonzero(valid)
    run = current_run()
    if run.logical_core is not None:
        run.logical_core.note_rows(run, table, indices[partitions])
    return table, partitions, indices[partitions]


def _refuse_repeated(dst: IndirectTensor, partitions: np.ndarray, indices: np.ndarray) -> None:
    values, counts = np.unique(indices, return_counts=True)
    if len(values) == len(indices):
        return
    row = int(values[counts > 1][0])
    first, second = (int(p) for p in partitions[indices == row][:2])
    raise ConstraintError(
        f"dma_compute: the scatter into {dst!r} adds to row {row} from partitions {first} and {second}; "
        "repeated indices race and lose additions",
        hint="give each partition its own row: add up duplicates on chip first, or scatter them one by one",
    )


def _same_view(one: NkiTensor, other: NkiTensor) -> bool:
    return (
        one.storage is other.storage
        and one.dtype is other.dtype
        and one.offset_bytes == other.offset_bytes
        and one.array.shape == other.array.shape
        and one.array.strides == other.array.strides
    )


def _same_rows(one: IndirectTensor, other: IndirectTensor) -> bool:
    """Whether two indirect views address the same rows: same pattern, same indices."""
    return (
        one.storage is other.storage
        and (one.begin, one.steps, one.counts, one.row_elements)
        == (other.begin, other.steps, other.counts, other.row_elements)
        and np.array_equal(one.row_indices(), other.row_indices())
    )


def _moved(rows: IndirectTensor, table: NkiTensor) -> NkiTensor:
    """What the trace shows of gathered or scattered rows: as many rows as there are indices."""
    array = table.array
    few = array.shape[0] < rows.counts[0]
    return table._view(np.broadcast_to(array[:1], rows.counts) if few else array[: rows.counts[0]])


def _float(array: np.ndarray) -> np.ndarray:
    return array if array.dtype == FLOAT32 else array.astype(FLOAT32)


def _finish(
    dst: NkiTensor,
    sources: list[NkiTensor],
    name: str | None,
    moved: int,
    index: NkiTensor | None = None,
    indirect: str = "",
    dge_mode: str = "swdge",
) -> NkiInstruction:
    """Count the traffic of `moved` elements for each tensor, and record the transfer."""
    run = current_run()
    for source in sources:
        touch(source.storage)
        if not source.storage.on_chip:
            run.hbm_read_bytes += moved * source.dtype.itemsize
    if not dst.storage.on_chip:
        run.hbm_write_bytes += moved * dst.dtype.itemsize
    touch(dst.storage, written=True)
    operands = [dst, *sources]
    facts: dict[str, Any] = {"dge_mode": dge_mode, "reduce_op": "add"}
    if index is not None:
        touch(index.storage)
        operands.append(index)
        facts["indirect"] = indirect
    moved_bytes = moved * dst.dtype.itemsize
    return record("dma_compute", engine.dma, operands, name, dma_bytes=moved_bytes, **facts)
