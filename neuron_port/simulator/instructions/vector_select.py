"""VectorE: selection by masks and bounds, with the engine's accumulator registers for row reductions.

The 128 float32 registers are shared by range_select, select_reduce, tensor_scalar_reduce and
tensor_scalar_cumulative.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from neuron_port.simulator.checks import (
    check_destination,
    check_dtype,
    check_generation,
    check_not_both_psum,
    check_tiles,
)
from neuron_port.simulator.context import Run, current_run, record
from neuron_port.simulator.dtypes import FLOAT32, float32, int8, int16, int32, tfloat32, uint8, uint16, uint32
from neuron_port.simulator.errors import ConstraintError, UnwrittenReadError
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
from neuron_port.simulator.instructions.scalar_engine import reduce_cmd
from neuron_port.simulator.instructions.vector_engine import check_operator
from neuron_port.simulator.memory import BY_OTHERS
from neuron_port.simulator.tensor import NkiTensor
from neuron_port.simulator.trace import NkiInstruction, engine
from neuron_port.simulator.values import read, refuse_write, scalar_or_vector, write

Reduce = reduce_cmd
FLOAT32_MIN = float(np.finfo(np.float32).min)


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
    """dst = on_true where predicate else on_false (number or [P, 1]); optionally the maximum of each row."""
    check_tiles("select_reduce", ("dst", "predicate", "on_true"), dst, predicate, on_true)
    check_not_both_psum("select_reduce", ("predicate", "on_true"), predicate, on_true)
    check_dtype("select_reduce", "predicate", predicate, (uint8, int8, uint16, int16))
    if on_true.dtype in (tfloat32, int32, uint32):
        raise ConstraintError(
            f"select_reduce: on_true {on_true!r} has dtype {on_true.dtype}, which it cannot take"
        )
    _check_maximum("select_reduce", reduce_op)
    values = read(on_true)
    chosen = predicate.array.reshape(values.shape) != 0
    if reverse_pred:
        chosen = ~chosen
    selected = np.where(chosen, values, scalar_or_vector("select_reduce", "on_false", on_false, values))
    operands = [dst, predicate, on_true]
    _reduce_rows("select_reduce", selected, maximum, reduce_cmd, reduce_res, operands)
    write(dst, selected)
    return record("select_reduce", engine.vector, operands, name, writes=1 if reduce_res is None else 2)


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
    """
    check_generation("range_select", 3)
    check_tiles("range_select", ("dst", "on_true_tile"), dst, on_true_tile)
    for op in (comp_op0, comp_op1):
        if op not in (equal, less, less_equal, greater, greater_equal):
            raise ConstraintError(
                f"range_select: {op!r} cannot compare",
                hint="use nl.equal, less, less_equal, greater or greater_equal",
            )
    if not on_true_tile.dtype.is_float:
        raise ConstraintError(f"range_select: on_true_tile {on_true_tile!r} must have a float dtype")
    for label, bound in (("bound0", bound0), ("bound1", bound1)):
        if not isinstance(bound, NkiTensor):
            raise ConstraintError(f"range_select: {label} is {bound!r}, must be a (P, 1) float32 tile")
        check_dtype("range_select", label, bound, (float32,))
    if on_false_value != FLOAT32_MIN:
        raise ConstraintError(
            f"range_select: on_false_value is {on_false_value!r}, must be {FLOAT32_MIN!r}",
            hint="leave it out; the hardware knows no other value",
        )
    _check_maximum("range_select", reduce_op)
    values = read(on_true_tile)
    partitions = values.shape[0]
    free = values.size // partitions
    if range_start + free > 2**24:
        raise ConstraintError(
            f"range_select: position {range_start + free} exceeds 2**24, where float32 counts exactly"
        )
    positions = np.arange(range_start, range_start + free, dtype=np.int64).astype(FLOAT32)
    rows = values.reshape(partitions, free)
    inside = comp_op0.alu(positions, scalar_or_vector("range_select", "bound0", bound0, rows)) & comp_op1.alu(
        positions, scalar_or_vector("range_select", "bound1", bound1, rows)
    )
    selected = np.where(inside, rows, np.float32(FLOAT32_MIN))
    operands = [dst, on_true_tile, bound0, bound1]
    _reduce_rows("range_select", selected, maximum, reduce_cmd, reduce_res, operands)
    write(dst, selected)
    return record("range_select", engine.vector, operands, name, writes=1 if reduce_res is None else 2)


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
    """dst = data op0 operand0, and reduce_res [P, 1] = its reduction over all free dimensions."""
    opcode = "tensor_scalar_reduce"
    check_tiles(opcode, ("dst", "data"), dst, data)
    if check_operator(opcode, op0, unary=False).bitwise:
        raise ConstraintError(f"{opcode}: op0 {op0!r} is bitwise, must be arithmetic")
    if reverse0:
        raise ConstraintError(
            f"{opcode}: reverse0 is not supported by the hardware", hint="use nisa.tensor_scalar"
        )
    if reduce_op not in (add, multiply, maximum, minimum):
        raise ConstraintError(
            f"{opcode}: reduce_op {reduce_op!r} must be nl.add, multiply, maximum or minimum"
        )
    values = read(data)
    operands = [dst, data]
    if isinstance(operand0, NkiTensor):
        check_dtype(opcode, "operand0", operand0, (float32,))
        operands.append(operand0)
    results = np.asarray(
        op0.alu(values, scalar_or_vector(opcode, "operand0", operand0, values)), dtype=FLOAT32
    )
    if (reduce_cmd is Reduce.load_reduce) != (reduce_init is not None):
        raise ConstraintError(
            f"{opcode}: reduce_init goes with reduce_cmd=nisa.reduce_cmd.load_reduce, and only there"
        )
    _reduce_rows(
        opcode, results, reduce_op, reduce_cmd, reduce_res, operands, reduce_init, negate=reduce_res_negate
    )
    write(dst, results)
    return record(opcode, engine.vector, operands, name, writes=1 if reduce_res is None else 2)


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
    """dst_i = register = (src_i op0 imm0) op1 register, along the free dimensions of each partition."""
    opcode = "tensor_scalar_cumulative"
    check_tiles(opcode, ("dst", "src"), dst, src)
    if check_operator(opcode, op0, unary=False).bitwise:
        raise ConstraintError(f"{opcode}: op0 {op0!r} is bitwise, must be arithmetic")
    if op1 not in (add, subtract, multiply, maximum, minimum):
        raise ConstraintError(f"{opcode}: op1 {op1!r} must be nl.add, subtract, multiply, maximum or minimum")
    for label, tile in (("dst", dst), ("src", src)):
        if tile.dtype in (int32, uint32):
            raise ConstraintError(f"{opcode}: {label} {tile!r} has a 32-bit integer dtype")
    values = read(src)
    steps = np.asarray(op0.alu(values, scalar_or_vector(opcode, "imm0", imm0, values)), dtype=FLOAT32)
    rows = steps.reshape(steps.shape[0], -1)
    register = _starting_registers(opcode, current_run(), rows.shape[0], op1, reduce_cmd, imm1)
    results = np.empty_like(rows)
    for column in range(rows.shape[1]):
        register = op1.alu(rows[:, column], register)
        results[:, column] = register
    _keep(current_run(), register)
    write(dst, results)
    return record(opcode, engine.vector, (dst, src), name)


def _check_maximum(opcode: str, reduce_op: Operator) -> None:
    if reduce_op is not maximum:
        raise ConstraintError(f"{opcode}: reduce_op {reduce_op!r} must be nl.maximum")


def _starting_registers(
    opcode: str, run: Run, partitions: int, op: Operator, command: reduce_cmd, initial: Any
) -> np.ndarray:
    """The registers before the reduction, as `command` says."""
    if command is Reduce.reset_reduce:
        return np.full(partitions, 0.0 if op is subtract else op.identity, dtype=FLOAT32)
    if command is Reduce.load_reduce:
        start = scalar_or_vector(opcode, "reduce_init", initial, np.empty((partitions, 1), FLOAT32))
        return np.broadcast_to(np.asarray(start).reshape(-1), (partitions,)).astype(FLOAT32)
    if command is not Reduce.reduce:
        raise ConstraintError(f"{opcode}: reduce_cmd {command!r} cannot be used here")
    registers = run.accumulators.get(engine.vector)
    if registers is None:
        raise UnwrittenReadError(
            f"{opcode}: the accumulator registers of VectorE were never reset, or an instruction "
            "with reduce_cmd idle has disturbed them",
            hint="start with reduce_cmd=nisa.reduce_cmd.reset_reduce",
        )
    return registers[:partitions]


def _keep(run: Run, registers: np.ndarray) -> None:
    kept = run.accumulators.get(engine.vector)
    if kept is None:
        kept = run.accumulators[engine.vector] = np.zeros(128, dtype=FLOAT32)
    kept[: registers.shape[0]] = registers


def _reduce_rows(
    opcode: str,
    values: np.ndarray,
    op: Operator,
    command: reduce_cmd,
    reduce_res: NkiTensor | None,
    operands: list[NkiTensor],
    initial: Any = None,
    *,
    negate: bool = False,
) -> None:
    """Reduce each partition's values into the registers, and into reduce_res if it is given."""
    run = current_run()
    if command is Reduce.idle:
        run.accumulators.pop(
            engine.vector, None
        )  # idle may still modify the registers (select_reduce documentation)
        if reduce_res is not None:
            raise ConstraintError(
                f"{opcode}: reduce_res {reduce_res!r} is given, but reduce_cmd is idle",
                hint="pass reduce_cmd=nisa.reduce_cmd.reset_reduce",
            )
        return
    partitions = values.shape[0]
    start = _starting_registers(opcode, run, partitions, op, command, initial)
    registers = np.asarray(op.alu(start, op.reduce(values.reshape(partitions, -1), axis=1)), dtype=FLOAT32)
    _keep(run, registers)
    if reduce_res is not None:
        if reduce_res.size != partitions or reduce_res.array.shape[0] != partitions:
            raise ConstraintError(f"{opcode}: reduce_res {reduce_res!r} must have shape ({partitions}, 1)")
        check_destination(opcode, "reduce_res", reduce_res)
        write(reduce_res, -registers if negate else registers)
        operands.insert(1, reduce_res)
