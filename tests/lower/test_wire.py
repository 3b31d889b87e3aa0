"""The protobuf encoding: canonical, reversible, strict."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuron_port.errors import LoweringError
from neuron_port.lower.module import Computation, Instruction, Module, Shape, read_module
from neuron_port.lower.schema import SCHEMA
from neuron_port.lower.wire import decode, encode

SCALAR = Shape("float32", (2,))
MODULE = Module(
    "m",
    (
        Computation(
            3, "main", 2, (Instruction(1, "parameter", SCALAR), Instruction(2, "negate", SCALAR, (1,)))
        ),
    ),
    3,
)


def test_known_bytes() -> None:
    """Field numbers, wire types and packing are protobuf's: checked by hand on one small message."""
    message = {"opcode": "tuple", "dimensions": [0, 300], "id": 5}
    expected = b"\x12\x05tuple" + b"\x72\x03\x00\xac\x02" + b"\x98\x02\x05"
    assert encode(SCHEMA, "HloInstructionProto", message) == expected


def test_defaults_are_left_out() -> None:
    """Zero, the empty text and the empty list take no bytes."""
    message = {"opcode": "", "dimensions": [], "id": 0}
    assert encode(SCHEMA, "HloInstructionProto", message) == b""


@given(
    st.integers(-(2**63), 2**63 - 1),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1),
    st.text(min_size=1),
    st.dictionaries(st.text(min_size=1), st.text(), min_size=1),
)
@settings(max_examples=60, deadline=None)
def test_decoding_undoes_encoding(number: int, numbers: list[int], text: str, pairs: dict[str, str]) -> None:
    """Negative and 64-bit numbers, any text and maps come back as they were."""
    message = {
        "name": text,
        "dimensions": numbers,
        "backend_config": text.encode(),
        "frontend_attributes": {"map": pairs},
    }
    if number:
        message["id"] = number
    assert decode(SCHEMA, "HloInstructionProto", encode(SCHEMA, "HloInstructionProto", message)) == message


def test_unknown_fields_are_skipped() -> None:
    """Fields that newer emitters add, of every wire type, do not disturb reading."""
    extra = b"\xf8\x3f\x01" + b"\xf9\x3f" + bytes(8) + b"\xfa\x3f\x02hi" + b"\xfd\x3f" + bytes(4)
    assert decode(SCHEMA, "HloInstructionProto", extra + b"\x98\x02\x05" + extra) == {"id": 5}


def test_module_is_read_as_written() -> None:
    """Reading and writing a module again gives the same bytes."""
    data = MODULE.to_bytes()
    assert read_module(data).to_bytes() == data
    assert [item.name for item in read_module(data).entry.instructions] == ["parameter.1", "negate.2"]


def test_every_truncation_is_refused() -> None:
    """No proper prefix of a module passes as a module."""
    data = MODULE.to_bytes()
    for size in range(len(data)):
        with pytest.raises(LoweringError):
            read_module(data[:size] if size else b"")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\x98\x02", "ends inside a number"),
        (b"\x12\x05tup", "needs 5 bytes, 3 are left"),
        (b"\x12\x02\xff\xfe", "not UTF-8"),
        (b"\x98\x02" + b"\xff" * 10, "more than ten bytes"),
        (b"\x9a\x02\x01\x05", "wire type 2"),
        (b"\x13", "unknown wire type 3"),
    ],
)
def test_damaged_messages_are_named(data: bytes, problem: str) -> None:
    """Each kind of damage has its own sentence."""
    with pytest.raises(LoweringError, match=problem):
        decode(SCHEMA, "HloInstructionProto", data)


def test_dangling_operand_is_refused() -> None:
    """An operand that no instruction defines is damage, not a module."""
    computation = Computation(3, "main", 2, (Instruction(2, "negate", SCALAR, (1,)),))
    with pytest.raises(LoweringError, match=r"`negate.2` reads instruction 1, which does not exist"):
        read_module(Module("m", (computation,), 3).to_bytes())
