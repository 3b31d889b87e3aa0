"""ScalarE: activation functions of scaled and shifted inputs, with a running sum for each partition."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from neuron_port.simulator.checks import check_generation, check_tiles
from neuron_port.simulator.context import Run, context, current_run, record
from neuron_port.simulator.dtypes import tfloat32
from neuron_port.simulator.errors import ConstraintError
from neuron_port.simulator.instructions.accumulators import (
    IDENTITIES,
    check_command,
    check_result_tile,
    keep,
    read_out,
    reduce_cmd,
    reduced,
    starting_values,
    write_result,
)
from neuron_port.simulator.instructions.activations import ACTIVATIONS, VALID_RANGES, range_complaint
from neuron_port.simulator.instructions.indirect_operands import takes_indirection
from neuron_port.simulator.instructions.operators import Operator, add, prelu
from neuron_port.simulator.tensor import NkiTensor
from neuron_port.simulator.trace import NkiInstruction, engine
from neuron_port.simulator.values import read, scalar_or_vector, write

Reduce = reduce_cmd
COMMANDS = (Reduce.idle, Reduce.reset, Reduce.reduce, Reduce.reset_reduce)
LIMITED = frozenset([*VALID_RANGES, "reciprocal"])


@takes_indirection("dst", "data")
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


@takes_indirection("dst", "data")
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
    """dst = op(data * scale + bias), and reduce_res [P, 1] = its sum over the free dimensions.

    With reduce_res None the sum stays in the engine's registers.
    """
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
        refuse_activation(opcode, op)
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
        warn_of_range(opcode, run, op, values)
    results = op.activation(values)
    if reduce_op is None and reduce_res is None and command is Reduce.idle:
        write(dst, results)
        return record(opcode, engine.scalar, operands, name, table=op.name)
    if reduce_op is not None and reduce_op is not add:
        raise ConstraintError(
            f"{opcode}: reduce_op {reduce_op!r} must be nl.add", hint="use nisa.tensor_reduce"
        )
    return finish_with_registers(
        opcode, dst, op, data, results, operands, reduce_op, command, reduce_res, name
    )


def finish_with_registers(
    opcode: str,
    dst: NkiTensor,
    op: Operator,
    data: NkiTensor,
    results: np.ndarray,
    operands: list[NkiTensor],
    reduce_op: Operator | None,
    command: reduce_cmd,
    reduce_res: NkiTensor | None,
    name: str | None,
) -> NkiInstruction:
    """Carry out `command` on ScalarE's registers, write dst, then read the registers out into reduce_res."""
    check_command(opcode, command, COMMANDS)
    reduces = command is Reduce.reduce or command is Reduce.reset_reduce
    if reduces and reduce_op is None:
        raise ConstraintError(f"{opcode}: reduce_cmd {command.name} needs reduce_op", hint="pass nl.add")
    if reduce_res is not None:
        check_result_tile(opcode, reduce_res, data)
    if command is Reduce.reset:
        keep(engine.scalar, data, np.full(data.shape[0], IDENTITIES[reduce_op or add], np.float32))
    elif reduces and reduce_op is not None:
        start = starting_values(opcode, engine.scalar, data, reduce_op, command)
        keep(engine.scalar, data, reduced(reduce_op, start, results))
    write(dst, results)
    if reduce_res is None:
        return record(opcode, engine.scalar, operands, name, table=op.name)
    write_result(reduce_res, read_out(opcode, engine.scalar, data))
    operands.insert(1, reduce_res)
    return record(opcode, engine.scalar, operands, name, writes=2, table=op.name, reads_accumulator=True)


def refuse_activation(opcode: str, op: Any) -> NoReturn:
    """Say what is wrong with something that is no activation function here."""
    if op is prelu:
        raise ConstraintError(
            f"{opcode}: nl.prelu needs the slope of its negative side, which {opcode} cannot pass",
            hint="use nisa.activate2(..., relu_param=slope) on NeuronCore-v4",
        )
    raise ConstraintError(
        f"{opcode}: {op!r} is no activation function", hint=f"ScalarE has {', '.join(sorted(ACTIVATIONS))}"
    )


def warn_of_range(opcode: str, run: Run, op: Operator, values: np.ndarray) -> None:
    """Note inputs outside the range that the function's table is valid for."""
    complaint = range_complaint(opcode, op, values)
    if complaint:
        run.warn(complaint)


def _check_bias(opcode: str, run: Run, op: Operator, bias: Any, operands: list[NkiTensor]) -> None:
    if op.name == "reciprocal" and run.target.generation == 2:
        raise ConstraintError(
            f"{opcode}: nl.reciprocal takes no bias on NeuronCore-v2", hint="add it beforehand"
        )
    if isinstance(bias, NkiTensor):
        if bias.dtype is tfloat32:
            raise ConstraintError(
                f"{opcode}: bias {bias!r} has dtype tfloat32, which bias cannot have", hint="make it float32"
            )
        operands.append(bias)
    else:
        check_generation(opcode, 3, f"bias={bias!r} as a number (memset a (P, 1) tile on NeuronCore-v2)")
