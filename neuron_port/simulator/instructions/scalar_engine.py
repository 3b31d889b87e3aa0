"""ScalarE: activation functions of scaled and shifted inputs, with a running sum for each partition.

The 128 sum registers belong to the engine and outlive an instruction; `reduce_cmd` says what happens to them.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import numpy as np

from neuron_port.simulator.checks import check_destination, check_generation, check_tiles
from neuron_port.simulator.context import Run, context, current_run, record
from neuron_port.simulator.dtypes import FLOAT32, tfloat32
from neuron_port.simulator.errors import ConstraintError, UnwrittenReadError
from neuron_port.simulator.instructions.activations import ACTIVATIONS, VALID_RANGES, range_complaint
from neuron_port.simulator.instructions.operators import Operator, add
from neuron_port.simulator.tensor import NkiTensor
from neuron_port.simulator.trace import NkiInstruction, engine
from neuron_port.simulator.values import read, scalar_or_vector, write


class reduce_cmd(Enum):  # noqa: N801 - AWS's name
    """What an instruction does with its engine's accumulator registers."""

    idle = 0
    reset = 1
    reduce = 2
    reset_reduce = 3
    load_reduce = 4


LIMITED = frozenset([*VALID_RANGES, "reciprocal"])


def activation(
    dst: NkiTensor,
    op: Operator,
    data: NkiTensor,
    bias: float | NkiTensor | None = None,
    scale: float | NkiTensor = 1.0,
    reduce_op: Operator | None = None,
    reduce_res: NkiTensor | None = None,
    reduce_cmd: reduce_cmd = reduce_cmd.idle,
    name: str | None = None,
) -> NkiInstruction:
    """dst = op(data * scale + bias) in float32; optionally sums the results of each partition.

    scale: a number or a float32 [P, 1] tile. bias: a [P, 1] tile; a number only from NeuronCore-v3 on.
    reduce_res [P, 1] receives the engine's sum registers after `reduce_cmd` was carried out.
    """
    return _activation("activation", dst, op, data, bias, scale, reduce_op, reduce_res, reduce_cmd, name)


def activation_reduce(
    dst: NkiTensor,
    op: Operator,
    data: NkiTensor,
    reduce_op: Operator,
    reduce_res: NkiTensor,
    bias: float | NkiTensor | None = None,
    scale: float | NkiTensor = 1.0,
    name: str | None = None,
) -> NkiInstruction:
    """dst = op(data * scale + bias) and reduce_res [P, 1] = its sum over the free dimensions."""
    if reduce_res is None:
        raise ConstraintError("activation_reduce: reduce_res is missing", hint="pass a (P, 1) tile")
    if reduce_op is None:
        raise ConstraintError("activation_reduce: reduce_op is missing", hint="pass nl.add")
    return _activation(
        "activation_reduce", dst, op, data, bias, scale, reduce_op, reduce_res, reduce_cmd.reset_reduce, name
    )


def _activation(
    opcode: str,
    dst: NkiTensor,
    op: Operator,
    data: NkiTensor,
    bias: Any,
    scale: Any,
    reduce_op: Any,
    reduce_res: NkiTensor | None,
    command: reduce_cmd,
    name: str | None,
) -> NkiInstruction:
    check_tiles(opcode, ("dst", "data"), dst, data)
    if op.__class__ is not Operator or op.activation is None:
        raise ConstraintError(
            f"{opcode}: {op!r} is no activation function",
            hint=f"ScalarE has {', '.join(sorted(ACTIVATIONS))}",
        )
    run = context.run or current_run()
    values = read(data)
    operands = [dst, data]
    if isinstance(scale, NkiTensor):
        if scale.dtype != "float32":
            raise ConstraintError(f"{opcode}: scale {scale!r} has dtype {scale.dtype}, must be float32")
        operands.append(scale)
        values = values * scalar_or_vector(opcode, "scale", scale, values)
    elif scale != 1.0:
        values = values * scalar_or_vector(opcode, "scale", scale, values)
    if bias is not None:
        _check_bias(opcode, run, op, bias, operands)
        values = values + scalar_or_vector(opcode, "bias", bias, values)
    if op.name in LIMITED:
        complaint = range_complaint(op, values)
        if complaint:
            run.warn(complaint)
    results = op.activation(values)
    if reduce_op is not None or reduce_res is not None or command is not Reduce.idle:
        sums = _accumulate(opcode, run, results, reduce_op, command, reduce_res is not None)
        write(dst, results)
        if reduce_res is not None:
            partitions = data.array.shape[0]
            if reduce_res.size != partitions or reduce_res.array.shape[0] != partitions:
                raise ConstraintError(
                    f"{opcode}: reduce_res {reduce_res!r} must have shape ({partitions}, 1)"
                )
            check_destination(opcode, "reduce_res", reduce_res)
            write(reduce_res, sums[:partitions])
            operands.insert(1, reduce_res)
    else:
        write(dst, results)
    writes = 1 if reduce_res is None else 2
    return record(opcode, engine.scalar, operands, name, writes=writes, table=op.name)


Reduce = reduce_cmd


def _check_bias(opcode: str, run: Run, op: Operator, bias: Any, operands: list[NkiTensor]) -> None:
    if op.name == "reciprocal" and run.target.generation == 2:
        raise ConstraintError(
            f"{opcode}: nl.reciprocal takes no bias on NeuronCore-v2", hint="add it beforehand"
        )
    if isinstance(bias, NkiTensor):
        if bias.dtype is tfloat32:
            raise ConstraintError(f"{opcode}: bias {bias!r} has dtype tfloat32, which bias cannot have")
        operands.append(bias)
    else:
        check_generation(opcode, 3, f"bias={bias!r} as a number (memset a (P, 1) tile on NeuronCore-v2)")


def _accumulate(
    opcode: str, run: Run, results: np.ndarray, reduce_op: Any, command: reduce_cmd, read_out: bool
) -> np.ndarray:
    """Carry out `command` on ScalarE's registers and return them."""
    if not isinstance(command, Reduce) or command is Reduce.load_reduce:
        raise ConstraintError(
            f"{opcode}: reduce_cmd is {command!r}, must be one of idle, reset, reduce, reset_reduce"
        )
    if reduce_op is not None and reduce_op is not add:
        raise ConstraintError(
            f"{opcode}: reduce_op {reduce_op!r} must be nl.add", hint="use nisa.tensor_reduce"
        )
    reduces = command in (Reduce.reduce, Reduce.reset_reduce)
    if reduces and reduce_op is None:
        raise ConstraintError(f"{opcode}: reduce_cmd {command.name} needs reduce_op=nl.add")
    registers = run.accumulators.get(engine.scalar)
    if command in (Reduce.reset, Reduce.reset_reduce):
        registers = run.accumulators[engine.scalar] = np.zeros(128, dtype=FLOAT32)
    if registers is None and (reduces or read_out):
        raise UnwrittenReadError(
            f"{opcode}: the sum registers of ScalarE were never reset",
            hint="start with reduce_cmd=nisa.reduce_cmd.reset_reduce",
        )
    if reduces and registers is not None:
        registers[: results.shape[0]] += results.reshape(results.shape[0], -1).sum(axis=1, dtype=FLOAT32)
    return registers if registers is not None else np.zeros(128, dtype=FLOAT32)
