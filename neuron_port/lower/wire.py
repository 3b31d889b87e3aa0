"""Protocol-buffer bytes to nested dictionaries and back, for the few messages that `schema.py` declares.

Written here so that emitting needs no protobuf runtime. Encoding is canonical: fields in ascending number,
numbers packed, defaults left out, so equal messages give equal bytes. Decoding skips fields that the schema
does not name and refuses bytes that end early.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from neuron_port.errors import LoweringError

Kind = Literal["int", "string", "bytes", "message", "map"]
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_FIXED_SIZES = {FIXED64: 8, FIXED32: 4}
_CURE = "The file is damaged or is not a serialized HloModuleProto; write it again from the model."


@dataclass(frozen=True)
class Field:
    """One field of a message. `message` names the schema entry of kind "message"; a map is string to string.

    kind "int" covers int32, int64, bool and enums; packed floats are kept as raw little-endian "bytes".
    """

    number: int
    kind: Kind
    repeated: bool = False
    message: str = ""


Schema = Mapping[str, Mapping[str, Field]]


def encode(schema: Schema, name: str, message: Mapping[str, Any]) -> bytes:
    """The bytes of `message`, whose keys are field names of the schema entry `name`."""
    fields = schema[name]
    out = bytearray()
    for key in sorted(message, key=lambda key: fields[key].number):
        _encode_field(schema, fields[key], message[key], out)
    return bytes(out)


def _encode_field(schema: Schema, field: Field, value: Any, out: bytearray) -> None:
    if field.kind == "map":
        for key in sorted(value):
            _append(out, field.number, _text(1, key) + _text(2, value[key]))
    elif field.kind == "message":
        for item in value if field.repeated else (value,):
            _append(out, field.number, encode(schema, field.message, item))
    elif field.kind == "int" and field.repeated:
        if value:
            _append(out, field.number, b"".join(_varint(int(item)) for item in value))
    elif field.kind == "int":
        if value:
            out += _varint(field.number << 3 | VARINT) + _varint(int(value))
    else:
        for item in value if field.repeated else (value,):
            if item or field.repeated:
                _append(out, field.number, item.encode() if isinstance(item, str) else item)


def _append(out: bytearray, number: int, payload: bytes) -> None:
    out += _varint(number << 3 | BYTES) + _varint(len(payload)) + payload


def _text(number: int, text: str) -> bytes:
    payload = text.encode()
    return _varint(number << 3 | BYTES) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    if 0 <= value < 0x80:
        return bytes((value,))
    value &= 0xFFFF_FFFF_FFFF_FFFF  # negative numbers are written as 64-bit two's complement
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode(schema: Schema, name: str, data: bytes) -> dict[str, Any]:
    """The fields of `data` that the schema entry `name` declares, by field name; absent fields have no key.

    Raises LoweringError when the bytes end early or a field has another wire type than declared.
    """
    names = {field.number: (key, field) for key, field in schema[name].items()}
    message: dict[str, Any] = {}
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position, name)
        number, wire_type = tag >> 3, tag & 7
        value, position = _read_value(data, position, wire_type, f"{name} field {number}")
        if number not in names:
            continue
        key, field = names[number]
        _check_wire_type(field, wire_type, f"{name}.{key}")
        _store(schema, message, key, field, value)
    return message


def _store(schema: Schema, message: dict[str, Any], key: str, field: Field, value: int | bytes) -> None:
    if isinstance(value, int):
        parsed: Any = [_signed(value)] if field.repeated else _signed(value)
    elif field.kind == "int":
        parsed = _unpack(value, key)
    elif field.kind == "map":
        pair = decode(_PAIR_SCHEMA, "pair", value)
        message.setdefault(key, {})[pair.get("key", "")] = pair.get("value", "")
        return
    else:
        item: Any = value
        if field.kind == "message":
            item = decode(schema, field.message, value)
        elif field.kind == "string":
            item = _utf8(value, key)
        parsed = [item] if field.repeated else item
    if field.repeated:
        message.setdefault(key, []).extend(parsed)
    else:
        message[key] = parsed


_PAIR_SCHEMA: Schema = {"pair": {"key": Field(1, "string"), "value": Field(2, "string")}}


def _check_wire_type(field: Field, wire_type: int, where: str) -> None:
    allowed = (
        (VARINT, BYTES)
        if field.kind == "int" and field.repeated
        else (VARINT if field.kind == "int" else BYTES,)
    )
    if wire_type not in allowed:
        raise LoweringError(f"{where} has wire type {wire_type}, expected {allowed[0]}", hint=_CURE)


def _read_value(data: bytes, position: int, wire_type: int, where: str) -> tuple[int | bytes, int]:
    if wire_type == VARINT:
        return _read_varint(data, position, where)
    if wire_type == BYTES:
        size, position = _read_varint(data, position, where)
    elif wire_type in _FIXED_SIZES:
        size = _FIXED_SIZES[wire_type]
    else:
        raise LoweringError(f"{where} has the unknown wire type {wire_type}", hint=_CURE)
    if position + size > len(data):
        raise LoweringError(f"{where} needs {size} bytes, {len(data) - position} are left", hint=_CURE)
    return data[position : position + size], position + size


def _read_varint(data: bytes, position: int, where: str) -> tuple[int, int]:
    result = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise LoweringError(f"{where} ends inside a number, at byte {position}", hint=_CURE)
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
    raise LoweringError(f"{where} has a number of more than ten bytes", hint=_CURE)


def _unpack(data: bytes, where: str) -> list[int]:
    values, position = [], 0
    while position < len(data):
        value, position = _read_varint(data, position, where)
        values.append(_signed(value))
    return values


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _utf8(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise LoweringError(f"{where} is not UTF-8 text: {data[:20]!r}", hint=_CURE) from error
