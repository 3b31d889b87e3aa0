"""ScalarE of NeuronCore-v4: activation functions after two freely chosen steps, with five kinds of reduction."""

from __future__ import annotations

from typing import Any

import numpy as np

from neuron_port.simulator.checks import check_generation, check_tiles
from neuron_port.simulator.context import current_run, record
from neuron_port.simulator.errors import ConstraintError
from neuron_port.simulator.instructions.accumulators import reduce_cmd
from neuron_port.simulator.instructions.indirect_operands import takes_indirection
from neuron_port.simulator.instructions.operators import (
    Operator,
    abs_max,
    abs_min,
    add,
    bypass,
    maximum,
    minimum,
    multiply,
    prelu,
    subtract,
)
from neuron_port.simulator.instructions.scalar_engine import (
    LIMITED,
    finish_with_registers,
    refuse_activation,
    warn_of_range,
)
from neuron_port.simulator.tensor import NkiTensor
from neuron_port.simulator.trace import NkiInstruction, engine
from neuron_port.simulator.values import read, scalar_or_vector, write

# (op0, op1): scale and bias, scale and negative bias, scale, bias, subtraction, nothing.
STEPS = (
    (multiply, add),
    (multiply, subtract),
    (multiply, bypass),
    (add, bypass),
    (subtract, bypass),
    (bypass, bypass),
)
REDUCTIONS = (add, maximum, minimum, abs_max, abs_min)


@takes_indirection("dst", "data")
def activate2(
    dst: NkiTensor,
    op: Operator,
    data: NkiTensor,
    imm0: float | NkiTensor,
    imm1: float | NkiTensor,
    op0: Operator,
    op1: Operator,
    relu_param: float | NkiTensor = 0.0,
    reverse0: bool = False,
    reverse1: bool = False,
    reduce_op: Operator | None = None,
    reduce_res: NkiTensor | None = None,
    reduce_cmd: reduce_cmd = reduce_cmd.idle,
    name: str | None = None,
) -> NkiInstruction:
    """dst = op((data op0 imm0) op1 imm1) in float32; optionally reduces the results of each partition.

    imm0, imm1: numbers or [P, 1] tiles of one dtype; unused where the step is nl.bypass. reverse0 and reverse1
    exchange the two sides of a step. relu_param: the slope of nl.prelu for negative values, a number or [P, 1].
    reduce_op: nl.add, maximum, minimum, abs_max or abs_min into ScalarE's registers, as for nisa.activation.

    Raises:
        ConstraintError: older than NeuronCore-v4, a pair of steps that ScalarE has not, tiles or dtypes.
    """
    check_generation("activate2", 4)
    check_tiles("activate2", ("dst", "data"), dst, data)
    if op is not prelu and (op.__class__ is not Operator or op.activation is None):
        refuse_activation("activate2", op)
    first, second = op0 or bypass, op1 or bypass
    _check_steps(first, second, reverse0, reverse1)
    if isinstance(imm0, NkiTensor) and isinstance(imm1, NkiTensor) and imm0.dtype is not imm1.dtype:
        raise ConstraintError(
            f"activate2: imm0 {imm0!r} and imm1 {imm1!r} must have the same dtype",
            hint="convert one with nisa.tensor_copy",
        )
    operands = [dst, data]
    values = _step(read(data), first, imm0, reverse0, "imm0", operands)
    values = _step(values, second, imm1, reverse1, "imm1", operands)
    run = current_run()
    if op.name in LIMITED:
        warn_of_range("activate2", run, op, values)
    if op is prelu:
        if isinstance(relu_param, NkiTensor):
            operands.append(relu_param)
        slope = scalar_or_vector("activate2", "relu_param", relu_param, values)
        results = np.where(values < 0, values * slope, values)
    else:
        assert op.activation is not None
        results = op.activation(values)
    if reduce_op is None and reduce_res is None and reduce_cmd is Reduce.idle:
        write(dst, results)
        return record("activate2", engine.scalar, operands, name, table=op.name)
    if reduce_op is not None and reduce_op not in REDUCTIONS:
        raise ConstraintError(
            f"activate2: reduce_op {reduce_op!r} must be nl.add, maximum, minimum, abs_max or abs_min"
        )
    return finish_with_registers(
        "activate2", dst, op, data, results, operands, reduce_op, reduce_cmd, reduce_res, name
    )


Reduce = reduce_cmd


def _check_steps(first: Any, second: Any, reverse0: bool, reverse1: bool) -> None:
    if (first, second) not in STEPS:
        pairs = ", ".join(f"({a!r}, {b!r})" for a, b in STEPS)
        raise ConstraintError(
            f"activate2: op0 {first!r} with op1 {second!r} is no pair that ScalarE has",
            hint=f"use one of {pairs}",
        )
    for reverse, step, flag in ((reverse0, first, "reverse0"), (reverse1, second, "reverse1")):
        if reverse and step is bypass:
            raise ConstraintError(
                f"activate2: {flag} is set, but its step is nl.bypass", hint=f"leave {flag} out"
            )


def _step(
    values: np.ndarray, op: Operator, operand: Any, reverse: bool, label: str, operands: list[NkiTensor]
) -> np.ndarray:
    """values op operand, or operand op values; a bypassed step does not look at its operand."""
    if op is bypass:
        return values
    if isinstance(operand, NkiTensor):
        operands.append(operand)
    scalar = scalar_or_vector("activate2", label, operand, values)
    result: np.ndarray = op.alu(scalar, values) if reverse else op.alu(values, scalar)
    return result
