"""A written bundle, and an instance to finish it on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stand_in_instance import Instance
from tiny_bundle import make_arguments

from neuron_port.build import write_bundle


@pytest.fixture
def arguments(tmp_path: Path) -> dict[str, Any]:
    return make_arguments(tmp_path)


@pytest.fixture
def bundle(tmp_path: Path, arguments: dict[str, Any]) -> Path:
    return write_bundle(tmp_path / "bundle", **arguments).folder


@pytest.fixture
def instance(tmp_path: Path, bundle: Path) -> Instance:
    return Instance(tmp_path / "instance", bundle)


@pytest.fixture
def several(tmp_path: Path) -> Instance:
    """An instance with a bundle whose graphs call three kernels, one after the other."""
    made = make_arguments(tmp_path / "several", kernels=("rms_norm", "scale", "rope"))
    bundle = write_bundle(tmp_path / "several" / "bundle", **made).folder
    return Instance(tmp_path / "several-instance", bundle)
