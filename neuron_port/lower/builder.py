"""Builds one HLO computation instruction by instruction: what operator lowerings are written with.

Values are numbered: an instruction that repeats an earlier one (same opcode, operands, attributes) is that
earlier one. Infinite constants never enter a graph: they become the dtype's largest finite value of that
sign, because Neuron's transposes turn infinities into NaN.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from neuron_port.errors import LoweringError
from neuron_port.lower.module import Computation, Instruction, Shape, shape_message
from neuron_port.lower.schema import LITERAL_FIELDS, SCHEMA, VARINT_LITERALS
from neuron_port.lower.wire import encode

LITERAL_LIMIT_BYTES = 1024
FLOATS = ("float32", "bfloat16", "float16")
INTEGERS = ("int32", "int16", "int8", "uint8")
_PURE_EXCEPT = ("parameter",)


@dataclass(frozen=True, slots=True)
class Value:
    """The result of an instruction."""

    id: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def rank(self) -> int:
        return len(self.shape)

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


class Builder:
    """Instructions of the entry computation, and the small functions that reduce, sort and scatter call."""

    def __init__(self, outer: Builder | None = None) -> None:
        """With `outer`, builds a function that a graph under construction calls: ids and functions are shared."""
        self.instructions: dict[int, Instruction] = {}
        self.functions: dict[str, Computation] = {} if outer is None else outer.functions
        self._numbers: dict[Any, int] = {}
        self._ids: Iterator[int] = itertools.count(1) if outer is None else outer._ids

    # -- instructions
    # ------------------------------------------------------------------------------------------------

    def add(self, opcode: str, shape: Shape, operands: Sequence[int] = (), **attributes: Any) -> int:
        """Append an instruction and return its id; an equal earlier instruction is reused."""
        key = (opcode, shape, tuple(operands), encode(SCHEMA, "HloInstructionProto", attributes))
        if opcode not in _PURE_EXCEPT and key in self._numbers:
            return self._numbers[key]
        number = self._take_id()
        self.instructions[number] = Instruction(number, opcode, shape, tuple(operands), attributes)
        self._numbers[key] = number
        return number

    def _take_id(self) -> int:
        return next(self._ids)

    def op(self, opcode: str, dtype: str, shape: Sequence[int], *operands: Value, **attributes: Any) -> Value:
        """Append an instruction with one array result."""
        number = self.add(opcode, Shape(dtype, tuple(shape)), [value.id for value in operands], **attributes)
        return Value(number, tuple(shape), dtype)

    def elementwise(self, opcode: str, first: Value, *others: Value, dtype: str | None = None) -> Value:
        """Apply an elementwise opcode after broadcasting the operands to their common shape."""
        shape = broadcast_shape([first.shape, *(value.shape for value in others)])
        operands = [self.broadcast(value, shape) for value in (first, *others)]
        return self.op(opcode, dtype or first.dtype, shape, *operands)

    def compare(self, direction: str, left: Value, right: Value) -> Value:
        """Compare elementwise; direction is EQ, NE, LT, LE, GT or GE."""
        shape = broadcast_shape([left.shape, right.shape])
        operands = self.broadcast(left, shape), self.broadcast(right, shape)
        return self.op("compare", "bool", shape, *operands, comparison_direction=direction)

    def select(self, condition: Value, on_true: Value, on_false: Value) -> Value:
        """Choose elementwise, after broadcasting to the common shape."""
        shape = broadcast_shape([condition.shape, on_true.shape, on_false.shape])
        operands = [self.broadcast(value, shape) for value in (condition, on_true, on_false)]
        return self.op("select", on_true.dtype, shape, *operands)

    def convert(self, value: Value, dtype: str) -> Value:
        """Change the dtype; a number becomes bool by comparing with zero, as in torch."""
        if value.dtype == dtype:
            return value
        if dtype == "bool":
            return self.compare("NE", value, self.constant(0, value.dtype))
        return self.op("convert", dtype, value.shape, value)

    # -- constants
    # ---------------------------------------------------------------------------------------------------

    def constant(self, value: Any, dtype: str) -> Value:
        """A literal from a Python number or a CPU tensor of at most `LITERAL_LIMIT_BYTES`.

        Raises LoweringError for larger literals and for integers beyond the dtype.
        """
        number = (
            torch.tensor(value, dtype=torch.float64) if isinstance(value, float) else torch.as_tensor(value)
        )
        tensor = _finite(number, dtype).contiguous()
        shape = Shape(dtype, tuple(tensor.shape))
        if shape.size_bytes > LITERAL_LIMIT_BYTES:
            raise LoweringError(
                f"Constant {shape} is {shape.size_bytes} bytes, more than {LITERAL_LIMIT_BYTES}",
                hint="Register it as a buffer or parameter, so that it becomes an input of the graph.",
            )
        literal = {"shape": shape_message(shape), LITERAL_FIELDS[dtype]: _literal_values(tensor, dtype)}
        return Value(self.add("constant", shape, literal=literal), shape.dimensions, dtype)

    def filled(self, value: Any, dtype: str, shape: Sequence[int]) -> Value:
        """A tensor with the same number everywhere."""
        return self.broadcast(self.constant(value, dtype), shape)

    def iota(self, dtype: str, shape: Sequence[int], axis: int) -> Value:
        """A tensor that counts 0, 1, 2 .. along `axis`."""
        return self.op("iota", dtype, shape, dimensions=[axis])

    # -- shapes
    # ------------------------------------------------------------------------------------------------------

    def reshape(self, value: Value, shape: Sequence[int]) -> Value:
        return value if value.shape == tuple(shape) else self.op("reshape", value.dtype, shape, value)

    def broadcast(self, value: Value, shape: Sequence[int]) -> Value:
        """Broadcast as torch does: align at the right, stretch dimensions of size 1."""
        target = tuple(shape)
        if value.shape == target:
            return value
        offset = len(target) - value.rank
        kept = [axis for axis in range(value.rank) if value.shape[axis] == target[axis + offset]]
        narrow = self.reshape(value, [value.shape[axis] for axis in kept])
        return self.broadcast_in_dim(narrow, target, [axis + offset for axis in kept])

    def broadcast_in_dim(self, value: Value, shape: Sequence[int], axes: Sequence[int]) -> Value:
        """Place axis i of `value` at axis `axes[i]` of the result and repeat along the others."""
        if value.shape == tuple(shape):
            return value
        return self.op("broadcast", value.dtype, shape, value, dimensions=list(axes))

    def transpose(self, value: Value, order: Sequence[int]) -> Value:
        order = [axis % value.rank for axis in order]
        if order == list(range(value.rank)):
            return value
        return self.op(
            "transpose", value.dtype, [value.shape[axis] for axis in order], value, dimensions=order
        )

    def slice(self, value: Value, axis: int, start: int, limit: int, stride: int = 1) -> Value:
        """Elements start, start + stride .. below limit of `axis`; all bounds are inside the axis."""
        if (start, limit, stride) == (0, value.shape[axis], 1):
            return value
        bounds = [{"start": 0, "limit": size, "stride": 1} for size in value.shape]
        bounds[axis] = {"start": start, "limit": limit, "stride": stride}
        shape = list(value.shape)
        shape[axis] = max(0, math.ceil((limit - start) / stride))
        return self.op("slice", value.dtype, shape, value, slice_dimensions=bounds)

    def concatenate(self, values: Sequence[Value], axis: int) -> Value:
        if len(values) == 1:
            return values[0]
        shape = list(values[0].shape)
        shape[axis] = sum(value.shape[axis] for value in values)
        return self.op("concatenate", values[0].dtype, shape, *values, dimensions=[axis])

    def pad(
        self,
        value: Value,
        low: Sequence[int],
        high: Sequence[int],
        fill: Any,
        between: Sequence[int] | None = None,
    ) -> Value:
        """Add `low`, `high` and `between` elements of `fill` at the ends and gaps of each axis; negative ends cut."""
        gaps = list(between or [0] * value.rank)
        shape = [
            size + max(0, size - 1) * gap + before + after
            for size, gap, before, after in zip(value.shape, gaps, low, high, strict=True)
        ]
        edges = [
            {"edge_padding_low": a, "edge_padding_high": b, "interior_padding": gap}
            for a, b, gap in zip(low, high, gaps, strict=True)
        ]
        constant = self.constant(fill, value.dtype)
        return self.op("pad", value.dtype, shape, value, constant, padding_config={"dimensions": edges})

    # -- matrices and reductions
    # -------------------------------------------------------------------------------------

    def matmul(self, left: Value, right: Value) -> Value:
        """[.., M, K] x [.., K, N] -> [.., M, N], leading axes equal; a transposed operand is read in place.

        The result keeps the operands' dtype. In bf16 that is one rounding of a float32 sum, on TensorE (PSUM
        is float32), on XLA-CPU and in torch alike, and it is the form that torch-xla hands to neuronx-cc.
        """
        batch = left.rank - 2
        shape = [*left.shape[:-1], right.shape[-1]]
        left, left_axis = self._through_transpose(left, batch + 1)
        right, right_axis = self._through_transpose(right, batch)
        axes = {
            "lhs_contracting_dimensions": [left_axis],
            "rhs_contracting_dimensions": [right_axis],
            "lhs_batch_dimensions": list(range(batch)),
            "rhs_batch_dimensions": list(range(batch)),
        }
        return self.op("dot", left.dtype, shape, left, right, dot_dimension_numbers=axes)

    def _through_transpose(self, value: Value, axis: int) -> tuple[Value, int]:
        made = self.instructions[value.id]
        last = value.rank - 1
        swapped = [*range(last - 1), last, last - 1]
        if made.opcode != "transpose" or made.attributes["dimensions"] != swapped:
            return value, axis
        source = self.instructions[made.operands[0]]
        return Value(source.id, source.shape.dimensions, value.dtype), last if axis == last - 1 else last - 1

    def reduce(self, opcode: str, value: Value, axes: Sequence[int], keep: bool = False) -> Value:
        """Reduce with add, multiply, maximum, minimum, and, or. `keep` leaves the axes with size 1.

        The start value is the finite identity (finfo.min for maximum): exact for every finite operand.
        """
        reduced = sorted({axis % value.rank for axis in axes}) if value.rank else []
        kept = [1 if axis in reduced else size for axis, size in enumerate(value.shape)]
        if reduced:
            shape = [size for axis, size in enumerate(value.shape) if axis not in reduced]
            start = self.constant(identity(opcode, value.dtype), value.dtype)
            called = self.scalar_function(opcode, value.dtype)
            value = self.op(
                "reduce",
                value.dtype,
                shape,
                value,
                start,
                dimensions=reduced,
                called_computation_ids=[called],
            )
        return self.reshape(value, kept) if keep else value

    def scalar_function(self, opcode: str, dtype: str) -> int:
        """The id of a computation (x, y) -> opcode(x, y); opcode "second" returns y."""
        scalar = Shape(dtype)
        if opcode == "second":
            return self._function(f"second_{dtype}", [scalar, scalar], None)
        return self._function(f"{opcode}_{dtype}", [scalar, scalar], (opcode, scalar, (0, 1), {}))

    def descending(self, dtype: str, descending: bool = True) -> int:
        """The id of a sort comparator on (key, key, int32 payload, int32 payload)."""
        direction = "GT" if descending else "LT"
        parameters = [Shape(dtype), Shape(dtype), Shape("int32"), Shape("int32")]
        body = ("compare", Shape("bool"), (0, 1), {"comparison_direction": direction})
        return self._function(f"{direction.lower()}_{dtype}", parameters, body)

    def keep_function(
        self, name: str, parameters: int, root: int, instructions: Sequence[Instruction]
    ) -> int:
        """Keep a function that a Builder of its own has built, and return its id."""
        names = tuple(f"p{number}" for number in range(parameters))
        self.functions[name] = Computation(self._take_id(), name, root, tuple(instructions), names)
        return self.functions[name].id

    def _function(self, name: str, parameters: list[Shape], body: tuple[Any, ...] | None) -> int:
        if name not in self.functions:
            made = [
                Instruction(self._take_id(), "parameter", shape, (), {"parameter_number": number})
                for number, shape in enumerate(parameters)
            ]
            if body is not None:
                opcode, shape, operands, attributes = body
                ids = tuple(made[index].id for index in operands)
                made.append(Instruction(self._take_id(), opcode, shape, ids, attributes))
            root = made[-1].id
            names = tuple(f"p{number}" for number in range(len(parameters)))
            self.functions[name] = Computation(self._take_id(), name, root, tuple(made), names)
        return self.functions[name].id


def broadcast_shape(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The common shape of torch's broadcasting."""
    return tuple(torch.broadcast_shapes(*shapes))


def identity(opcode: str, dtype: str) -> int | float | bool:
    """What leaves every finite element as it is when combined with it."""
    if opcode in ("maximum", "minimum"):
        limits = torch.finfo(getattr(torch, dtype)) if dtype in FLOATS else torch.iinfo(getattr(torch, dtype))
        return limits.min if opcode == "maximum" else limits.max
    return {"add": 0, "multiply": 1, "and": True, "or": False}[opcode]


def _finite(tensor: torch.Tensor, dtype: str) -> torch.Tensor:
    target = getattr(torch, dtype)
    if dtype in FLOATS:
        limits = torch.finfo(target)
        return tensor.to(torch.float64).clamp(limits.min, limits.max).to(target)
    if dtype in INTEGERS and tensor.numel():
        limits_int = torch.iinfo(target)
        low, high = tensor.min().item(), tensor.max().item()
        if low < limits_int.min or high > limits_int.max:
            raise LoweringError(
                f"Constant {low} .. {high} does not fit into {dtype}",
                hint="Integers are 32-bit on a NeuronCore: stay within torch.iinfo(torch.int32).",
            )
    return tensor.to(target)


def _literal_values(tensor: torch.Tensor, dtype: str) -> Any:
    if LITERAL_FIELDS[dtype] in VARINT_LITERALS:
        return [int(item) for item in tensor.reshape(-1).tolist()]
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
