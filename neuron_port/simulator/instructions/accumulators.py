"""The accumulator registers of VectorE and of ScalarE: one float32 for each of the 128 lanes.

They belong to the engine and outlive an instruction; `reduce_cmd` says what happens to them. VectorE's are shared by
exponential, range_select, select_reduce, tensor_scalar_reduce and tensor_scalar_cumulative, ScalarE's by activation,
activation_reduce and activate2 (documentation of these instructions). A lane is a partition of the data.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import numpy as np

from neuron_port.simulator.checks import check_destination
from neuron_port.simulator.context import current_run
from neuron_port.simulator.dtypes import FLOAT32, float32
from neuron_port.simulator.errors import ConstraintError, UnwrittenReadError
from neuron_port.simulator.instructions.operators import (
    Operator,
    abs_max,
    abs_min,
    add,
    maximum,
    minimum,
    multiply,
    subtract,
)
from neuron_port.simulator.tensor import NkiTensor
from neuron_port.simulator.trace import engine
from neuron_port.simulator.values import scalar_or_vector, write

LANES = 128


class reduce_cmd(Enum):  # noqa: N801 - AWS's name
    """What an instruction does with its engine's accumulator registers."""

    idle = 0
    reset = 1
    reduce = 2
    reset_reduce = 3
    load_reduce = 4


IDENTITIES = {
    add: 0.0,
    subtract: 0.0,
    multiply: 1.0,
    maximum: -np.inf,
    minimum: np.inf,
    abs_max: 0.0,
    abs_min: np.inf,
}
REDUCTIONS = {
    add: np.add.reduce,
    multiply: np.multiply.reduce,
    maximum: np.maximum.reduce,
    minimum: np.minimum.reduce,
}


class Registers:
    """The 128 registers of one engine, and which of them hold something defined."""

    __slots__ = ("defined", "values")

    def __init__(self) -> None:
        self.values = np.zeros(LANES, dtype=FLOAT32)
        self.defined = np.zeros(LANES, dtype=bool)


def registers_of(on: engine) -> Registers:
    """The registers of this run's engine."""
    accumulators = current_run().accumulators
    if on not in accumulators:
        accumulators[on] = Registers()
    return accumulators[on]


def lanes_of(data: NkiTensor) -> slice:
    """The lanes that work on a tile: its partitions."""
    return slice(data.start, data.start + data.shape[0])


def check_command(opcode: str, command: Any, allowed: tuple[reduce_cmd, ...]) -> None:
    """The instruction knows this command."""
    if command not in allowed:
        raise ConstraintError(
            f"{opcode}: reduce_cmd is {command!r}, must be one of {', '.join(c.name for c in allowed)}",
            hint="pass a member of nisa.reduce_cmd",
        )


def starting_values(
    opcode: str, on: engine, data: NkiTensor, op: Operator, command: reduce_cmd, initial: Any = None
) -> np.ndarray:
    """What the lanes [P] of `data` hold before the results are reduced into them.

    Raises:
        UnwrittenReadError: `reduce` on lanes that nothing has reset, or that an idle instruction may have changed.
    """
    lanes = lanes_of(data)
    partitions = data.shape[0]
    if command is reduce_cmd.reset_reduce:
        return np.full(partitions, IDENTITIES[op], dtype=FLOAT32)
    if command is reduce_cmd.load_reduce:
        start = scalar_or_vector(opcode, "reduce_init", initial, np.empty((partitions, 1), FLOAT32))
        return np.broadcast_to(np.asarray(start).reshape(-1), (partitions,)).astype(FLOAT32)
    registers = registers_of(on)
    if not registers.defined[lanes].all():
        _refuse_undefined(opcode, on, data)
    return registers.values[lanes].copy()


def keep(on: engine, data: NkiTensor, values: np.ndarray) -> None:
    """The lanes [P] of `data` now hold `values`."""
    registers = registers_of(on)
    lanes = lanes_of(data)
    registers.values[lanes] = values
    registers.defined[lanes] = True


def forget(on: engine, data: NkiTensor) -> None:
    """An idle instruction of VectorE may have changed the lanes of `data` (exponential, select_reduce)."""
    registers = current_run().accumulators.get(on)
    if registers is not None:
        registers.defined[lanes_of(data)] = False


def read_out(opcode: str, on: engine, data: NkiTensor) -> np.ndarray:
    """What the lanes [P] of `data` hold.

    Raises:
        UnwrittenReadError: nothing has reset them.
    """
    registers = registers_of(on)
    lanes = lanes_of(data)
    if not registers.defined[lanes].all():
        _refuse_undefined(opcode, on, data)
    return registers.values[lanes]


def reduced(op: Operator, start: np.ndarray, results: np.ndarray) -> np.ndarray:
    """start [P] combined with all of results [P, ...] in float32."""
    rows = results.reshape(results.shape[0], -1)
    reduce = REDUCTIONS.get(op)
    if reduce is not None:
        return np.asarray(op.alu(start, reduce(rows, axis=1)), dtype=FLOAT32)
    # abs_max and abs_min keep the sign of the winner, and of equals the later one.
    rows = np.concatenate([start[:, None], rows], axis=1)
    magnitudes = np.abs(rows) if op is abs_max else -np.abs(rows)
    winners = rows.shape[1] - 1 - np.argmax(magnitudes[:, ::-1], axis=1)
    return rows[np.arange(rows.shape[0]), winners]


def check_result_tile(
    opcode: str, reduce_res: NkiTensor, data: NkiTensor, *, floats_only: bool = False
) -> None:
    """reduce_res holds one value for each partition of data."""
    check_destination(opcode, "reduce_res", reduce_res)
    partitions = data.shape[0]
    if reduce_res.shape[0] != partitions or reduce_res.size != partitions:
        raise ConstraintError(f"{opcode}: reduce_res {reduce_res!r} must have shape ({partitions}, 1)")
    if floats_only and not reduce_res.dtype.is_float:
        raise ConstraintError(
            f"{opcode}: reduce_res {reduce_res!r} has dtype {reduce_res.dtype}, must be a float dtype"
        )


def write_result(reduce_res: NkiTensor, values: np.ndarray, *, negate: bool = False) -> None:
    """Store the registers of the lanes; after dst, which reduce_res may share a tile with."""
    write(reduce_res, -values if negate else values)


def check_initial(
    opcode: str, command: reduce_cmd, initial: Any, *, name: str = "reduce_init", unset: Any = None
) -> None:
    """A first value goes with load_reduce and only there; as a tile it is float32."""
    if isinstance(initial, NkiTensor) and initial.dtype is not float32:
        raise ConstraintError(
            f"{opcode}: {name} {initial!r} has dtype {initial.dtype}, must be float32",
            hint="convert it with nisa.tensor_copy into a float32 tile",
        )
    given = isinstance(initial, NkiTensor) or (initial is not None and initial != unset)
    if command is not reduce_cmd.load_reduce and given:
        raise ConstraintError(
            f"{opcode}: {name} goes with reduce_cmd=nisa.reduce_cmd.load_reduce, not {command.name}"
        )
    if command is reduce_cmd.load_reduce and initial is None:
        raise ConstraintError(f"{opcode}: reduce_cmd load_reduce needs {name}")


def _refuse_undefined(opcode: str, on: engine, data: NkiTensor) -> None:
    name = {engine.vector: "VectorE", engine.scalar: "ScalarE"}[on]
    raise UnwrittenReadError(
        f"{opcode}: the accumulator registers of {name} that belong to the partitions of {data!r} were never "
        "reset"
        + (", or an instruction with reduce_cmd idle has disturbed them" if on is engine.vector else ""),
        hint="start with reduce_cmd=nisa.reduce_cmd.reset_reduce",
    )
