"""Every public name of NKI is simulated or refused by name, with AWS's signature, and the table of them is fresh."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuron_port.simulator.coverage import (
    NOTES,
    WITHOUT_EFFECT,
    PublicName,
    State,
    entry_of,
    least_generation,
    look_up,
    official_names,
    parameters_of,
    table,
)
from neuron_port.simulator.nki import isa

TABLE = Path(__file__).parents[2] / "docs" / "simulator_names.md"
NAMED_ALIKE = {"nki.language.no_reorder"}  # a class here, called without arguments as well


def test_no_official_name_is_missing() -> None:
    """A name of the API reference exists in the face modules or raises UnsupportedError with its name."""
    assert [name.full for name in official_names() if entry_of(name).state is State.missing] == []


def test_a_name_that_nothing_defines_is_missing() -> None:
    """The lookup tells a name that is refused from one that is unknown."""
    unknown = PublicName(full="nki.isa.no_such_instruction", parameters=None)
    assert entry_of(unknown).state is State.missing
    compiler = PublicName(full="nki.compiler.kernel_builder", parameters=None)
    assert entry_of(compiler).state is State.refused


def test_signatures_are_those_of_the_reference() -> None:
    """Parameters have AWS's names, order and defaults; ours may follow behind them by keyword."""
    different = {}
    for name in official_names():
        if name.parameters is None or entry_of(name).state is State.refused or name.full in NAMED_ALIKE:
            continue
        ours = parameters_of(look_up(name)) or ()
        if ours[: len(name.parameters)] != name.parameters:
            different[name.full] = (name.parameters, ours)
    assert different == {}


def test_refused_names_say_which() -> None:
    """The message of a refused name contains it."""
    refused = [entry for entry in map(entry_of, official_names()) if entry.state is State.refused]
    assert all(entry.public.name.rpartition(".")[2] in entry.note for entry in refused)


def test_notes_are_about_official_names() -> None:
    """A note or exception for a name that does not exist would never be seen."""
    assert set(NOTES) | set(WITHOUT_EFFECT) <= {name.full for name in official_names()}


@pytest.mark.parametrize(
    ("name", "generation"),
    [("tensor_copy", None), ("range_select", 3), ("quantize_mx", 4), ("rand_set_state", 3)],
)
def test_generations_are_read_from_the_checks(name: str, generation: int | None) -> None:
    """The first generation in the table is the one that the instruction itself checks for."""
    assert least_generation(getattr(isa, name)) == generation


def test_the_committed_table_is_fresh() -> None:
    """docs/simulator_names.md is what the generator prints now."""
    assert TABLE.read_text() == table(), (
        "stale: python -m neuron_port.simulator.coverage > docs/simulator_names.md"
    )
