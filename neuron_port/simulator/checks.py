"""Rules that many instructions share: on-chip tiles, equal sizes, start partitions, nothing unwritten read.

The passing path is integer comparisons only; messages are made when a rule is broken.
"""

from __future__ import annotations

from typing import Any, NoReturn

from neuron_port.simulator import undefined
from neuron_port.simulator.context import context, current_run
from neuron_port.simulator.dtypes import DType
from neuron_port.simulator.errors import ConstraintError, UnwrittenReadError
from neuron_port.simulator.memory import UNWRITTEN, MemoryRegion, Storage
from neuron_port.simulator.tensor import NkiTensor
from neuron_port.simulator.trace import engine

PSUM = MemoryRegion.psum
SBUF = MemoryRegion.sbuf


def check_tiles(opcode: str, names: tuple[str, ...], dst: Any, *sources: Any) -> None:
    """All operands are on-chip tiles of dst's partitions and elements per partition; sources are written."""
    run = context.run
    if run is None:
        current_run()
        return
    now = len(run.instructions)
    try:
        storage = dst.storage
        array = dst.array
        size = array.size
        partitions = array.shape[0]
        if not storage.on_chip:
            _refuse_memory(opcode, names[0], dst, "SBUF or PSUM")
        if dst.start:
            check_start_partition(opcode, names[0], dst)
        allocation = storage.allocation
        if allocation.first < 0:
            allocation.first = now
        allocation.last = now
        for position, source in enumerate(sources, 1):
            storage = source.storage
            array = source.array
            if array.size != size or array.shape[0] != partitions:
                _refuse_sizes(opcode, names, dst, source, position)
            if not storage.on_chip:
                _refuse_memory(opcode, names[position], source, "SBUF or PSUM")
            if source.start:
                check_start_partition(opcode, names[position], source)
            if storage.state <= 0:
                require_written(opcode, names[position], source)
            storage.allocation.last = now
    except AttributeError:
        check_tensors(opcode, names, dst, *sources)
        raise


def check_source(opcode: str, name: str, source: NkiTensor) -> None:
    """One more on-chip tile that is read, of any shape: start partition, written, live until now."""
    if not isinstance(source, NkiTensor):
        check_tensors(opcode, (name,), source)
    storage = source.storage
    if not storage.on_chip:
        _refuse_memory(opcode, name, source, "SBUF or PSUM")
    if source.start:
        check_start_partition(opcode, name, source)
    if storage.state <= 0:
        require_written(opcode, name, source)
    touch(storage)


def check_index(opcode: str, index: NkiTensor) -> None:
    """A tile from which an address is read: any partition, since no engine's access pattern is involved."""
    if not index.storage.on_chip:
        _refuse_memory(opcode, "index", index, "SBUF or PSUM")
    require_written(opcode, "index", index)
    touch(index.storage)


def check_destination(opcode: str, name: str, dst: NkiTensor) -> None:
    """One more on-chip tile that is written, of any shape."""
    if not isinstance(dst, NkiTensor):
        check_tensors(opcode, (name,), dst)
    if not dst.storage.on_chip:
        _refuse_memory(opcode, name, dst, "SBUF or PSUM")
    if dst.start:
        check_start_partition(opcode, name, dst)
    touch(dst.storage, written=True)


def touch(storage: Storage, *, written: bool = False) -> None:
    """Extend the live range of a tensor to the instruction that is executing."""
    now = len(context.run.instructions)  # type: ignore[union-attr]
    allocation = storage.allocation
    allocation.last = now
    if written and allocation.first < 0:
        allocation.first = now


def check_start_partition(opcode: str, name: str, tile: NkiTensor) -> None:
    """Engines start at partition 0; up to 64 partitions also at 64; up to 32 at any multiple of 32."""
    start, partitions = tile.start, tile.array.shape[0]
    step = 32 if partitions <= 32 else 64 if partitions <= 64 else 128
    if start % step or start + partitions > 128:
        raise ConstraintError(
            f"{opcode}: {name} {tile!r} starts at partition {start}; {partitions} partitions may start only "
            "at "
            f"{', '.join(str(s) for s in range(0, 128, step))}",
            hint="put the data on an allowed partition, or move it with nisa.dma_copy, which starts anywhere",
        )


def require_written(opcode: str, name: str, source: NkiTensor, *, deciding: bool = False) -> None:
    """Refuse to read a tensor that nothing has written; follow what is computed from unwritten elements.

    A tile of which a part was written may be read whole: kernels transpose and multiply padded tiles and use only
    the rows that mean something. What such a read yields is followed element by element (see undefined.py), and
    refused where it decides something: in an output, an address, a register, a scale (`deciding`).
    """
    storage = source.storage
    if source.is_written():
        return
    missing = "all" if storage.state == UNWRITTEN else "some"
    message = (
        f"{opcode}: {name} {source!r} is read, but {missing} of its elements were never written "
        f"(allocated at {storage.allocation.location})"
    )
    if storage.state == UNWRITTEN or deciding or undefined.DECIDING & {opcode, (opcode, name)}:
        refuse_undefined(message, None, storage)
    undefined.note(source, message)


def refuse_undefined(message: str, location: str | None, storage: Storage) -> NoReturn:
    """Raise UnwrittenReadError; with the first read behind it, where the tensor was computed from such a read."""
    if storage.origin is not None:
        first, location = storage.origin
        message = f"{first}; {message}" if first != message else first
    raise UnwrittenReadError(
        message,
        location=location,
        hint="initialise the tile with nisa.memset, or read only the part that was written",
    )


def check_memory(opcode: str, name: str, tile: NkiTensor, memory: MemoryRegion, why: str = "") -> None:
    """The operand is in exactly this memory."""
    if tile.storage.buffer is not memory:
        _refuse_memory(opcode, name, tile, memory.name.upper(), why)


def check_no_psum(opcode: str, names: tuple[str, ...], *tiles: NkiTensor) -> None:
    """GpSimdE has no path to PSUM."""
    for name, tile in zip(names, tiles, strict=False):
        if tile.storage.buffer is PSUM:
            raise ConstraintError(
                f"{opcode}: {name} {tile!r} is in PSUM, which GpSimdE cannot access",
                hint="copy it to SBUF with nisa.tensor_copy, or choose an operator or engine of VectorE",
            )


def check_not_both_psum(opcode: str, names: tuple[str, str], first: NkiTensor, second: NkiTensor) -> None:
    """VectorE reads at most one input from PSUM."""
    if first.storage.buffer is PSUM and second.storage.buffer is PSUM:
        raise ConstraintError(
            f"{opcode}: {names[0]} {first!r} and {names[1]} {second!r} are both in PSUM",
            hint="copy one of them to SBUF with nisa.tensor_copy",
        )


def check_dtype(opcode: str, name: str, tile: NkiTensor, allowed: tuple[DType, ...]) -> None:
    """The operand has one of these dtypes."""
    if tile.dtype not in allowed:
        raise ConstraintError(
            f"{opcode}: {name} {tile!r} has dtype {tile.dtype}, must be {' or '.join(allowed)}",
            hint="convert with nisa.tensor_copy into a tile of that dtype",
        )


def check_engine(opcode: str, chosen: engine, allowed: tuple[engine, ...]) -> None:
    """The engine asked for can run the instruction."""
    if chosen is not engine.unknown and chosen not in allowed:
        raise ConstraintError(
            f"{opcode}: engine {getattr(chosen, 'name', chosen)} cannot run it",
            hint=f"use one of {', '.join(e.name for e in allowed)}, or leave engine out",
        )


def check_generation(opcode: str, least: int, what: str = "") -> None:
    """The instruction or option exists from NeuronCore-v`least` on."""
    target = current_run().target
    if target.generation < least:
        raise ConstraintError(
            f"{opcode}: {what or 'the instruction'} needs NeuronCore-v{least} or newer, "
            f"the target is {target.name}",
            hint=f"choose a target of generation {least}, or another instruction",
        )


def check_priority(opcode: str, priority: Any) -> None:
    """DMA has classes of service 0 to 3, lower first, from NeuronCore-v4 on (dma_copy documentation)."""
    check_generation(opcode, 4, "priority")
    classes = current_run().target.dma_priorities
    if not isinstance(priority, int) or isinstance(priority, bool) or not 0 <= priority < classes:
        raise ConstraintError(
            f"{opcode}: priority is {priority!r}, must be an integer from 0 to {classes - 1}",
            hint="0 is the highest priority",
        )


def check_vector_operand(opcode: str, name: str, operand: NkiTensor, partitions: int) -> None:
    """The operand is a written [P, 1] tile on chip."""
    array = operand.array
    if array.shape[0] != partitions or array.size != partitions:
        raise ConstraintError(
            f"{opcode}: {name} {operand!r} must have shape ({partitions}, 1): one value for each partition",
            hint="for elementwise operands of full size use nisa.tensor_tensor",
        )
    check_source(opcode, name, operand)


def _refuse_memory(opcode: str, name: str, tile: NkiTensor, required: str, why: str = "") -> NoReturn:
    raise ConstraintError(
        f"{opcode}: {name} {tile!r} is in {tile.buffer.name.upper()}, must be in {required}{why}",
        hint="move HBM data with nisa.dma_copy; move between SBUF and PSUM with nisa.tensor_copy",
    )


def _refuse_sizes(
    opcode: str, names: tuple[str, ...], dst: NkiTensor, source: NkiTensor, position: int
) -> NoReturn:
    raise ConstraintError(
        f"{opcode}: {names[position]} {source!r} has {source.array.shape[0]} partitions of "
        f"{source.size // source.array.shape[0]} elements, but {names[0]} {dst!r} has "
        f"{dst.array.shape[0]} of {dst.size // dst.array.shape[0]}",
        hint="instructions do not broadcast: use .broadcast(dim, size) on a size-1 free dimension, a [P, 1] "
        "operand of nisa.tensor_scalar, or slice both sides alike",
    )


def check_tensors(opcode: str, names: tuple[str, ...], *operands: Any) -> None:
    """All operands are tensors."""
    for name, operand in zip(names, operands, strict=False):
        if not isinstance(operand, NkiTensor):
            raise ConstraintError(
                f"{opcode}: {name} is {operand!r}, must be a tensor",
                hint="dst comes first, then the inputs",
            )
