"""A recipe against a whole model: which layers it takes, and whether its kernel is right on their shapes."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuron_port.contributing import in_model
from neuron_port.contributing.in_model import check_in_model
from neuron_port.registry import Registry, data_folder
from tests.contributing.conftest import silent

pytestmark = pytest.mark.usefixtures("store_folder")


@pytest.fixture
def registry() -> Registry:
    return Registry(data_folder("recipes"))


def test_the_recipe_takes_its_layers(registry: Registry, tiny_llama_folder: Path) -> None:
    """rms_norm takes the five norms of a two-layer Llama and is right at their widths."""
    check = check_in_model(registry["rms_norm"], str(tiny_llama_folder), "trn2", silent)
    assert check.status == "passed", check.problems
    assert check.facts["layers"] == 5
    assert check.facts["tried"]
    assert check.facts["too_large"] == []


def test_a_recipe_without_layers_fails(registry: Registry, tiny_llama_folder: Path) -> None:
    """A recipe that takes no layer of the model that was named is told so."""
    check = check_in_model(registry["conv2d"], str(tiny_llama_folder), "trn2", silent)
    assert check.status == "FAILED"
    assert "takes no layer of" in check.problems[0]


def test_what_is_too_large_is_said(
    registry: Registry, tiny_llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers beyond what the simulator does in a minute are named, not passed over in silence."""
    monkeypatch.setattr(in_model, "MOST_BYTES", 0)
    check = check_in_model(registry["rms_norm"], str(tiny_llama_folder), "trn2", silent)
    assert check.facts["tried"] == []
    assert check.facts["too_large"]
    assert "too large to be run here" in check.summary
