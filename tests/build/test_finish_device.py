"""The device check, against a stand-in for nrtpy that runs what the NEFFs stand for on XLA-CPU."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from stand_in_instance import Instance

from neuron_port.build import verify_files, write_bundle

PREFILL, DECODE = "prefill_b1_s2", "decode_b1_t3"


def test_a_device_that_agrees_verifies_the_bundle(instance: Instance) -> None:
    """Weights are laid out as io.json says, caches are shared, and the state is device-verified."""
    done = instance.finish(*instance.device)
    assert done.returncode == 0, done.stderr
    assert instance.manifest["state"] == "device-verified"
    (report,) = (instance.bundle / "device").glob("*/parity.json")
    outputs = json.loads(report.read_text())["graphs"][PREFILL]["outputs"]
    assert outputs["y"]["metrics"]["relative_error"] < 1e-6
    assert outputs["cache_out"]["pass"] is True
    assert json.loads((report.parent / "bench.json").read_text())[PREFILL]["mode"] == "host"
    assert verify_files(instance.bundle) == []


def test_a_device_that_disagrees_is_a_parity_failure(instance: Instance) -> None:
    """A wrong result ends with exit code 5, names the output, and leaves the bundle compiled."""
    instance.environment["FAKE_NRTPY_ERROR"] = "0.5"
    done = instance.finish(*instance.device)
    assert done.returncode == 5
    assert "DISAGREES: y:" in done.stderr
    assert instance.manifest["state"] == "compiled"


def test_a_device_that_returns_nan_is_a_parity_failure(instance: Instance) -> None:
    """NaN is no small error."""
    instance.environment["FAKE_NRTPY_ERROR"] = "nan"
    done = instance.finish(*instance.device)
    assert done.returncode == 5
    assert "NaN" in done.stderr


def test_a_confirmed_bundle_stays_confirmed(instance: Instance) -> None:
    """Running again without a device does not take back what a device has confirmed about the same NEFFs."""
    instance.finish(*instance.device)
    (instance.home / "neuron0").unlink()
    done = instance.finish()
    assert done.returncode == 0
    assert instance.manifest["state"] == "device-verified"


def test_a_graph_without_golden_values_is_not_verified(
    instance: Instance, arguments: dict[str, Any], tmp_path: Path
) -> None:
    """A device cannot confirm what has nothing to compare with."""
    del arguments["golden"][DECODE]
    instance.bundle = write_bundle(tmp_path / "partial", **arguments).folder
    done = instance.finish(*instance.device)
    assert done.returncode == 5
    assert "no golden values" in done.stderr
    assert instance.manifest["state"] == "compiled"


def test_changed_weights_are_not_loaded(instance: Instance) -> None:
    """Weights are checked against their hash before a device sees them."""
    shard = instance.bundle / "weights" / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x7f")
    done = instance.finish(*instance.device)
    assert "its SHA-256 differs" in done.stderr
    assert instance.manifest["state"] == "compiled"


def test_weights_that_are_only_referred_to_come_from_the_checkpoint(
    instance: Instance, arguments: dict[str, Any], tmp_path: Path
) -> None:
    """Without the weights the device check is skipped and says how to name them; with --weights it runs."""
    instance.bundle = write_bundle(tmp_path / "light", **arguments | {"weights": "reference"}).folder
    done = instance.finish(*instance.device)
    assert done.returncode == 0
    assert "--weights DIR" in done.stderr
    assert instance.manifest["state"] == "compiled"
    checkpoint = os.path.relpath(tmp_path / "checkpoint", instance.home)
    done = instance.finish(*instance.device, "--weights", checkpoint)
    assert done.returncode == 0, done.stderr
    assert instance.manifest["state"] == "device-verified"
