"""Settles every kernel call of a graph: a native kernel where one was compiled, its reference otherwise.

A placeholder `neuron_port.<kernel>` calls a computation, the kernel's reference. Whoever has no kernel for it
takes the reference's instructions in its place, so that the choice is free for each call. With no kernel at
all this is graph.ref.hlo.pb, byte by byte: what was executed and compared with transformers. A graph with
some kernels is therefore made of pieces that were all proven.

Bytes of fields that are not touched are copied as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .hlo import (
    NATIVE_KERNEL,
    TUPLE,
    Computation,
    HloError,
    Instruction,
    as_bytes,
    entry_computation,
    fields,
    is_placeholder,
    read_computations,
    write_varint,
)

# Fields of HloInstructionProto, HloComputationProto and HloModuleProto (openxla, xla/service/hlo.proto)
_NAME, _OPCODE, _SHAPE, _TARGET, _ID, _OPERANDS, _CALLED, _CONFIG, _ATTRIBUTES = (
    1,
    2,
    3,
    28,
    35,
    36,
    38,
    43,
    68,
)
_INSTRUCTIONS, _PROGRAM_SHAPE, _COMPUTATION_ID, _ROOT = 2, 4, 5, 6
_COMPUTATIONS = 3


def settle(module: bytes, native: Mapping[int, bytes]) -> bytes:
    """The module with every placeholder settled.

    Args:
        native: instruction id of a placeholder -> the compiled kernel's backend_config.
    Raises: HloError when a placeholder has neither a kernel nor a reference.
    """
    computations, entry_id = read_computations(module)
    entry = next((found for found in computations if found.id == entry_id), None)
    if entry is None:
        raise HloError(f"the module has no entry computation (id {entry_id})")
    inlined = _Inliner(computations, _raw_instructions(module), native).entry(entry)
    called = _reachable(inlined.calls, computations)
    out, order = bytearray(), iter(computations)
    for number, value, raw in fields(module):
        if number != _COMPUTATIONS:
            out += raw
            continue
        own = next(order).id
        if own == entry_id:
            out += _message(_COMPUTATIONS, _with_instructions(as_bytes(value), inlined))
        elif own in called:
            out += raw
    return bytes(out)


def without_kernels(module: bytes) -> bytes:
    """The compiler-lowered twin: every placeholder replaced by its reference."""
    return settle(module, {})


class _Inliner:
    """The entry computation written anew; ids stay, but for what comes from a reference."""

    def __init__(
        self, computations: Iterable[Computation], raw: Mapping[int, Mapping[int, bytes]],
        native: Mapping[int, bytes],
    ) -> None:  # fmt: skip
        self.computations = {found.id: found for found in computations}
        self.raw = raw
        self.native = native
        taken = [found.id for one in self.computations.values() for found in one.instructions]
        self.next_id = max([*taken, *self.computations]) + 1
        self.same: dict[int, int] = {}  # id of an instruction that went away -> what has its value now
        self.parts: dict[int, tuple[int, ...]] = {}  # id of a call that returned a tuple -> its members
        self.written: list[bytes] = []
        self.calls: set[int] = set()
        self.root = 0

    def entry(self, entry: Computation) -> _Inliner:
        for instruction in entry.instructions:
            if is_placeholder(instruction) and instruction.id not in self.native:
                self._reference(instruction)
            elif instruction.opcode == "get-tuple-element" and instruction.operands[0] in self.parts:
                self.same[instruction.id] = self.parts[instruction.operands[0]][instruction.tuple_index]
            else:
                self._keep(entry.id, instruction)
        self.root = self.same.get(entry.root, entry.root)
        return self

    def _keep(self, computation: int, instruction: Instruction) -> None:
        raw = self.raw[computation][instruction.id]
        operands = [self.same.get(operand, operand) for operand in instruction.operands]
        if is_placeholder(instruction):
            self.written.append(native_call(raw, self.native[instruction.id], operands))
            return
        self.calls.update(instruction.called)
        self.written.append(
            edited(raw, operands=operands) if tuple(operands) != instruction.operands else raw
        )

    def _reference(self, call: Instruction) -> None:
        """Write the instructions of the call's reference in its place."""
        reference = self.computations.get(next(iter(call.called), 0))
        if reference is None:
            raise HloError(f"{call.name} calls `{call.target}`, for which the graph has no reference")
        values: dict[int, int] = {}
        members: dict[int, tuple[int, ...]] = {}
        for instruction in reference.instructions:
            operands = [values.get(operand, operand) for operand in instruction.operands]
            if instruction.opcode == "parameter":
                operand = call.operands[instruction.parameter_number]
                values[instruction.id] = self.same.get(operand, operand)
            elif instruction.opcode == "tuple" and instruction.id == reference.root:
                members[instruction.id] = tuple(operands)
            else:
                number = values[instruction.id] = self._new_id()
                raw = self.raw[reference.id][instruction.id]
                name = f"{instruction.opcode}.{number}"
                self.written.append(edited(raw, name=name, identity=number, operands=operands))
                self.calls.update(instruction.called)
        if reference.root in members:
            self.parts[call.id] = members[reference.root]
        else:
            self.same[call.id] = values[reference.root]

    def _new_id(self) -> int:
        self.next_id += 1
        return self.next_id - 1


def edited(
    raw: bytes, *, operands: Iterable[int], name: str | None = None, identity: int | None = None,
    drop: tuple[int, ...] = (), more: bytes = b"",
) -> bytes:  # fmt: skip
    """An instruction's bytes with other operands, and with another name and id where they are given."""
    changed = {_OPERANDS, *drop}
    head = b""
    if name is not None:
        changed.add(_NAME)
        head += _message(_NAME, name.encode())
    if identity is not None:
        changed.add(_ID)
        more = _number(_ID, identity) + more
    kept = b"".join(own for number, _, own in fields(raw) if number not in changed)
    packed = b"".join(map(write_varint, operands))
    return head + kept + (_message(_OPERANDS, packed) if packed else b"") + more


def native_call(raw: bytes, config: bytes, operands: Iterable[int], **others: str | int) -> bytes:
    """A placeholder's bytes as a call of the compiled kernel that `config` describes."""
    more = _message(_TARGET, NATIVE_KERNEL.encode()) + _message(_CONFIG, config)
    return edited(raw, operands=operands, drop=(_TARGET, _CONFIG, _CALLED), more=more, **others)  # type: ignore[arg-type]


def single_call(module: bytes, call: Instruction, config: bytes) -> bytes:
    """A module that does nothing but this call, on parameters p0, p1 ..: what tells whether a kernel compiles.

    Raises: HloError when the call has no reference, whose parameters and shapes are used.
    """
    computations, _ = read_computations(module)
    reference = next((found for found in computations if found.id in call.called), None)
    if reference is None:
        raise HloError(f"{call.name} has no reference to take its shapes from")
    raw = _raw_instructions(module)
    parameters = sorted(
        (found for found in reference.instructions if found.opcode == "parameter"),
        key=lambda found: found.parameter_number,
    )
    written = []
    for found in parameters:
        named = _attribute("neff_input_names", f"p{found.parameter_number}")
        data = raw[reference.id][found.id]
        written.append(edited(data, operands=(), drop=(_ATTRIBUTES,), more=named))
    root = max(found.id for found in reference.instructions) + 1
    own = raw[entry_computation(module).id][call.id]
    written.append(native_call(own, config, [found.id for found in parameters], identity=root))
    result = _shape_bytes(own)
    if call.shape.dtype == "tuple":
        results = ",".join(f"result{number}" for number in range(len(call.shape.parts)))
        written[-1] += _attribute("neff_output_names", results)
    else:  # the root of a graph is a tuple, as neuronx-cc's own front ends write it
        result = _number(2, TUPLE) + _message(4, result)
        root += 1
        written.append(
            _message(_NAME, b"root") + _message(_OPCODE, b"tuple") + _message(_SHAPE, result)
            + _number(_ID, root) + _message(_OPERANDS, write_varint(root - 1))
            + _attribute("neff_output_names", "result")
        )  # fmt: skip
    shapes = [_message(1, _shape_bytes(raw[reference.id][found.id])) for found in parameters]
    names = [_message(3, f"p{found.parameter_number}".encode()) for found in parameters]
    program = b"".join(shapes) + _message(2, result) + b"".join(names)
    body = _message(_NAME, b"main") + b"".join(_message(_INSTRUCTIONS, item) for item in written)
    body += _message(_PROGRAM_SHAPE, program) + _number(_COMPUTATION_ID, reference.id) + _number(_ROOT, root)
    named = _message(1, b"one_kernel") + _message(2, b"main")
    return named + _message(_COMPUTATIONS, body) + _message(4, program) + _number(6, reference.id)


def _shape_bytes(instruction: bytes) -> bytes:
    return next(as_bytes(value) for number, value, _ in fields(instruction) if number == _SHAPE)


def _attribute(key: str, value: str) -> bytes:
    """One frontend attribute: a map entry of strings."""
    return _message(_ATTRIBUTES, _message(1, _message(1, key.encode()) + _message(2, value.encode())))


def _raw_instructions(module: bytes) -> dict[int, dict[int, bytes]]:
    """Computation id -> instruction id -> the instruction's bytes."""
    found: dict[int, dict[int, bytes]] = {}
    for number, value, _ in fields(module):
        if number == _COMPUTATIONS:
            identity, own = 0, {}
            for inner, item, _ in fields(as_bytes(value)):
                if inner == _INSTRUCTIONS:
                    own[_identity(as_bytes(item))] = as_bytes(item)
                elif inner == _COMPUTATION_ID and isinstance(item, int):
                    identity = item
            found[identity] = own
    return found


def _identity(instruction: bytes) -> int:
    return next((int(value) for number, value, _ in fields(instruction) if number == _ID), 0)


def _with_instructions(data: bytes, inlined: _Inliner) -> bytes:
    """A computation's bytes with the instructions and the root of `inlined`."""
    out, placed = bytearray(), False
    for number, _, raw in fields(data):
        if number == _INSTRUCTIONS:
            if not placed:
                out += b"".join(_message(_INSTRUCTIONS, item) for item in inlined.written)
            placed = True
        else:
            out += _number(_ROOT, inlined.root) if number == _ROOT else raw
    return bytes(out)


def _reachable(called: set[int], computations: Iterable[Computation]) -> set[int]:
    by_id = {found.id: found for found in computations}
    found, pending = set(), list(called)
    while pending:
        number = pending.pop()
        if number not in found and number in by_id:
            found.add(number)
            pending += [inner for item in by_id[number].instructions for inner in item.called]
    return found


def _message(number: int, content: bytes) -> bytes:
    return write_varint(number << 3 | 2) + write_varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return write_varint(number << 3) + write_varint(value)
