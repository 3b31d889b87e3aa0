"""VectorE: elementwise arithmetic, reductions along the free dimensions, and moves between SBUF and PSUM.

Arithmetic is float32 whatever the dtypes, rounded once on write; bitwise operators see integers untouched.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from neuron_port.simulator.checks import (
    PSUM,
    check_destination,
    check_engine,
    check_generation,
    check_no_psum,
    check_not_both_psum,
    check_source,
    check_tensors,
    check_tiles,
)
from neuron_port.simulator.context import current_run, record
from neuron_port.simulator.dtypes import FLOAT32, int32, uint32
from neuron_port.simulator.errors import ConstraintError
from neuron_port.simulator.instructions.indirect_operands import takes_indirection
from neuron_port.simulator.instructions.operators import (
    GPSIMD_ONLY,
    Operator,
    add,
    multiply,
    power,
)
from neuron_port.simulator.tensor import NkiTensor
from neuron_port.simulator.trace import NkiInstruction, engine
from neuron_port.simulator.values import (
    compute,
    fill,
    read,
    read_like,
    scalar_or_vector,
    write,
    write_raw,
)

Engine = engine
WORD = (int32, uint32)
VECTOR_OR_GPSIMD = (engine.vector, engine.gpsimd)


def check_operator(opcode: str, op: Any, *, unary: bool | None = None, reducible: bool = False) -> Operator:
    """`op` is an operator of the ALU (and reducible, and not unary, as asked)."""
    if not isinstance(op, Operator) or op.alu is None:
        hint = "divide by multiplying with nisa.reciprocal" if getattr(op, "name", "") == "divide" else None
        raise ConstraintError(
            f"{opcode}: {op!r} is no operator of the ALU", hint=hint or "pass a token such as nl.add"
        )
    if op.since > 2:
        check_generation(opcode, op.since, f"{op!r} as an operator of the ALU")
    if unary is not None and op.unary is not unary:
        raise ConstraintError(f"{opcode}: {op!r} takes {'one input' if op.unary else 'two inputs'}")
    if reducible and op.reduce is None:
        raise ConstraintError(
            f"{opcode}: {op!r} cannot reduce", hint="reduce with add, multiply, maximum or minimum"
        )
    return op


@takes_indirection("dst", "src")
def tensor_copy(
    dst: NkiTensor, src: NkiTensor, engine: engine = engine.unknown, name: str | None = None
) -> NkiInstruction:
    """dst = src between SBUF and PSUM; equal dtypes copy bits, others go through float32."""
    if src.__class__ is not NkiTensor or dst.__class__ is not NkiTensor:
        check_tensors("tensor_copy", ("dst", "src"), dst, src)
        src, dst = src.resolved(), dst.resolved()
    check_tiles("tensor_copy", ("dst", "src"), dst, src)
    chosen = Engine.vector
    if engine is not Engine.unknown:
        check_engine("tensor_copy", engine, (Engine.vector, Engine.scalar, Engine.gpsimd))
        chosen = engine
        if engine is Engine.scalar:
            check_generation(
                "tensor_copy", 3, "a copy on ScalarE (use nisa.activation(op=nl.copy) on NeuronCore-v2)"
            )
        if engine is Engine.gpsimd:
            check_no_psum("tensor_copy", ("dst", "src"), dst, src)
    if dst.dtype is src.dtype:
        write_raw(dst, src.array)
    else:
        write(dst, read(src))
    if (
        engine is Engine.unknown
    ):  # the compiler selects by engine workload (API reference); values are the same
        return record("tensor_copy", chosen, (dst, src), name, any_engine=True)
    return record("tensor_copy", chosen, (dst, src), name)


@takes_indirection("dst", "data1")
def tensor_tensor(
    dst: NkiTensor,
    data1: NkiTensor,
    data2: NkiTensor,
    op: Operator,
    engine: engine = engine.unknown,
    name: str | None = None,
) -> NkiInstruction:
    """dst = data1 op data2 elementwise, without broadcasting.

    Not both inputs in PSUM. nl.power runs on GpSimdE, as do 32-bit integers (exactly) without PSUM operands.
    """
    check_tiles("tensor_tensor", ("dst", "data1", "data2"), dst, data1, data2)
    if op.__class__ is not Operator or op.alu is None or op.unary or op.since > 2:
        check_operator("tensor_tensor", op, unary=False)
    if data1.storage.buffer is PSUM and data2.storage.buffer is PSUM:
        check_not_both_psum("tensor_tensor", ("data1", "data2"), data1, data2)
    chosen = engine
    if op.bitwise:
        _check_integers("tensor_tensor", op, ("dst", "data1", "data2"), dst, data1, data2)
        check_engine("tensor_tensor", engine, (Engine.vector,))
        write_raw(dst, op.alu(data1.array, data2.array.reshape(data1.array.shape)))
        return record("tensor_tensor", Engine.vector, (dst, data1, data2), name, op=op.name)
    in_psum = PSUM in (dst.buffer, data1.buffer, data2.buffer)
    if engine is Engine.unknown:
        words = dst.dtype in WORD and data1.dtype in WORD and data2.dtype in WORD
        chosen = Engine.gpsimd if op is power or (words and not in_psum) else Engine.vector
    else:
        check_engine("tensor_tensor", engine, (Engine.gpsimd,) if op is power else VECTOR_OR_GPSIMD)
    if chosen is Engine.gpsimd:
        if in_psum:
            check_no_psum("tensor_tensor", ("dst", "data1", "data2"), dst, data1, data2)
        if dst.dtype in WORD and data1.dtype in WORD and data2.dtype in WORD:
            write_raw(dst, _exact_integers(op, data1, data2, dst))
            return record("tensor_tensor", chosen, (dst, data1, data2), name, op=op.name)
    first = read(data1)
    compute(dst, op.alu, first, read_like(data2, first.shape))
    return record("tensor_tensor", chosen, (dst, data1, data2), name, op=op.name)


def _exact_integers(op: Operator, data1: NkiTensor, data2: NkiTensor, dst: NkiTensor) -> np.ndarray:
    """32-bit integer arithmetic as GpSimdE does it: wraps around, never rounds."""
    first = data1.array.astype(np.int64)
    return op.alu(first, data2.array.astype(np.int64).reshape(first.shape)).astype(dst.array.dtype)


def _check_integers(opcode: str, op: Operator, names: tuple[str, ...], *tiles: NkiTensor) -> None:
    for name, tile in zip(names, tiles, strict=True):
        if not tile.dtype.is_integer:
            raise ConstraintError(
                f"{opcode}: {op!r} works on bits, but {name} {tile!r} has dtype {tile.dtype}",
                hint="use integer tiles, or .view(nl.uint32) for the bits of a float32 tile",
            )


@takes_indirection("dst", "data")
def tensor_scalar(
    dst: NkiTensor,
    data: NkiTensor,
    op0: Operator,
    operand0: float | NkiTensor | None,
    reverse0: bool = False,
    op1: Operator | None = None,
    operand1: float | NkiTensor | None = None,
    reverse1: bool = False,
    engine: engine = engine.unknown,
    name: str | None = None,
) -> NkiInstruction:
    """dst = (data op0 operand0) op1 operand1, each operand a number or a float32 [P, 1] tile.

    rsqrt and power run on GpSimdE (no PSUM); ScalarE from NeuronCore-v3 on for multiply-add, multiply, add.
    """
    check_tiles("tensor_scalar", ("dst", "data"), dst, data)
    check_operator("tensor_scalar", op0)
    if op0.bitwise:
        return _tensor_scalar_bits(dst, data, op0, operand0, reverse0, op1, operand1, reverse1, engine, name)
    chosen = _tensor_scalar_engine(dst, data, op0, op1, engine)
    values = read(data)
    operands = [dst, data]
    operation, arguments = _scalar_step(values, op0, operand0, reverse0, "operand0", operands)
    if op1 is None:
        if operand1 is not None:
            raise ConstraintError("tensor_scalar: operand1 is given without op1")
    else:
        if check_operator("tensor_scalar", op1).bitwise:
            raise ConstraintError(
                f"tensor_scalar: op0 {op0!r} is arithmetic and op1 {op1!r} bitwise",
                hint="split it into two instructions",
            )
        values = operation(*arguments)
        if values.dtype is not FLOAT32:
            values = values.astype(FLOAT32)  # comparisons give 1.0 and 0.0
        operation, arguments = _scalar_step(values, op1, operand1, reverse1, "operand1", operands)
    compute(dst, operation, *arguments)
    op1_name = None if op1 is None else op1.name
    if engine is Engine.unknown:
        return record("tensor_scalar", chosen, operands, name, op=op0.name, op1=op1_name, any_engine=True)
    return record("tensor_scalar", chosen, operands, name, op=op0.name, op1=op1_name)


def _scalar_step(
    values: np.ndarray, op: Operator, operand: Any, reverse: bool, name: str, operands: list[NkiTensor]
) -> tuple[Any, tuple[Any, ...]]:
    """The function and arguments of one arithmetic step `values op operand`."""
    if op.unary:
        if operand is not None and (isinstance(operand, NkiTensor) or operand != 0):
            raise ConstraintError(
                f"tensor_scalar: {op!r} takes no operand, but {name} is {operand!r}",
                hint=f"pass {name}=None or 0",
            )
        return op.alu, (values,)
    if isinstance(operand, NkiTensor):
        if operand.dtype != "float32":
            raise ConstraintError(
                f"tensor_scalar: {name} {operand!r} has dtype {operand.dtype}, must be float32",
                hint="vector operands of arithmetic operators are float32 tiles",
            )
        operands.append(operand)
    scalar = scalar_or_vector("tensor_scalar", name, operand, values)
    if reverse:
        shape = np.shape(scalar)
        return op.alu, ((np.broadcast_to(scalar, values.shape) if shape != values.shape else scalar), values)
    return op.alu, (values, scalar)


def _tensor_scalar_engine(
    dst: NkiTensor, data: NkiTensor, op0: Operator, op1: Operator | None, chosen: engine
) -> engine:
    if op0 in GPSIMD_ONLY or op1 in GPSIMD_ONLY:
        check_engine("tensor_scalar", chosen, (Engine.gpsimd,))
        if dst.buffer is PSUM or data.buffer is PSUM:
            check_no_psum("tensor_scalar", ("dst", "data"), dst, data)
        return Engine.gpsimd
    if chosen is Engine.unknown or chosen is Engine.vector:
        return Engine.vector
    check_engine("tensor_scalar", chosen, (Engine.vector, Engine.scalar, Engine.gpsimd))
    if chosen is Engine.scalar:
        check_generation("tensor_scalar", 3, "ScalarE")
        if (op0, op1) not in ((multiply, add), (multiply, None), (add, None)):
            raise ConstraintError(
                f"tensor_scalar: ScalarE cannot run op0 {op0!r} with op1 {op1!r}",
                hint="ScalarE has (multiply, add), (multiply) and (add)",
            )
    else:
        check_no_psum("tensor_scalar", ("dst", "data"), dst, data)
        # rsqrt and power were answered above (API reference of tensor_scalar: engine).
        raise ConstraintError(
            f"tensor_scalar: engine gpsimd cannot run op0 {op0!r}",
            hint="GpSimdE runs rsqrt and power only; leave engine out for VectorE",
        )
    return chosen


def _tensor_scalar_bits(
    dst: NkiTensor,
    data: NkiTensor,
    op0: Operator,
    operand0: Any,
    reverse0: bool,
    op1: Operator | None,
    operand1: Any,
    reverse1: bool,
    chosen: engine,
    name: str | None,
) -> NkiInstruction:
    """The bitwise form: integers in, integers out, on VectorE."""
    check_engine("tensor_scalar", chosen, (Engine.vector,))
    _check_integers("tensor_scalar", op0, ("dst", "data"), dst, data)
    if op1 is not None and not check_operator("tensor_scalar", op1).bitwise:
        raise ConstraintError(
            f"tensor_scalar: op0 {op0!r} is bitwise and op1 {op1!r} arithmetic",
            hint="split it into two instructions",
        )
    bits = data.array
    for op, operand, reverse, label in (
        (op0, operand0, reverse0, "operand0"),
        (op1, operand1, reverse1, "operand1"),
    ):
        if op is None:
            continue
        if op.unary:
            bits = op.alu(bits)
            continue
        if isinstance(operand, NkiTensor):
            _check_integers("tensor_scalar", op, (label,), operand)
            check_source("tensor_scalar", label, operand)
            scalar = operand.array.reshape((bits.shape[0],) + (1,) * (bits.ndim - 1)).astype(bits.dtype)
        elif isinstance(operand, int | np.integer):
            scalar = np.array(int(operand) & ((1 << 8 * bits.itemsize) - 1)).astype(bits.dtype)
        else:
            raise ConstraintError(f"tensor_scalar: {label} is {operand!r}, must be an integer for {op!r}")
        bits = op.alu(np.broadcast_to(scalar, bits.shape).copy(), bits) if reverse else op.alu(bits, scalar)
    write_raw(dst, bits.astype(dst.array.dtype))
    operands = [dst, data, *(o for o in (operand0, operand1) if isinstance(o, NkiTensor))]
    return record("tensor_scalar", Engine.vector, operands, name, op=op0.name)


def scalar_tensor_tensor(
    dst: NkiTensor,
    data: NkiTensor,
    op0: Operator,
    operand0: float | NkiTensor,
    op1: Operator,
    operand1: NkiTensor,
    reverse0: bool = False,
    reverse1: bool = False,
    name: str | None = None,
) -> NkiInstruction:
    """dst = (data op0 operand0) op1 operand1: operand0 a number or [P, 1], operand1 a tile; arithmetic."""
    check_tiles("scalar_tensor_tensor", ("dst", "data", "operand1"), dst, data, operand1)
    check_not_both_psum("scalar_tensor_tensor", ("data", "operand1"), data, operand1)
    for op in (op0, op1):
        if check_operator("scalar_tensor_tensor", op, unary=False).bitwise:
            raise ConstraintError(f"scalar_tensor_tensor: {op!r} is bitwise", hint="use nisa.tensor_tensor")
    values = read(data)
    scalar = scalar_or_vector("scalar_tensor_tensor", "operand0", operand0, values)
    partial = op0.alu(scalar, values) if reverse0 else op0.alu(values, scalar)
    if partial.dtype is not FLOAT32:
        partial = partial.astype(FLOAT32)
    other = read_like(operand1, values.shape)
    compute(dst, op1.alu, *((other, partial) if reverse1 else (partial, other)))
    operands = (dst, data, operand1, operand0) if isinstance(operand0, NkiTensor) else (dst, data, operand1)
    return record("scalar_tensor_tensor", Engine.vector, operands, name, op=op0.name, op1=op1.name)


@takes_indirection("dst", "data")
def tensor_reduce(
    dst: NkiTensor,
    op: Operator,
    data: NkiTensor,
    axis: int | tuple[int, ...],
    negate: bool = False,
    keepdims: bool = False,
    name: str | None = None,
) -> NkiInstruction:
    """dst = data reduced by op over its last free dimensions `axis`; negate multiplies the result by -1."""
    check_source("tensor_reduce", "data", data)
    check_destination("tensor_reduce", "dst", dst)
    check_operator("tensor_reduce", op, unary=False, reducible=True)
    axes = reduction_axes("tensor_reduce", data, axis)
    kept = data.array.shape[: axes[0]]
    if dst.array.shape[0] != kept[0] or dst.size != int(np.prod(kept)):
        raise ConstraintError(
            f"tensor_reduce: dst {dst!r} must hold the {tuple(kept)} results of reducing axes {axes} "
            f"of data {data!r}"
        )
    if op.bitwise:
        if negate:
            raise ConstraintError(
                f"tensor_reduce: negate is given with {op!r}, which works on bits",
                hint="negate goes with arithmetic operators; invert bits with nisa.tensor_scalar(op0=nl.invert)",
            )
        _check_integers("tensor_reduce", op, ("dst", "data"), dst, data)
        write_raw(dst, op.reduce(data.array, axis=axes).astype(dst.array.dtype))
        return record("tensor_reduce", Engine.vector, (dst, data), name, op=op.name)
    result = np.asarray(op.reduce(read(data), axis=axes), dtype=np.float32)
    write(dst, -result if negate else result)
    return record("tensor_reduce", Engine.vector, (dst, data), name, op=op.name)


def reduction_axes(opcode: str, data: NkiTensor, axis: Any) -> tuple[int, ...]:
    """The axes in order; they must be the last free dimensions."""
    rank = data.array.ndim
    given = (axis,) if isinstance(axis, int) else tuple(axis)
    axes = tuple(sorted(a + rank if a < 0 else a for a in given))
    if not axes or axes[0] == 0 or axes != tuple(range(rank - len(axes), rank)):
        raise ConstraintError(
            f"{opcode}: axis {axis} of data {data!r} must be the last free dimensions",
            hint="permute the free dimensions; reduce over partitions with a matmul by ones",
        )
    return axes


def reciprocal(dst: NkiTensor, data: NkiTensor, name: str | None = None) -> NkiInstruction:
    """dst = 1 / data in float32."""
    check_tiles("reciprocal", ("dst", "data"), dst, data)
    compute(dst, np.reciprocal, read(data))
    return record("reciprocal", Engine.vector, (dst, data), name)


def memset(
    dst: NkiTensor, value: float, engine: engine = engine.unknown, name: str | None = None
) -> NkiInstruction:
    """Fill dst with a constant; integer tiles take an integer."""
    check_tiles("memset", ("dst",), dst)
    if dst.dtype.is_integer and not isinstance(value, int | np.integer):
        if value != 0:
            raise ConstraintError(
                f"memset: value {value!r} is no integer, but dst {dst!r} has dtype {dst.dtype}",
                hint="write the constant as an integer",
            )
        # The migration guide to NKI 0.3 refuses it, and the public nki-library clears uint8 scales with it.
        current_run().warn(f"memset: value {value!r} for the integers of {dst!r}; write 0")
        value = 0
    if dst.dtype.is_packed and value != 0:
        raise ConstraintError(
            f"memset: value {value!r} into dst {dst!r}: packed dtypes take 0 only",
            hint="copy packed values from HBM with nisa.dma_copy, or quantize with nisa.quantize_mx",
        )
    chosen = Engine.vector
    if engine is not Engine.unknown:
        check_engine("memset", engine, VECTOR_OR_GPSIMD)
        chosen = engine
        if engine is Engine.gpsimd:
            check_no_psum("memset", ("dst",), dst)
    if dst.dtype.is_integer:
        limits = np.iinfo(dst.dtype.native)
        if not limits.min <= value <= limits.max:
            raise ConstraintError(f"memset: value {value} does not fit {dst!r}")
        fill(dst, value)
    else:
        fill(dst, dst.dtype.rounded(np.array([value], dtype=np.float32))[0])
    return record("memset", chosen, (dst,), name)


def vector_transpose(dst: NkiTensor, data: NkiTensor, name: str | None) -> NkiInstruction:
    """The transpose of up to [32, 32] on VectorE; bits are kept."""
    partitions = data.array.shape[0]
    free = data.size // partitions
    if partitions > 32 or free > 32:
        raise ConstraintError(
            f"nc_transpose: data {data!r} exceeds [32, 32], the limit of VectorE",
            hint="use engine=nisa.engine.tensor from SBUF to PSUM",
        )
    write_raw(dst, data.array.reshape(partitions, free).T)
    return record("nc_transpose", Engine.vector, (dst, data), name)
