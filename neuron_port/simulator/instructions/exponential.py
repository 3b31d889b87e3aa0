"""VectorE of NeuronCore-v4: the fast exponential with its sum, and uniform random numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from neuron_port.simulator.checks import check_destination, check_dtype, check_generation, check_tiles
from neuron_port.simulator.context import current_run, record
from neuron_port.simulator.dtypes import (
    FLOAT32,
    bfloat16,
    float8_e4m3,
    float8_e5m2,
    float16,
    float32,
    int8,
    int16,
    int32,
    tfloat32,
    uint8,
    uint16,
    uint32,
)
from neuron_port.simulator.errors import ConstraintError
from neuron_port.simulator.instructions.accumulators import check_command, check_initial, reduce_cmd
from neuron_port.simulator.instructions.indirect_operands import takes_indirection
from neuron_port.simulator.instructions.operators import add
from neuron_port.simulator.instructions.random_numbers import next_words
from neuron_port.simulator.instructions.vector_select import write_and_reduce
from neuron_port.simulator.tensor import NkiTensor
from neuron_port.simulator.trace import NkiInstruction, engine
from neuron_port.simulator.values import read, scalar_or_vector, write

Reduce = reduce_cmd
FLOATS = (float8_e4m3, float8_e5m2, float16, bfloat16, float32)
SHORT_INTEGERS = (int8, int16, int32, uint8, uint16)
MOST_DIMENSIONS = 4


@takes_indirection("dst", "src")
def exponential(
    dst: NkiTensor,
    src: NkiTensor,
    max_value: float | NkiTensor = 0.0,
    reduce_res: NkiTensor | None = None,
    reduce_cmd: reduce_cmd = reduce_cmd.idle,
    reduce_init: float | NkiTensor = 0.0,
    name: str | None = None,
) -> NkiInstruction:
    """dst = exp(src - max_value) in float32; optionally sums the results of each partition.

    Args:
        dst: @ SBUF or PSUM, float8_e4m3, float8_e5m2, 16- or 32-bit float, or integer but uint32; up to 4-D.
        src: of dst's size, of those dtypes or uint32, but not tfloat32.
        max_value: a number or a float32 [P, 1] tile.
        reduce_res: [P, 1] of a float dtype; None leaves the sum in VectorE's registers.
        reduce_cmd: idle (leaves the registers undefined), reset_reduce, reduce or load_reduce from reduce_init.

    Raises:
        ConstraintError: older than NeuronCore-v4, or a tile, dtype or command that it does not take.
    """
    opcode = "exponential"
    check_generation(opcode, 4)
    check_tiles(opcode, ("dst", "src"), dst, src)
    check_dtype(opcode, "dst", dst, (*FLOATS, tfloat32, *SHORT_INTEGERS))
    check_dtype(opcode, "src", src, (*FLOATS, *SHORT_INTEGERS, uint32))
    for label, tile in (("dst", dst), ("src", src)):
        if tile.ndim > MOST_DIMENSIONS:
            raise ConstraintError(f"{opcode}: {label} {tile!r} has {tile.ndim} dimensions, at most 4")
    check_command(opcode, reduce_cmd, (Reduce.idle, Reduce.reset_reduce, Reduce.reduce, Reduce.load_reduce))
    check_initial(opcode, reduce_cmd, reduce_init, unset=0.0)
    if reduce_res is not None:
        check_dtype(opcode, "reduce_res", reduce_res, (*FLOATS, tfloat32))
    values = read(src)
    operands = [dst, src]
    if isinstance(max_value, NkiTensor):
        check_dtype(opcode, "max_value", max_value, (float32,))
    operands += [operand for operand in (max_value, reduce_init) if isinstance(operand, NkiTensor)]
    results = np.exp(values - scalar_or_vector(opcode, "max_value", max_value, values))
    return write_and_reduce(
        opcode, dst, src, results, add, reduce_cmd, reduce_res, operands, reduce_init, name=name
    )


def rand2(
    dst: NkiTensor, min: float | NkiTensor, max: float | NkiTensor, name: str | None = None
) -> NkiInstruction:
    """dst = random numbers, uniform between min and max, by VectorE's generators.

    Args:
        dst: @ SBUF or PSUM, float8_e4m3, float8_e5m2, 16- or 32-bit float, or integer.
        min, max: numbers or float32 [P, 1] tiles, min < max.

    Raises:
        ConstraintError: older than NeuronCore-v4, dtypes, or an empty range.
    """
    check_generation("rand2", 4)
    check_destination("rand2", "dst", dst)
    check_dtype("rand2", "dst", dst, (*FLOATS, tfloat32, *SHORT_INTEGERS, uint32))
    partitions = dst.shape[0]
    free = dst.size // partitions
    operands = [dst]
    bounds: list[Any] = []
    column = np.empty((partitions, free), FLOAT32)
    for label, bound in (("min", min), ("max", max)):
        if isinstance(bound, NkiTensor):
            check_dtype("rand2", label, bound, (float32,))
            operands.append(bound)
        bounds.append(scalar_or_vector("rand2", label, bound, column))
    least, most = bounds
    if not np.all(least < most):
        raise ConstraintError(f"rand2: min {min!r} is not below max {max!r}", hint="exchange them")
    words = next_words(current_run(), engine.vector, partitions, free)
    # 24 bits are what a float32 in [0, 1) holds exactly.
    fractions = (words >> np.uint32(8)).astype(FLOAT32) * FLOAT32.type(2.0**-24)
    write(dst, least + fractions * (most - least))
    return record("rand2", engine.vector, operands, name)
