"""Reads XLA's HloModuleProto: a walker over protobuf's wire format that knows the fields that finishing needs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

PRIMITIVE_TYPES = {
    1: "bool", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "uint8", 7: "uint16", 8: "uint32",
    9: "uint64", 10: "float16", 11: "float32", 12: "float64", 16: "bfloat16", 19: "float8_e5m2",
    20: "float8_e4m3fn",
}  # fmt: skip
TUPLE = 13
PLACEHOLDER = "neuron_port."
NATIVE_KERNEL = "AwsNeuronCustomNativeKernel"


class HloError(ValueError):
    """The bytes are not a HloModuleProto."""


@dataclass(frozen=True)
class Shape:
    """Shape and dtype of one value; `parts` are a tuple's members."""

    dtype: str
    dimensions: tuple[int, ...]
    parts: tuple[Shape, ...] = ()


@dataclass(frozen=True)
class Instruction:
    """The fields of one HLO instruction that finishing needs."""

    id: int = 0
    name: str = ""
    opcode: str = ""
    shape: Shape = Shape("", ())
    operands: tuple[int, ...] = ()
    parameter_number: int = 0
    target: str = ""
    backend_config: bytes = b""
    tuple_index: int = 0
    called: tuple[int, ...] = ()  # ids of the computations that it calls


@dataclass(frozen=True)
class Computation:
    """One HLO computation."""

    id: int
    name: str
    root: int
    instructions: tuple[Instruction, ...]


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise HloError(f"a number runs past byte {at}")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def write_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def fields(data: bytes) -> Iterator[tuple[int, int | bytes, bytes]]:
    """(field number, value, the field's own bytes) for every field of a message, in order."""
    at = 0
    while at < len(data):
        start = at
        key, at = read_varint(data, at)
        kind = key & 7
        value: int | bytes
        if kind == 0:
            value, at = read_varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, at = data[at : at + size], at + size
        elif kind == 2:
            size, at = read_varint(data, at)
            value, at = data[at : at + size], at + size
        else:
            raise HloError(f"unknown wire type {kind} at byte {start}")
        if at > len(data):
            raise HloError(f"field {key >> 3} runs past the end")
        yield key >> 3, value, data[start:at]


def as_bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise HloError("a number stands where a message belongs")
    return value


def as_ints(value: int | bytes) -> list[int]:
    """A repeated integer field: one value, or many packed."""
    if isinstance(value, int):
        return [value]
    numbers, at = [], 0
    while at < len(value):
        number, at = read_varint(value, at)
        numbers.append(number)
    return numbers


def read_shape(data: bytes) -> Shape:
    dtype, dimensions, parts = "", [], []
    for number, value, _ in fields(data):
        if number == 2 and isinstance(value, int):
            dtype = "tuple" if value == TUPLE else PRIMITIVE_TYPES.get(value, f"type {value}")
        elif number == 3:
            dimensions += as_ints(value)
        elif number == 4:
            parts.append(read_shape(as_bytes(value)))
    return Shape(dtype, tuple(dimensions), tuple(parts))


def read_instruction(data: bytes) -> Instruction:
    found: dict[str, Any] = {}
    operands: list[int] = []
    called: list[int] = []
    for number, value, _ in fields(data):
        if number in (1, 2, 28):
            found[{1: "name", 2: "opcode", 28: "target"}[number]] = as_bytes(value).decode()
        elif number == 3:
            found["shape"] = read_shape(as_bytes(value))
        elif number in (9, 13, 35):
            found[{9: "parameter_number", 13: "tuple_index", 35: "id"}[number]] = value
        elif number == 36:
            operands += as_ints(value)
        elif number == 38:
            called += as_ints(value)
        elif number == 43:
            found["backend_config"] = as_bytes(value)
    return Instruction(operands=tuple(operands), called=tuple(called), **found)


def read_computation(data: bytes) -> Computation:
    """One HloComputationProto."""
    numbers, name, instructions = {5: 0, 6: 0}, "", []
    for number, value, _ in fields(data):
        if number == 1:
            name = as_bytes(value).decode()
        elif number == 2:
            instructions.append(read_instruction(as_bytes(value)))
        elif number in numbers and isinstance(value, int):
            numbers[number] = value
    return Computation(numbers[5], name, numbers[6], tuple(instructions))


def read_computations(module: bytes) -> tuple[list[Computation], int]:
    """All computations of a HloModuleProto, and the id of the entry computation (0: not named)."""
    computations, entry = [], 0
    for number, value, _ in fields(module):
        if number == 6 and isinstance(value, int):
            entry = value
        elif number == 3:
            computations.append(read_computation(as_bytes(value)))
    return computations, entry


def entry_computation(module: bytes) -> Computation:
    """The computation that the module runs. Raises: HloError when it has none."""
    computations, entry = read_computations(module)
    chosen = [found for found in computations if found.id == entry]
    if not chosen:
        raise HloError(f"the module has no entry computation (id {entry})")
    return chosen[-1]


def entry_parameters(module: bytes) -> list[Shape]:
    """Shapes of the entry computation's parameters, by parameter number."""
    parameters = [found for found in entry_computation(module).instructions if found.opcode == "parameter"]
    return [found.shape for found in sorted(parameters, key=lambda found: found.parameter_number)]


@dataclass(frozen=True)
class Placeholder:
    """A custom call `neuron_port.<kernel>` that waits for its compiled kernel.

    The computation that it calls is the kernel's reference: the same function in plain HLO.
    """

    instruction: Instruction
    kernel: str
    kernel_sha256: str
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    attributes: Mapping[str, Any]

    def request(self) -> dict[str, Any]:
        """What decides the compiled kernel; equal requests share one."""
        return {
            "kernel": self.kernel,
            "inputs": [{"dtype": shape.dtype, "shape": list(shape.dimensions)} for shape in self.inputs],
            "outputs": [{"dtype": shape.dtype, "shape": list(shape.dimensions)} for shape in self.outputs],
            "attributes": dict(self.attributes),
        }


def placeholders(module: bytes) -> list[Placeholder]:
    """Every placeholder custom call of the entry computation, with the shapes of its operands and results."""
    found = []
    entry = entry_computation(module)
    shapes = {instruction.id: instruction.shape for instruction in entry.instructions}
    for instruction in entry.instructions:
        if is_placeholder(instruction):
            shape, config = instruction.shape, _call_config(instruction)
            found.append(
                Placeholder(
                    instruction=instruction,
                    kernel=instruction.target.removeprefix(PLACEHOLDER),
                    kernel_sha256=config["kernel"],
                    inputs=tuple(shapes[operand] for operand in instruction.operands),
                    outputs=shape.parts if shape.dtype == "tuple" else (shape,),
                    attributes=config["attributes"],
                )
            )
    return found


def is_placeholder(instruction: Instruction) -> bool:
    return instruction.opcode == "custom-call" and instruction.target.startswith(PLACEHOLDER)


def _call_config(instruction: Instruction) -> dict[str, Any]:
    """A placeholder's backend_config: {"kernel": sha256 of its source, "entry": name, "attributes": {}}."""
    try:
        config = json.loads(instruction.backend_config)
        return {"kernel": str(config["kernel"]), "attributes": dict(config["attributes"])}
    except (ValueError, KeyError, TypeError) as error:
        raise HloError(f"backend_config of {instruction.name} does not describe a kernel: {error}") from error
