"""What an HLO instruction says beyond its operands: axes, slices, windows, literals.

Field numbers are those of openxla's hlo.proto and xla_data.proto.
"""

from __future__ import annotations

from typing import Any

from .hlo import as_bytes, as_ints, fields, read_shape

# HloInstructionProto: field -> (name, how to read it)
_INTEGERS = {14: "dimensions", 20: "slice_sizes", 34: "gather_slice_sizes"}
_NUMBERS = {50: "feature_group_count"}
_GROUPS = {
    30: ("dot", {1: "left", 2: "right", 3: "left_batch", 4: "right_batch"}),
    33: ("gather", {1: "offset", 2: "collapsed", 3: "start", 4: "vector_axis"}),
    48: ("scatter", {1: "window", 2: "inserted", 3: "operand", 4: "vector_axis"}),
    16: (
        "convolution",
        {3: "kernel_input", 4: "kernel_output", 6: "kernel_spatial", 7: "input_batch", 8: "input_feature",
         9: "output_batch", 10: "output_feature", 11: "input_spatial", 12: "output_spatial"},
    ),
}  # fmt: skip
_LISTS = {
    15: ("window", {1: "size", 2: "stride", 3: "low", 4: "high", 5: "window_dilation", 6: "base_dilation"}),
    17: ("slices", {1: "start", 2: "limit", 3: "stride"}),
    21: ("padding", {1: "low", 2: "high", 3: "between"}),
}  # fmt: skip
_LIST_FIELDS = {15: 1, 17: None, 21: 1}  # where the entries lie inside the field; None: the field repeats
# LiteralProto: field -> NumPy's dtype of its raw values, or "ints" for numbers written as varints
_LITERALS = {
    2: "ints", 3: "u1", 4: "ints", 5: "ints", 6: "ints", 7: "ints", 8: "<f4", 9: "<f8", 11: "<f2", 13: "<u2",
    15: "i1", 16: "<u2", 17: "<i2",
}  # fmt: skip


def read_attributes(instruction: bytes) -> dict[str, Any]:
    """The attributes of one HloInstructionProto by name; those that are absent have no key."""
    found: dict[str, Any] = {}
    for number, value, _ in fields(instruction):
        if number in _INTEGERS:
            found.setdefault(_INTEGERS[number], []).extend(map(_signed, as_ints(value)))
        elif number in _NUMBERS:
            found[_NUMBERS[number]] = value
        elif number in _GROUPS:
            name, keys = _GROUPS[number]
            found[name] = _group(as_bytes(value), keys)
        elif number in _LISTS:
            name, keys = _LISTS[number]
            inner = _LIST_FIELDS[number]
            entries = [as_bytes(value)]
            if inner is not None:
                entries = [as_bytes(item) for key, item, _ in fields(entries[0]) if key == inner]
            found.setdefault(name, []).extend(_entry(entry, keys) for entry in entries)
        elif number == 8:
            found["literal"] = _literal(as_bytes(value))
        elif number == 63:
            found["direction"] = as_bytes(value).decode()
    return found


def _group(data: bytes, keys: dict[int, str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {name: [] for name in keys.values()}
    for number, value, _ in fields(data):
        if number in keys:
            found[keys[number]] += map(_signed, as_ints(value))
    return found


def _entry(data: bytes, keys: dict[int, str]) -> dict[str, int]:
    found = dict.fromkeys(keys.values(), 0)
    for number, value, _ in fields(data):
        if number in keys and isinstance(value, int):
            found[keys[number]] = _signed(value)
    return found


def _literal(data: bytes) -> tuple[str, tuple[int, ...], Any]:
    """(dtype, shape, values): a list of numbers, or (raw bytes, NumPy's name of their dtype)."""
    dtype, shape, values = "", (), []  # type: tuple[str, tuple[int, ...], Any]
    for number, value, _ in fields(data):
        if number == 1:
            described = read_shape(as_bytes(value))
            dtype, shape = described.dtype, described.dimensions
        elif _LITERALS.get(number) == "ints":
            values += map(_signed, as_ints(value))
        elif number in _LITERALS:
            values = (as_bytes(value), _LITERALS[number])
    return dtype, shape, values


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
