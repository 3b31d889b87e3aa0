"""An HLO module as plain records, written to and read from serialized HloModuleProto bytes.

The same records serve the emitter, the lint, the tests and anything that must look into a graph without XLA.
An instruction's `attributes` keep the names and values of the proto's own fields (`dimensions`, `literal`
...).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from neuron_port.errors import LoweringError
from neuron_port.lower.schema import MUST_ALIAS, PRIMITIVE_TYPES, SCHEMA
from neuron_port.lower.wire import decode, encode
from neuron_port.types import DTYPE_BYTES, TensorSpec

_DTYPE_NAMES = {number: name for name, number in PRIMITIVE_TYPES.items()}
_OTHER_BYTES = {
    "float8_e4m3": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "float64": 8,
    "complex64": 8,
    "complex128": 16,
}
_INSTRUCTION_FIELDS = ("id", "name", "opcode", "shape", "operand_ids")
MAX_ID = 2**31 - 1  # XLA before 2025 and the Neuron compiler refuse larger ids (pytorch/xla#9685)


@dataclass(frozen=True, slots=True)
class Shape:
    """The type of a value: an array, or a tuple of `elements` when dtype is "tuple"."""

    dtype: str
    dimensions: tuple[int, ...] = ()
    elements: tuple[Shape, ...] = ()
    dynamic: bool = False

    @property
    def size_bytes(self) -> int:
        if self.dtype == "tuple":
            return sum(element.size_bytes for element in self.elements)
        count = 1
        for dimension in self.dimensions:
            count *= dimension
        return count * (DTYPE_BYTES.get(self.dtype) or _OTHER_BYTES.get(self.dtype, 0))

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(shape=self.dimensions, dtype=self.dtype)

    def __str__(self) -> str:
        if self.dtype == "tuple":
            return f"({', '.join(map(str, self.elements))})"
        return f"{self.dtype}[{', '.join(map(str, self.dimensions))}]"


@dataclass(frozen=True, slots=True)
class Instruction:
    """One HLO instruction; `operands` are ids of instructions in the same computation."""

    id: int
    opcode: str
    shape: Shape
    operands: tuple[int, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""

    @property
    def frontend_attributes(self) -> Mapping[str, str]:
        found: Mapping[str, str] = self.attributes.get("frontend_attributes", {}).get("map", {})
        return found


@dataclass(frozen=True, slots=True)
class Computation:
    """A function: instructions, operands before users, and the id of the one that is its result."""

    id: int
    name: str
    root_id: int
    instructions: tuple[Instruction, ...]
    parameter_names: tuple[str, ...] = ()

    @property
    def root(self) -> Instruction:
        return next(item for item in self.instructions if item.id == self.root_id)

    @property
    def parameters(self) -> tuple[Instruction, ...]:
        """The parameter instructions, by parameter number."""
        found = [item for item in self.instructions if item.opcode == "parameter"]
        return tuple(sorted(found, key=lambda item: item.attributes.get("parameter_number", 0)))


@dataclass(frozen=True, slots=True)
class Alias:
    """Output `output` of the root tuple is written over parameter `parameter`."""

    output: int
    parameter: int
    kind: int = MUST_ALIAS


@dataclass(frozen=True, slots=True)
class Module:
    """A whole HLO program. Computations precede their callers; the entry is the last."""

    name: str
    computations: tuple[Computation, ...]
    entry_id: int
    aliases: tuple[Alias, ...] = ()

    @property
    def entry(self) -> Computation:
        return next(item for item in self.computations if item.id == self.entry_id)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Public names of the parameters, in order (`neff_input_names`)."""
        return tuple(item.frontend_attributes.get("neff_input_names", "") for item in self.entry.parameters)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Public names of the results, in order (`neff_output_names`)."""
        text = self.entry.root.frontend_attributes.get("neff_output_names", "")
        return tuple(text.split(",")) if text else ()

    def instructions(self) -> Iterator[tuple[Computation, Instruction]]:
        """Every instruction with its computation."""
        for computation in self.computations:
            for instruction in computation.instructions:
                yield computation, instruction

    def opcodes(self) -> dict[str, int]:
        """How often each opcode occurs, by name."""
        return dict(sorted(Counter(item.opcode for _, item in self.instructions()).items()))

    def to_bytes(self) -> bytes:
        """The serialized HloModuleProto; equal modules give equal bytes."""
        message: dict[str, Any] = {
            "name": self.name,
            "entry_computation_name": self.entry.name,
            "entry_computation_id": self.entry_id,
            "computations": [_computation_message(item) for item in self.computations],
            "host_program_shape": _program_shape(self.entry),
        }
        if self.aliases:
            message["input_output_alias"] = {"entries": [_alias_message(alias) for alias in self.aliases]}
        return encode(SCHEMA, "HloModuleProto", message)


def shape_message(shape: Shape) -> dict[str, Any]:
    """A ShapeProto: row-major layout, static dimensions."""
    if shape.dtype == "tuple":
        elements = [shape_message(element) for element in shape.elements]
        return {"element_type": PRIMITIVE_TYPES["tuple"], "tuple_shapes": elements}
    rank = len(shape.dimensions)
    return {
        "element_type": PRIMITIVE_TYPES[shape.dtype],
        "dimensions": shape.dimensions,
        "layout": {"minor_to_major": range(rank - 1, -1, -1)},
        "is_dynamic_dimension": [False] * rank,
    }


def _computation_message(computation: Computation) -> dict[str, Any]:
    instructions = [
        {
            **item.attributes,
            "id": item.id,
            "name": item.name or f"{item.opcode}.{item.id}",
            "opcode": item.opcode,
            "shape": shape_message(item.shape),
            "operand_ids": item.operands,
        }
        for item in computation.instructions
    ]
    return {
        "id": computation.id,
        "name": computation.name,
        "root_id": computation.root_id,
        "instructions": instructions,
        "program_shape": _program_shape(computation),
    }


def _program_shape(computation: Computation) -> dict[str, Any]:
    return {
        "parameters": [shape_message(item.shape) for item in computation.parameters],
        "result": shape_message(computation.root.shape),
        "parameter_names": computation.parameter_names,
    }


def _alias_message(alias: Alias) -> dict[str, Any]:
    return {"output_shape_index": [alias.output], "parameter_number": alias.parameter, "kind": alias.kind}


def read_module(hlo: bytes) -> Module:
    """The module that serialized HloModuleProto bytes hold.

    Raises LoweringError when the bytes end early, hold no entry computation, or refer to an id that does not
    exist.
    """
    message = decode(SCHEMA, "HloModuleProto", hlo)
    computations = tuple(_read_computation(item) for item in message.get("computations", ()))
    entry_id = message.get("entry_computation_id", 0)
    if entry_id not in {item.id for item in computations}:
        raise LoweringError(
            f"The module `{message.get('name', '')}` has no entry computation: id {entry_id} is not among "
            f"its {len(computations)} computations",
            hint="The file is empty, cut short, or not a serialized HloModuleProto.",
        )
    aliases = tuple(_read_alias(item) for item in message.get("input_output_alias", {}).get("entries", ()))
    return Module(message.get("name", ""), computations, entry_id, aliases)


def _read_computation(message: Mapping[str, Any]) -> Computation:
    name = message.get("name", "")
    instructions = tuple(_read_instruction(item) for item in message.get("instructions", ()))
    known = {item.id for item in instructions}
    root_id = message.get("root_id", 0)
    for item in instructions:
        for operand in item.operands:
            if operand not in known:
                raise _dangling(name, f"`{item.name}` reads instruction {operand}")
    if root_id not in known:
        raise _dangling(name, f"the root is instruction {root_id}")
    names = tuple(message.get("program_shape", {}).get("parameter_names", ()))
    return Computation(message.get("id", 0), name, root_id, instructions, names)


def _dangling(computation: str, what: str) -> LoweringError:
    hint = "The file is damaged, or the program that wrote it is wrong."
    return LoweringError(f"In computation `{computation}` {what}, which does not exist", hint=hint)


def _read_instruction(message: Mapping[str, Any]) -> Instruction:
    attributes = {key: value for key, value in message.items() if key not in _INSTRUCTION_FIELDS}
    return Instruction(
        id=message.get("id", 0),
        opcode=message.get("opcode", ""),
        shape=_read_shape(message.get("shape", {})),
        operands=tuple(message.get("operand_ids", ())),
        attributes=attributes,
        name=message.get("name", ""),
    )


def _read_shape(message: Mapping[str, Any]) -> Shape:
    number = message.get("element_type", 0)
    if number not in _DTYPE_NAMES:
        raise LoweringError(
            f"Unknown element type: `{number}`", hint="Known are " + ", ".join(PRIMITIVE_TYPES) + "."
        )
    elements = tuple(_read_shape(item) for item in message.get("tuple_shapes", ()))
    dynamic = any(message.get("is_dynamic_dimension", ()))
    return Shape(_DTYPE_NAMES[number], tuple(message.get("dimensions", ())), elements, dynamic)


def _read_alias(message: Mapping[str, Any]) -> Alias:
    index = message.get("output_shape_index", [0])
    return Alias(index[0] if index else 0, message.get("parameter_number", 0), message.get("kind", 0))
