"""DMA: copies between HBM and SBUF with casts, gathers and scatters, and transposes.

DMA never touches PSUM, has no start-partition rule, and copies in flattened element order.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import numpy as np

from neuron_port.simulator.borrowing import borrow
from neuron_port.simulator.checks import (
    check_engine,
    check_generation,
    check_priority,
    check_tensors,
    require_written,
    touch,
)
from neuron_port.simulator.context import context, current_run, record
from neuron_port.simulator.dtypes import FLOAT32
from neuron_port.simulator.errors import ConstraintError, OutOfBoundsError
from neuron_port.simulator.indirect import IndirectTensor
from neuron_port.simulator.memory import BY_OTHERS, UNWRITTEN, MemoryRegion
from neuron_port.simulator.tensor import NkiTensor
from neuron_port.simulator.trace import NkiInstruction, engine
from neuron_port.simulator.undefined import note, scattered
from neuron_port.simulator.values import refuse_write, rounded, store_computed

Engine = engine
PSUM = MemoryRegion.psum


class dge_mode(Enum):  # noqa: N801 - AWS's name
    """Who makes the DMA descriptors."""

    unknown = 0
    swdge = 1
    hwdge = 2
    none = 3


class oob_mode(Enum):  # noqa: N801 - AWS's name
    """What an index outside the tensor does at run time."""

    error = 0
    skip = 1


def dma_copy(
    dst: NkiTensor,
    src: NkiTensor,
    priority: int | None = None,
    oob_mode: oob_mode = oob_mode.error,
    dge_mode: dge_mode = dge_mode.unknown,
    engine: engine = engine.unknown,
    name: str | None = None,
) -> NkiInstruction:
    """dst = src between HBM and SBUF, element by element in flattened order, cast through float32.

    Either side may have a run-time address: .ap(scalar_offset=...), .select(tensor), or rows of HBM by
    .ap(vector_offset=...); oob_mode.skip leaves the destination untouched where an index is outside.
    """
    run = context.run or current_run()
    _check_sides("dma_copy", dst, src)
    if dst.size != src.size or not dst.size:
        raise ConstraintError(
            f"dma_copy: dst {dst!r} has {dst.size} elements, src {src!r} has {src.size}",
            hint="slice both sides to the same number of elements; nothing broadcasts",
        )
    if priority is not None or dge_mode is not DgeMode.unknown or engine is not Engine.unknown:
        dge_mode = _mode_of("dma_copy", dge_mode)
        _check_options(dst, src, priority, dge_mode, engine)
    if dst.__class__ is IndirectTensor or src.__class__ is IndirectTensor:
        return _copy_indirect(dst, src, oob_mode, name, dge_mode, engine)
    storage = src.storage
    if storage.state <= 0:
        require_written("dma_copy", "src", src)
    if not borrow(dst, src):
        _store(dst, src.array, src)
    touch(storage)
    touch(dst.storage, written=True)
    if dge_mode is DgeMode.unknown:
        return _finish(run, dst, src, name)
    return _finish(run, dst, src, name, dge_mode=dge_mode.name, trigger=engine.name)


DgeMode = dge_mode
OobMode = oob_mode


def _store(dst: NkiTensor, values: np.ndarray, src: NkiTensor) -> None:
    """Cast `values` of src's dtype and store them in dst."""
    array = dst.array
    if dst.dtype is not src.dtype:
        if dst.dtype.is_packed or src.dtype.is_packed:
            raise ConstraintError(
                f"dma_copy: dst {dst!r} and src {src!r} differ in dtype, and packed elements cannot be converted",
                hint="reinterpret one side: .view(dtype)",
            )
        values = rounded(dst, values if values.dtype == FLOAT32 else values.astype(FLOAT32))
    if values.shape != array.shape:
        values = values.reshape(array.shape)
    try:
        array[...] = values
    except ValueError:
        store_computed(dst, values, BY_OTHERS)
        return
    storage = dst.storage
    if storage.state != BY_OTHERS:
        storage.mark_written(dst, BY_OTHERS)


def _finish(
    run: Any,
    dst: NkiTensor,
    src: NkiTensor,
    name: str | None,
    opcode: str = "dma_copy",
    indices: tuple[NkiTensor, ...] = (),
    **attributes: Any,
) -> NkiInstruction:
    """Count the traffic and record the transfer."""
    moved = dst.readable.size
    if not src.storage.on_chip:
        run.hbm_read_bytes += moved * src.dtype.itemsize
    if not dst.storage.on_chip:
        run.hbm_write_bytes += moved * dst.dtype.itemsize
    moved_bytes = moved * dst.dtype.itemsize
    return record(opcode, Engine.dma, (dst, src, *indices), name, dma_bytes=moved_bytes, **attributes)


def _check_sides(opcode: str, dst: Any, src: Any) -> None:
    try:
        if dst.storage.buffer is PSUM or src.storage.buffer is PSUM:
            name, tile = ("dst", dst) if dst.storage.buffer is PSUM else ("src", src)
            raise ConstraintError(
                f"{opcode}: {name} {tile!r} is in PSUM, which DMA cannot access",
                hint="copy through SBUF with nisa.tensor_copy",
            )
    except AttributeError:
        check_tensors(opcode, ("dst", "src"), dst, src)
        raise


def _mode_of(opcode: str, mode: Any) -> dge_mode:
    """The descriptor mode; AWS's kernels of NKI 0.3 also give its number, which the documents no longer allow."""
    if isinstance(mode, DgeMode):
        return mode
    if isinstance(mode, int) and mode in {one.value for one in DgeMode}:
        current_run().warn(
            f"{opcode}: dge_mode is the number {mode}; write nisa.dge_mode.{DgeMode(mode).name}"
        )
        return DgeMode(mode)
    raise ConstraintError(
        f"{opcode}: dge_mode is {mode!r}", hint="use nisa.dge_mode.unknown, swdge, hwdge or none"
    )


def _check_options(dst: NkiTensor, src: NkiTensor, priority: Any, mode: Any, chosen: engine) -> None:
    if priority is not None:
        check_priority("dma_copy", priority)
    if chosen is not Engine.unknown and mode is not DgeMode.hwdge:
        raise ConstraintError(f"dma_copy: engine {chosen} is given without dge_mode=nisa.dge_mode.hwdge")
    check_engine("dma_copy", chosen, (Engine.sync, Engine.scalar))
    if mode is DgeMode.hwdge:
        check_generation("dma_copy", 3, "hwdge")
        if dst.dtype is not src.dtype:
            raise ConstraintError(
                f"dma_copy: hwdge moves raw bytes, but dst {dst!r} and src {src!r} differ in dtype",
                hint="reinterpret with .view(dtype), or leave dge_mode out to cast",
            )


def _copy_indirect(
    dst: NkiTensor, src: NkiTensor, mode: oob_mode, name: str | None, dge: dge_mode, trigger: engine
) -> NkiInstruction:
    """Scalar offsets resolve to plain views; a vector offset gathers (src) or scatters (dst) rows."""
    run = current_run()
    for side in (dst, src):
        if (
            isinstance(side, IndirectTensor)
            and not side.vector
            and mode is OobMode.skip
            and not side.in_bounds()
        ):
            base = side.base
            shown = (base if side is dst else dst.resolved(), base)
            return record("dma_copy", Engine.dma, shown, name, indirect="skipped")
    gathers = isinstance(src, IndirectTensor) and src.vector
    scatters = isinstance(dst, IndirectTensor) and dst.vector
    if gathers and scatters:
        raise ConstraintError(f"dma_copy: both dst {dst!r} and src {src!r} have a vector_offset")
    if gathers:
        return _gather(run, dst.resolved(), src, mode, name)  # type: ignore[arg-type]
    if scatters:
        return _scatter(run, dst, src.resolved(), mode, name)  # type: ignore[arg-type]
    indices = tuple(
        side.index
        for side in (dst, src)
        if isinstance(side, IndirectTensor) and isinstance(side.index, NkiTensor)
    )
    dst, src = dst.resolved(), src.resolved()
    require_written("dma_copy", "src", src)
    _store(dst, src.array, src)
    touch(src.storage)
    touch(dst.storage, written=True)
    facts = {"dge_mode": dge.name, "trigger": trigger.name, "indirect": "scalar"}
    return _finish(run, dst, src, name, indices=indices, **facts)


def _valid_rows(side: IndirectTensor, rows: NkiTensor, mode: oob_mode) -> tuple[np.ndarray, np.ndarray]:
    """(partitions with a valid index, their indices); refuses invalid ones unless mode is skip."""
    indices = side.row_indices()
    valid = (indices >= 0) & (indices < rows.shape[0])
    if mode is not OobMode.skip and not valid.all():
        partition = int(np.argmin(valid))
        raise OutOfBoundsError(
            f"dma_copy: index {indices[partition]} of partition {partition} leaves the {rows.shape[0]} rows "
            f"of {side.base!r}",
            hint="bound the indices, or use oob_mode=nisa.oob_mode.skip to leave such rows untouched",
        )
    partitions = np.flatnonzero(valid)
    return partitions, indices[partitions]


def _gather(
    run: Any, dst: NkiTensor, src: IndirectTensor, mode: oob_mode, name: str | None
) -> NkiInstruction:
    rows = src.rows_view()
    partitions, indices = _valid_rows(src, rows, mode)
    _require_rows("dma_copy", src, rows, partitions, indices)
    touch(src.index.storage)
    values = rows.array[indices]
    if len(partitions) == src.counts[0]:
        _store(dst, values, src)
    else:
        by_row = dst._view(dst.array.reshape(src.counts, copy=False))
        cast = values if dst.dtype is src.dtype else dst.dtype.rounded(values.astype(FLOAT32))
        by_row.array[partitions] = cast
        dst.storage.mark_selected(by_row, partitions)
    touch(dst.storage, written=True)
    if run.logical_core is not None:
        run.logical_core.note_rows(run, rows, indices)
    return _finish(run, dst, _row_operand(src, rows), name, indices=(src.index,), indirect="gather")


def _require_rows(
    opcode: str, src: IndirectTensor, rows: NkiTensor, partitions: np.ndarray, indices: np.ndarray
) -> None:
    """Refuse or follow unwritten elements of the rows that a gather reads."""
    storage = src.storage
    if storage.state == UNWRITTEN:
        require_written(opcode, "src", src.base)
    if storage.state <= 0 and (missing := storage.undefined_in(rows)[indices]).any():
        undefined = np.zeros(src.counts, dtype=bool)
        undefined[partitions] = missing
        note(
            src.base,
            f"{opcode}: rows of src {src.base!r} are gathered of which some were never written",
            undefined,
        )


def _scatter(
    run: Any, dst: IndirectTensor, src: NkiTensor, mode: oob_mode, name: str | None
) -> NkiInstruction:
    rows = dst.rows_view()
    if not rows.array.flags.writeable:
        refuse_write(dst.base)
    partitions, indices = _valid_rows(dst, rows, mode)
    if len(np.unique(indices)) != len(indices):
        run.warn(
            f"dma_copy: the scatter into {dst!r} writes a row twice; the order on the device is undefined"
        )
    require_written("dma_copy", "src", src)
    values = src.array.reshape(dst.counts)[partitions]
    if dst.dtype is not src.dtype:
        values = dst.dtype.rounded(values.astype(FLOAT32))
    rows.array[indices] = values
    dst.storage.mark_selected(rows, indices)
    if run.undefined_reads:
        scattered(run, rows, partitions, indices)
    touch(dst.index.storage)
    touch(src.storage)
    touch(dst.storage, written=True)
    if run.logical_core is not None:
        run.logical_core.note_rows(run, rows, indices)
    return _finish(run, _row_operand(dst, rows), src, name, indices=(dst.index,), indirect="scatter")


def _row_operand(side: IndirectTensor, rows: NkiTensor) -> NkiTensor:
    """What the trace shows of a gather or scatter: as many rows as are moved."""
    array = rows.array
    shown = array[:1] if array.shape[0] < side.counts[0] else array[: side.counts[0]]
    return rows._view(np.broadcast_to(shown, side.counts) if shown.shape[0] == 1 else shown)


TRANSPOSES = {2: (1, 0), 3: (2, 1, 0), 4: (3, 1, 2, 0)}


def dma_transpose(
    dst: NkiTensor,
    src: NkiTensor,
    axes: tuple[int, ...] | None = None,
    priority: int | None = None,
    dge_mode: dge_mode = dge_mode.unknown,
    oob_mode: oob_mode = oob_mode.error,
    name: str | None = None,
) -> NkiInstruction:
    """dst = src with the first and last dimensions exchanged: axes (1, 0), (2, 1, 0) or (3, 1, 2, 0).

    dst in SBUF, of exactly the permuted shape and of src's dtype; elements of 2 bytes, or of 4 without hwdge and
    indices; src.shape[-1] <= 128. src may be rows of HBM by .ap(vector_offset=indices [16 to 128, N]); the
    indices are read down their columns. From NeuronCore-v3 on.
    """
    run = current_run()
    check_generation("dma_transpose", 3)
    mode = _mode_of("dma_transpose", dge_mode)
    if priority is not None:
        check_priority("dma_transpose", priority)
    _check_sides("dma_transpose", dst, src)
    if isinstance(src, IndirectTensor) and src.vector:
        return _gather_transpose(run, dst, src, axes, mode, name)
    indices = tuple(
        side.index
        for side in (dst, src)
        if isinstance(side, IndirectTensor) and isinstance(side.index, NkiTensor)
    )
    if isinstance(src, IndirectTensor) or isinstance(dst, IndirectTensor):
        src, dst = src.resolved(), dst.resolved()
    permutation = _check_transpose(dst, src, src.array.shape, axes)
    if mode is DgeMode.hwdge:
        _check_hwdge_transpose(src)
    require_written("dma_transpose", "src", src)
    _store(dst, src.array.transpose(permutation), src)
    touch(src.storage)
    touch(dst.storage, written=True)
    return _finish(run, dst, src, name, "dma_transpose", indices, dge_mode=mode.name)


def _check_transpose(
    dst: NkiTensor, src: NkiTensor, shape: tuple[int, ...], axes: tuple[int, ...] | None
) -> tuple[int, ...]:
    """The permutation of a transpose of `shape`, after the rules that all its forms share."""
    permutation = TRANSPOSES.get(len(shape))
    if permutation is None or (axes is not None and tuple(axes) != permutation):
        raise ConstraintError(
            f"dma_transpose: axes {axes} of src {src!r} must be one of {list(TRANSPOSES.values())}"
        )
    expected = tuple(shape[axis] for axis in permutation)
    if dst.array.shape != expected:
        raise ConstraintError(f"dma_transpose: dst {dst!r} must have shape {expected}, src {src!r} permuted")
    if dst.buffer is not MemoryRegion.sbuf:
        raise ConstraintError(f"dma_transpose: dst {dst!r} is in {dst.buffer.name}, must be in SBUF")
    # NKI 0.6 states 2 bytes for hwdge and indices only; the architecture guide says 2 or 4.
    if dst.dtype is not src.dtype or src.dtype.itemsize not in (2, 4):
        raise ConstraintError(
            f"dma_transpose: dst {dst!r} and src {src!r} must share one dtype of 2 or 4 bytes",
            hint="transpose other dtypes with nisa.nc_transpose",
        )
    if shape[-1] > 128:
        raise ConstraintError(f"dma_transpose: the last dimension of src {src!r} exceeds 128")
    return permutation


def _gather_transpose(
    run: Any, dst: NkiTensor, src: IndirectTensor, axes: Any, mode: dge_mode, name: str | None
) -> NkiInstruction:
    """dst = rows of src, chosen by indices that are read down their columns, transposed (rules of NKI 0.6)."""
    dst = dst.resolved() if isinstance(dst, IndirectTensor) else dst
    permutation = _check_transpose(dst, src, tuple(src.counts), axes)
    index_rows = src.index.array.shape[0]
    broken = [
        rule
        for holds, rule in (
            (mode in (DgeMode.unknown, DgeMode.swdge), f"dge_mode {mode.name} is not swdge"),
            (src.dtype.itemsize == 2, "its elements are not of 2 bytes"),
            (src.counts[0] % 16 == 0, f"it gathers {src.counts[0]} rows, no multiple of 16"),
            (16 <= index_rows <= 128 and index_rows % 16 == 0, f"indices are on {index_rows} partitions"),
            (index_rows in (128, src.index.size), "several columns of indices need 128 partitions"),
            (len(src.counts) < 4 or 1 in src.counts[1:3], "both middle dimensions are larger than 1"),
        )
        if not holds
    ]
    if broken:
        raise ConstraintError(
            f"dma_transpose: indirect src {src!r}: {', '.join(broken)}",
            hint="16 to 128 uint32 indices per column in 16s, a multiple of 16 rows, 2-byte elements, swdge",
        )
    rows, indices = src.rows_view(), src.column_indices()
    valid = (indices >= 0) & (indices < rows.shape[0])
    if not valid.all():
        raise OutOfBoundsError(
            f"dma_transpose: index {int(indices[np.argmin(valid)])} leaves the {rows.shape[0]} rows of {src.base!r}",
            hint="bound the indices",
        )
    _require_rows("dma_transpose", src, rows, np.arange(src.counts[0]), indices)
    _store(dst, rows.array[indices].transpose(permutation), src)
    touch(src.storage)
    touch(src.index.storage)
    touch(dst.storage, written=True)
    shown = _row_operand(src, rows)
    return _finish(run, dst, shown, name, "dma_transpose", (src.index,), dge_mode="swdge", indirect="gather")


def _check_hwdge_transpose(src: NkiTensor) -> None:
    """The descriptor hardware transposes in blocks of 16 rows (nki.isa.dma_transpose, NKI 0.6)."""
    shape = src.array.shape
    if src.dtype.itemsize != 2:
        raise ConstraintError(
            f"dma_transpose: hwdge transposes 2-byte elements, src {src!r} is {src.dtype}",
            hint="leave dge_mode out",
        )
    fits = (
        shape[0] == 16 if len(shape) == 2 else shape[0] in (1, 2, 4, 8, 16) and shape[0] * shape[-2] % 16 == 0
    )
    if not fits:
        raise ConstraintError(
            f"dma_transpose: hwdge cannot transpose src {src!r}",
            hint="2-D: 16 rows; 3-D and 4-D: 1, 2, 4, 8 or 16 first, times shape[-2] in 16s",
        )
