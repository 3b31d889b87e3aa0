"""Leaves only what the result needs and numbers it from 1, in the order in which it stands."""

from __future__ import annotations

from collections.abc import Iterable

from neuron_port.lower.builder import Builder
from neuron_port.lower.module import Computation, Instruction


def renumber(builder: Builder, root: int, names: tuple[str, ...]) -> tuple[tuple[Computation, ...], int]:
    """All computations and the entry's id, with ids that count from 1 in order of appearance."""
    kept = needed(builder, root)
    called = _called(builder, kept)
    ids: dict[int, int] = {}
    functions = [
        _with_new_ids(function, ids) for function in builder.functions.values() if function.id in called
    ]
    entry = _with_new_ids(Computation(-1, "main", root, tuple(kept), names), ids)
    return (*functions, entry), entry.id


def needed(builder: Builder, root: int) -> list[Instruction]:
    """The builder's parameters and what the root's value depends on, in the order in which they were made."""
    reached, pending = set(), [root]
    while pending:
        number = pending.pop()
        if number not in reached:
            reached.add(number)
            pending.extend(builder.instructions[number].operands)
    return [
        item for item in builder.instructions.values() if item.id in reached or item.opcode == "parameter"
    ]


def _called(builder: Builder, instructions: Iterable[Instruction]) -> set[int]:
    """Ids of all functions that the instructions call, and of those that these call."""
    by_id = {function.id: function for function in builder.functions.values()}
    found: set[int] = set()
    pending = [
        number for item in instructions for number in item.attributes.get("called_computation_ids", ())
    ]
    while pending:
        number = pending.pop()
        if number not in found:
            found.add(number)
            pending += [
                inner
                for item in by_id[number].instructions
                for inner in item.attributes.get("called_computation_ids", ())
            ]
    return found


def _with_new_ids(computation: Computation, ids: dict[int, int]) -> Computation:
    instructions = []
    for item in computation.instructions:
        ids[item.id] = len(ids) + 1
        attributes = dict(item.attributes)
        if "called_computation_ids" in attributes:
            attributes["called_computation_ids"] = [
                ids[number] for number in attributes["called_computation_ids"]
            ]
        operands = tuple(ids[number] for number in item.operands)
        instructions.append(Instruction(ids[item.id], item.opcode, item.shape, operands, attributes))
    ids[computation.id] = len(ids) + 1
    return Computation(
        ids[computation.id],
        computation.name,
        ids[computation.root_id],
        tuple(instructions),
        computation.parameter_names,
    )
