"""VectorE: selection by masks and bounds, with the engine's accumulator registers for row reductions."""

from __future__ import annotations

from typing import Any

import numpy as np

from neuron_port.simulator.bits import ComputedTensor
from neuron_port.simulator.checks import (
    check_dtype,
    check_generation,
    check_not_both_psum,
    check_tiles,
)
from neuron_port.simulator.context import current_run, record
from neuron_port.simulator.dtypes import FLOAT32, float32, int8, int16, int32, tfloat32, uint8, uint16, uint32
from neuron_port.simulator.errors import ConstraintError
from neuron_port.simulator.instructions.accumulators import (
    check_command,
    check_initial,
    check_result_tile,
    forget,
    keep,
    reduce_cmd,
    reduced,
    starting_values,
    write_result,
)
from neuron_port.simulator.instructions.indirect_operands import takes_indirection
from neuron_port.simulator.instructions.operators import (
    Operator,
    add,
    equal,
    greater,
    greater_equal,
    less,
    less_equal,
    maximum,
    minimum,
    multiply,
    subtract,
)
from neuron_port.simulator.instructions.vector_engine import check_operator
from neuron_port.simulator.memory import BY_OTHERS
from neuron_port.simulator.tensor import NkiTensor
from neuron_port.simulator.trace import NkiInstruction, engine
from neuron_port.simulator.values import read, refuse_write, scalar_or_vector, write

Reduce = reduce_cmd
FLOAT32_MIN = float(np.finfo(np.float32).min)


@takes_indirection("dst", "predicate")
def tensor_copy_predicated(
    dst: NkiTensor,
    src: float | NkiTensor,
    predicate: NkiTensor,
    reverse_pred: bool = False,
    name: str | None = None,
) -> NkiInstruction:
    """dst = src where predicate is not zero (where it is zero, if reversed); elsewhere dst stays as it is.

    predicate: uint8, uint16 or uint32. src: a number or a tile of dst's dtype; not both of them in PSUM.
    """
    sources = (predicate, src) if isinstance(src, NkiTensor) else (predicate,)
    check_tiles("tensor_copy_predicated", ("dst", "predicate", "src"), dst, *sources)
    check_dtype("tensor_copy_predicated", "predicate", predicate, (uint8, uint16, uint32))
    if isinstance(src, NkiTensor):
        check_not_both_psum("tensor_copy_predicated", ("src", "predicate"), src, predicate)
        check_dtype("tensor_copy_predicated", "src", src, (dst.dtype,))
        values = src.array.reshape(dst.array.shape)
    else:
        values = dst.dtype.rounded(np.full(1, src, FLOAT32))
    chosen = predicate.array.reshape(dst.array.shape) != 0
    if reverse_pred:
        chosen = ~chosen
    if isinstance(dst, ComputedTensor):
        dst.store(np.where(chosen, values, dst.array), BY_OTHERS, chosen)
    else:
        if not dst.array.flags.writeable:
            refuse_write(dst)
        np.copyto(dst.array, values, where=chosen)
        dst.storage.mark_selected(dst, chosen, BY_OTHERS)
    return record("tensor_copy_predicated", engine.vector, (dst, *sources), name)


def select_reduce(
    dst: NkiTensor,
    predicate: NkiTensor,
    on_true: NkiTensor,
    on_false: float | NkiTensor,
    reduce_res: NkiTensor | None = None,
    reduce_cmd: reduce_cmd = reduce_cmd.idle,
    reduce_op: Operator = maximum,
    reverse_pred: bool = False,
    name: str | None = None,
) -> NkiInstruction:
    """dst = on_true where predicate else on_false (number or [P, 1]); optionally the maximum of each row.

    reduce_cmd: idle (the default; leaves VectorE's registers undefined), reduce or reset_reduce.
    """
    check_tiles("select_reduce", ("dst", "predicate", "on_true"), dst, predicate, on_true)
    check_not_both_psum("select_reduce", ("predicate", "on_true"), predicate, on_true)
    check_dtype("select_reduce", "predicate", predicate, (uint8, int8, uint16, int16))
    if on_true.dtype in (tfloat32, int32, uint32):
        raise ConstraintError(
            f"select_reduce: on_true {on_true!r} has dtype {on_true.dtype}, which it cannot take",
            hint="copy it to float32 first, or choose with nisa.tensor_copy_predicated",
        )
    _check_maximum("select_reduce", reduce_op)
    values = read(on_true)
    chosen = predicate.array.reshape(values.shape) != 0
    if reverse_pred:
        chosen = ~chosen
    selected = np.where(chosen, values, scalar_or_vector("select_reduce", "on_false", on_false, values))
    operands = [dst, predicate, on_true]
    if isinstance(on_false, NkiTensor):
        operands.append(on_false)
    check_command("select_reduce", reduce_cmd, (Reduce.idle, Reduce.reduce, Reduce.reset_reduce))
    if reduce_res is not None:
        check_result_tile("select_reduce", reduce_res, on_true, floats_only=True)
    return write_and_reduce(
        "select_reduce", dst, on_true, selected, maximum, reduce_cmd, reduce_res, operands, name=name
    )


def range_select(
    dst: NkiTensor,
    on_true_tile: NkiTensor,
    comp_op0: Operator,
    comp_op1: Operator,
    bound0: NkiTensor,
    bound1: NkiTensor,
    reduce_cmd: reduce_cmd = reduce_cmd.reset_reduce,
    reduce_res: NkiTensor | None = None,
    reduce_op: Operator = maximum,
    range_start: int = 0,
    on_false_value: float = FLOAT32_MIN,
    name: str | None = None,
) -> NkiInstruction:
    """dst = on_true_tile where (i comp_op0 bound0) and (i comp_op1 bound1), else the lowest float32.

    i = range_start + position in the free dimensions; bounds are float32 [P, 1]. From NeuronCore-v3 on.
    reduce_res [P, 1] = the maximum of each partition's results before they are rounded to dst's dtype.
    """
    check_tiles("range_select", ("dst", "on_true_tile"), dst, on_true_tile)
    _check_range_select(on_true_tile, (comp_op0, comp_op1), (bound0, bound1), range_start, on_false_value)
    _check_maximum("range_select", reduce_op)
    values = read(on_true_tile)
    partitions = values.shape[0]
    free = values.size // partitions
    positions = np.arange(range_start, range_start + free, dtype=np.int64).astype(FLOAT32)
    rows = values.reshape(partitions, free)
    inside = comp_op0.alu(positions, scalar_or_vector("range_select", "bound0", bound0, rows)) & comp_op1.alu(
        positions, scalar_or_vector("range_select", "bound1", bound1, rows)
    )
    selected = np.where(inside, rows, np.float32(FLOAT32_MIN))
    check_command("range_select", reduce_cmd, (Reduce.idle, Reduce.reduce, Reduce.reset_reduce))
    if reduce_res is not None and dst.dtype.itemsize < 4 and reduce_res.dtype is not float32:
        current_run().warn(
            f"range_select: reduce_res {reduce_res!r} is not float32 while dst {dst!r} is narrower than float32: a "
            "row without a selected element becomes -inf, and subtracting its maximum gives NaN (range_select "
            "documentation, numerical stability)"
        )
    operands = [dst, on_true_tile, bound0, bound1]
    return write_and_reduce(
        "range_select", dst, on_true_tile, selected, maximum, reduce_cmd, reduce_res, operands, name=name
    )


@takes_indirection("dst", "data")
def _check_range_select(
    on_true_tile: NkiTensor,
    operators: tuple[Operator, Operator],
    bounds: tuple[NkiTensor, NkiTensor],
    range_start: int,
    on_false_value: float,
) -> None:
    """What range_select asks of its operands, besides equal sizes."""
    check_generation("range_select", 3)
    for label, op in zip(("comp_op0", "comp_op1"), operators, strict=True):
        if op not in (equal, less, less_equal, greater, greater_equal):
            raise ConstraintError(
                f"range_select: {label} {op!r} cannot compare",
                hint="use nl.equal, less, less_equal, greater or greater_equal",
            )
    if not on_true_tile.dtype.is_float:
        raise ConstraintError(f"range_select: on_true_tile {on_true_tile!r} must have a float dtype")
    for label, bound in zip(("bound0", "bound1"), bounds, strict=True):
        if not isinstance(bound, NkiTensor):
            raise ConstraintError(f"range_select: {label} is {bound!r}, must be a (P, 1) float32 tile")
        check_dtype("range_select", label, bound, (float32,))
    if np.float32(on_false_value) != np.float32(FLOAT32_MIN):  # the documents write -3.4028235e+38
        raise ConstraintError(
            f"range_select: on_false_value is {on_false_value!r}, must be {FLOAT32_MIN!r}",
            hint="leave it out; the hardware knows no other value",
        )
    free = on_true_tile.size // on_true_tile.array.shape[0]
    if not isinstance(range_start, int | np.integer):
        raise ConstraintError(f"range_select: range_start is {range_start!r}, must be a compile-time integer")
    if range_start + free > 2**24:
        raise ConstraintError(
            f"range_select: range_start {range_start} and {free} elements pass 2**24, where float32 counts exactly",
            hint="move range_start and the bounds down by the same amount",
        )


def tensor_scalar_reduce(
    dst: NkiTensor,
    data: NkiTensor,
    op0: Operator,
    operand0: float | NkiTensor,
    reduce_op: Operator,
    reduce_res: NkiTensor | None = None,
    reverse0: bool = False,
    reduce_cmd: reduce_cmd = reduce_cmd.reset_reduce,
    reduce_init: float | NkiTensor | None = None,
    reduce_res_negate: bool = False,
    name: str | None = None,
) -> NkiInstruction:
    """dst = data op0 operand0, and reduce_res [P, 1] = its reduction over all free dimensions.

    reduce_cmd: reset_reduce, reduce (goes on with VectorE's registers) or load_reduce (starts from reduce_init, a
    number or a float32 [P, 1] tile). reduce_res None leaves the result in the registers; reduce_res_negate changes
    the sign of what is written, not of the registers.
    """
    opcode = "tensor_scalar_reduce"
    check_tiles(opcode, ("dst", "data"), dst, data)
    if check_operator(opcode, op0).bitwise:
        raise ConstraintError(f"{opcode}: op0 {op0!r} is bitwise, must be arithmetic")
    if reverse0:
        raise ConstraintError(
            f"{opcode}: reverse0 is not supported by the hardware", hint="use nisa.tensor_scalar"
        )
    if reduce_op not in (add, multiply, maximum, minimum):
        raise ConstraintError(
            f"{opcode}: reduce_op {reduce_op!r} must be nl.add, multiply, maximum or minimum"
        )
    check_command(opcode, reduce_cmd, (Reduce.reduce, Reduce.reset_reduce, Reduce.load_reduce))
    check_initial(opcode, reduce_cmd, reduce_init)
    operands = [dst, data]
    results = _with_scalar(opcode, op0, read(data), operand0, "operand0", operands)
    if isinstance(reduce_init, NkiTensor):
        operands.append(reduce_init)
    return write_and_reduce(
        opcode,
        dst,
        data,
        results,
        reduce_op,
        reduce_cmd,
        reduce_res,
        operands,
        reduce_init,
        negate=reduce_res_negate,
        name=name,
        op=op0.name,
    )


@takes_indirection("dst", "src")
def tensor_scalar_cumulative(
    dst: NkiTensor,
    src: NkiTensor,
    op0: Operator,
    op1: Operator,
    imm0: float | NkiTensor,
    imm1: float | NkiTensor | None = None,
    reduce_cmd: reduce_cmd = reduce_cmd.reset_reduce,
    name: str | None = None,
) -> NkiInstruction:
    """dst_i = register = (src_i op0 imm0) op1 register, along the free dimensions of each partition.

    imm0, imm1: numbers or float32 [P, 1] tiles; imm1 is the first register with reduce_cmd load_reduce, and unused
    with reset_reduce and reduce.
    """
    opcode = "tensor_scalar_cumulative"
    check_tiles(opcode, ("dst", "src"), dst, src)
    if check_operator(opcode, op0).bitwise:
        raise ConstraintError(f"{opcode}: op0 {op0!r} is bitwise, must be arithmetic")
    if op1 not in (add, subtract, multiply, maximum, minimum):
        raise ConstraintError(f"{opcode}: op1 {op1!r} must be nl.add, subtract, multiply, maximum or minimum")
    for label, tile in (("dst", dst), ("src", src)):
        if tile.dtype in (int32, uint32):
            raise ConstraintError(
                f"{opcode}: {label} {tile!r} has a 32-bit integer dtype", hint="copy it to float32 first"
            )
    check_command(opcode, reduce_cmd, (Reduce.reduce, Reduce.reset_reduce, Reduce.load_reduce))
    check_initial(opcode, reduce_cmd, imm1, name="imm1")
    operands = [dst, src]
    steps = _with_scalar(opcode, op0, read(src), imm0, "imm0", operands)
    if isinstance(imm1, NkiTensor):
        operands.append(imm1)
    rows = steps.reshape(steps.shape[0], -1)
    start = starting_values(opcode, engine.vector, src, op1, reduce_cmd, imm1)
    results = _running(op1, start, rows)
    keep(engine.vector, src, results[:, -1])
    write(dst, results)
    return record(opcode, engine.vector, operands, name, op=op0.name, op1=op1.name)


def _running(op: Operator, start: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """register = row[i] op register for every column i: [P, N] values that the register takes."""
    if op is not subtract:  # symmetric: the ufunc accumulates in the same order
        series = np.concatenate([start[:, None], rows], axis=1)
        running: np.ndarray = op.alu.accumulate(series, axis=1)
        return running[:, 1:]
    results = np.empty_like(rows)
    register = start
    for column in range(rows.shape[1]):
        register = rows[:, column] - register
        results[:, column] = register
    return results


def _with_scalar(
    opcode: str, op: Operator, values: np.ndarray, operand: Any, label: str, operands: list[NkiTensor]
) -> np.ndarray:
    """values op operand in float32; unary operators take None or 0."""
    if op.unary:
        if operand is not None and (isinstance(operand, NkiTensor) or operand != 0):
            raise ConstraintError(
                f"{opcode}: {op!r} takes no operand, but {label} is {operand!r}",
                hint=f"pass {label}=None or 0",
            )
        return np.asarray(op.alu(values), dtype=FLOAT32)
    if isinstance(operand, NkiTensor):
        check_dtype(opcode, label, operand, (float32,))
        operands.append(operand)
    return np.asarray(op.alu(values, scalar_or_vector(opcode, label, operand, values)), dtype=FLOAT32)


def _check_maximum(opcode: str, reduce_op: Operator) -> None:
    if reduce_op is not maximum:
        raise ConstraintError(f"{opcode}: reduce_op {reduce_op!r} must be nl.maximum")


def write_and_reduce(
    opcode: str,
    dst: NkiTensor,
    data: NkiTensor,
    results: np.ndarray,
    reduction: Operator,
    command: reduce_cmd,
    reduce_res: NkiTensor | None,
    operands: list[NkiTensor],
    initial: Any = None,
    *,
    negate: bool = False,
    name: str | None = None,
    **attributes: Any,
) -> NkiInstruction:
    """Reduce `results` into VectorE's registers as `command` says, write dst, then reduce_res, and record.

    The registers take the float32 results, before they are rounded to dst's dtype.
    """
    if command is Reduce.idle:
        # Even then the registers may change (select_reduce and exponential documentation).
        forget(engine.vector, data)
        if reduce_res is not None:
            raise ConstraintError(
                f"{opcode}: reduce_res {reduce_res!r} is given, but reduce_cmd is idle",
                hint="pass reduce_cmd=nisa.reduce_cmd.reset_reduce",
            )
        write(dst, results)
        return record(opcode, engine.vector, operands, name, **attributes)
    if reduce_res is not None:
        check_result_tile(opcode, reduce_res, data)
    start = starting_values(opcode, engine.vector, data, reduction, command, initial)
    registers = reduced(reduction, start, results)
    keep(engine.vector, data, registers)
    write(dst, results)
    if reduce_res is None:
        return record(opcode, engine.vector, operands, name, **attributes)
    write_result(reduce_res, registers, negate=negate)
    operands.insert(1, reduce_res)
    return record(opcode, engine.vector, operands, name, writes=2, reads_accumulator=True, **attributes)
