"""Every instruction that the simulator executes is judged by a property test of this folder."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

from property_tiles import covered

from neuron_port.simulator.nki import isa

NOT_INSTRUCTIONS = {"get_nc_version", "get_nc_sub_version"}  # they look at the target, not at data


def instructions() -> set[str]:
    """The public functions of nki.isa."""
    return {name for name in isa.__all__ if inspect.isfunction(getattr(isa, name))} - NOT_INSTRUCTIONS


def test_every_instruction_has_a_property_test() -> None:
    """A new function of nki.isa without a property test fails here, and so does a test of a name that is gone."""
    for path in sorted(Path(__file__).parent.glob("test_property_*.py")):
        importlib.import_module(path.stem)
    assert sorted(instructions() - covered) == []
    assert sorted(covered - instructions()) == []
