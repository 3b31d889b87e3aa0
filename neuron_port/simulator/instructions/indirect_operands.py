"""Instructions that take tensor indirection: which operands, where tiles and offsets lie, what the offsets are.

The offsets lie in the partitions like a snake: offset i of a group of G partitions is index[i % G, i // G], with G = 32
for TensorE and 16 for the other engines (NkiTensor.indirect). Every group reads the offsets in its own partitions; the
documentation writes the formula for the first group only, so different lists in different groups are warned of.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np

from neuron_port.simulator.checks import touch
from neuron_port.simulator.context import current_run
from neuron_port.simulator.dtypes import int32, uint32
from neuron_port.simulator.errors import ConstraintError, OutOfBoundsError, UnwrittenReadError
from neuron_port.simulator.indirection import FreeIndirection, GatheredTensor, NeedsEngineError
from neuron_port.simulator.memory import MemoryRegion
from neuron_port.simulator.tensor import NkiTensor
from neuron_port.simulator.trace import NkiInstruction, engine

TENSOR_GROUP, OTHER_GROUP = 32, 16  # partitions that share a list of offsets
QUADRANT = 32

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def takes_indirection(
    *names: str, group: int = OTHER_GROUP
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Let the operands `names` of an instruction be indirect; the first is its destination.

    The partition rules are those that every such instruction's documentation repeats.
    """

    def decorate(instruction: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        code = instruction.__code__
        positions = code.co_varnames[: code.co_argcount]
        opcode = instruction.__name__

        @functools.wraps(instruction)
        def run(*arguments: Parameters.args, **keywords: Parameters.kwargs) -> Result:
            try:
                return instruction(*arguments, **keywords)
            except NeedsEngineError:  # raised by the first look at an indirect operand, before any effect
                operands = {**dict(zip(positions, arguments, strict=False)), **keywords}
            return _run_indirect(instruction, opcode, names, group, operands)

        return run

    return decorate


def _run_indirect(
    instruction: Callable[..., Any], opcode: str, names: tuple[str, ...], group: int, operands: dict[str, Any]
) -> Any:
    """Check the operands, gather them, run the instruction, and add the indices to its record."""
    taken: dict[str, FreeIndirection] = {}
    for name, operand in operands.items():
        if isinstance(operand, FreeIndirection):
            if name not in names:
                raise ConstraintError(
                    f"{opcode}: {name} {operand!r} does not take tensor indirection; {' and '.join(names)} do",
                    hint="gather it into a tile first: nisa.tensor_copy(dst=tile, src=x.indirect(index))",
                )
            taken[name] = operand
    _check_partitions(opcode, names, taken, operands)
    if opcode == "tensor_scalar" and all(operands[name].dtype in (int32, uint32) for name in names):
        raise ConstraintError(
            "tensor_scalar: 32-bit integers do not take tensor indirection: the hardware computes addresses with them",
            hint="gather with nisa.tensor_copy first",
        )
    if group == TENSOR_GROUP:
        _check_tensor_engine(opcode, taken, operands)
    gathered = {
        name: GatheredTensor(operand.base, _columns(opcode, name, operand, group))
        for name, operand in taken.items()
    }
    target = gathered.get(names[0])
    if target is not None and any(len(np.unique(row)) < row.size for row in target.columns[::group]):
        current_run().warn(
            f"{opcode}: the scatter into {taken[names[0]]!r} writes an element twice; the order on the device is "
            "undefined"
        )
    result = instruction(**{**operands, **gathered})
    if isinstance(result, NkiInstruction):
        if result.engine is engine.scalar and target is not None and target.buffer is MemoryRegion.psum:
            raise ConstraintError(
                f"{opcode}: ScalarE cannot scatter into PSUM, where {names[0]} {taken[names[0]]!r} is",
                hint="scatter into SBUF, or choose VectorE",
            )
        if opcode == "tensor_copy" and result.engine is engine.gpsimd:
            raise ConstraintError(
                "tensor_copy: GpSimdE does not take tensor indirection", hint="use engine vector or scalar"
            )
        result.recorded.extend(operand.index.recorded() for operand in taken.values())
        result.attributes = {**result.attributes, "tensor_indirection": tuple(taken)}
    return result


def _check_partitions(
    opcode: str, names: tuple[str, ...], taken: dict[str, FreeIndirection], operands: dict[str, Any]
) -> None:
    """Where tiles and offsets start: offsets in the partitions of the tile that they address."""
    for name, operand in taken.items():
        start = operand.index.start
        if start % QUADRANT:
            raise ConstraintError(
                f"{opcode}: the index {operand.index!r} of {name} starts at partition {start}, must start on a "
                "multiple of 32"
            )
        if name != names[0] and operand.start != start:
            raise ConstraintError(
                f"{opcode}: {name} {operand!r} starts at partition {operand.start} and its index at {start}; both "
                "must start at the same"
            )
    first = operands.get(names[1]) if len(names) > 1 else None  # what is read: data, or stationary
    if names[0] not in taken or not isinstance(first, NkiTensor):
        return
    if isinstance(first, FreeIndirection) or first.buffer is MemoryRegion.sbuf:
        place = first.index.start if isinstance(first, FreeIndirection) else first.start
        start = taken[names[0]].index.start
        if start != place:
            raise ConstraintError(
                f"{opcode}: the index {taken[names[0]].index!r} of {names[0]} starts at partition {start}, must "
                f"start where {names[1]} {first!r} does: at {place}"
            )


def _check_tensor_engine(opcode: str, taken: dict[str, FreeIndirection], operands: dict[str, Any]) -> None:
    """What TensorE does not combine with indirection (nc_matmul and nc_matmul_mx documentation)."""
    position = tuple(operands.get("tile_position") or ())
    if position and position != (0, 0):
        raise ConstraintError(
            f"{opcode}: tensor indirection does not go with tile_position {position}", hint="use (0, 0)"
        )
    if operands.get("is_transpose") and "moving" in taken:
        raise ConstraintError(f"{opcode}: moving cannot be indirect with is_transpose=True")
    if opcode == "nc_matmul":
        for name, operand in taken.items():
            if not operand.dtype.is_float or (operand.dtype.itemsize > 2 and name != "dst"):
                raise ConstraintError(
                    f"{opcode}: {name} {operand!r} has dtype {operand.dtype}; indirect operands have 16 or 8 bits",
                    hint="convert with nisa.tensor_copy to bfloat16",
                )
        return
    for name in ("stationary", "moving"):
        pair = (operands.get(name), operands.get(f"{name}_scale"))
        indices = [side.index if isinstance(side, FreeIndirection) else None for side in pair]
        if indices[0] is not indices[1]:
            raise ConstraintError(
                f"{opcode}: {name} {pair[0]!r} and {name}_scale {pair[1]!r} are one matrix: both indirect with the "
                "same index, or neither"
            )


def _columns(opcode: str, name: str, operand: FreeIndirection, group: int) -> np.ndarray:
    """[P, count] offsets, read from the index tile now."""
    index, count = operand.index, operand.count
    partitions, per_row = index.shape
    most = group * per_row if partitions % group == 0 else min(partitions, group)
    if count > most:
        raise ConstraintError(
            f"{opcode}: {name} {operand!r} uses {count} offsets, but each group of {group} partitions of index "
            f"{index!r} holds {most}",
            hint="pass num_elem (left out, it is the size of the index tile)",
        )
    within = np.arange(count)
    rows = np.arange(partitions)[:, None] // group * group + within % group
    places = (np.minimum(rows, partitions - 1), np.broadcast_to(within // group, rows.shape))
    storage = index.storage
    if storage.state <= 0 and (storage.state == 0 or not storage.mask_of(index)[places].all()):
        raise UnwrittenReadError(
            f"{opcode}: the index {index!r} of {name} is read, but some of its {count} offsets were never written",
            hint="write offset i to index[i % G, i // G] in every group of G partitions",
        )
    touch(storage)
    columns = index.array[places].astype(np.int64)
    free = operand.base.size // partitions
    if columns.min() < 0 or columns.max() >= free:
        wrong = columns.max() if columns.max() >= free else columns.min()
        raise OutOfBoundsError(
            f"{opcode}: offset {wrong} of index {index!r} leaves the {free} elements per partition of "
            f"{operand.base!r}",
            hint="bound the offsets",
        )
    if (columns != columns[0]).any():
        current_run().warn(
            f"{opcode}: the groups of {group} partitions of index {index!r} hold different offsets; each group "
            "follows its own here, while the documentation gives the formula of the first group only"
        )
    return columns
