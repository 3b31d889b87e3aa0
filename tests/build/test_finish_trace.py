"""Engine `trace` against a stand-in for torch_neuronx that checks its arguments and runs on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stand_in_instance import Instance

from neuron_port.build import verify_files, write_bundle

PREFILL, DECODE = "prefill_b1_s2", "decode_b1_t3"


@pytest.fixture
def said(instance: Instance, tmp_path: Path) -> Path:
    """The file to which the stand-in writes what it was given."""
    path = tmp_path / "traced.jsonl"
    instance.environment["FAKE_TORCH_NEURONX_LOG"] = str(path)
    return path


def test_every_graph_becomes_torchscript(instance: Instance, said: Path) -> None:
    """Without a device the tracing runs on the CPU, with the plan's flags, weights apart and states aliased."""
    done = instance.finish(*instance.torch, target="inf2")
    assert done.returncode == 0, done.stderr
    manifest = instance.manifest
    assert (manifest["state"], manifest["build"]["engine"], manifest["build"]["target"]) == (
        "compiled",
        "trace",
        "inf2",
    )
    assert "no device has confirmed" in done.stderr
    assert verify_files(instance.bundle) == []
    for graph in manifest["graphs"]:
        assert graph["neff"] is None
        assert (instance.bundle / graph["torchscript"]["path"]).suffix == ".pt"
        assert (instance.bundle / graph["torchscript"]["path"]).is_file()
    calls = [json.loads(line) for line in said.read_text().splitlines()]
    for call in calls:
        assert call["cpu_backend"] is True
        assert call["inline_weights_to_neff"] is False
        assert call["inputs"] == [[2, 4]]
        assert call["aliases"] == [1]
        assert call["compiler_args"][:2] == ["--target", "inf2"]
        assert "--enable-saturate-infinity" in call["compiler_args"]
    kernels = manifest["build"]["traced"]["inf2"]["kernels"][PREFILL]["rms_norm"]
    assert kernels["by"] == "compiler"
    assert "engine trace" in kernels["reason"]


def test_a_device_confirms_traced_graphs(instance: Instance, said: Path) -> None:
    """On a device the host traces for it, every graph is run on its golden inputs, and the state is verified."""
    done = instance.finish(*instance.torch, *instance.device, target="trn1")
    assert done.returncode == 0, done.stderr
    assert instance.manifest["state"] == "device-verified"
    assert {json.loads(line)["cpu_backend"] for line in said.read_text().splitlines()} == {False}
    (report,) = (instance.bundle / "device").glob("*/parity.json")
    outputs = json.loads(report.read_text())["graphs"][PREFILL]["outputs"]
    assert outputs["y"]["metrics"]["relative_error"] < 1e-6
    assert json.loads((report.parent / "bench.json").read_text())[DECODE]["iterations"] == 20
    assert instance.status().returncode == 0
    assert verify_files(instance.bundle) == []


def test_a_device_that_disagrees_with_a_traced_graph_is_a_failure(instance: Instance) -> None:
    """A wrong result ends with exit code 5 and leaves the bundle compiled."""
    instance.environment["FAKE_TORCH_NEURONX_ERROR"] = "0.5"
    done = instance.finish(*instance.torch, *instance.device, target="trn1")
    assert done.returncode == 5
    assert "DISAGREES: y:" in done.stderr
    assert instance.manifest["state"] == "compiled"


def test_traced_graphs_are_skipped_the_second_time(instance: Instance, said: Path) -> None:
    """The same versions, plan, graph and weights give the same file."""
    one = (*instance.torch, "--graphs", PREFILL)
    assert instance.finish(*one, target="inf2").returncode == 0
    count = len(said.read_text().splitlines())
    done = instance.finish(*one, target="inf2")
    assert done.stderr.count("already compiled, skipped") == 1
    assert len(said.read_text().splitlines()) == count


def test_both_engines_keep_what_they_made(instance: Instance) -> None:
    """The state speaks of the engine that ran last; the other one keeps its files and its entry."""
    assert instance.finish(*instance.torch, target="inf2").returncode == 0
    assert instance.finish(target="inf2").returncode == 0
    manifest = instance.manifest
    assert manifest["build"]["engine"] == "hlo"
    assert "torchscript" not in manifest["graphs"][0]
    assert (
        manifest["build"]["traced"]["inf2"]["state"]
        == manifest["build"]["targets"]["inf2"]["state"]
        == "compiled"
    )
    assert verify_files(instance.bundle) == []
    assert instance.status().returncode == 0


def test_a_refusal_of_the_compiler_is_translated(instance: Instance) -> None:
    """neuronx-cc speaks through torch_neuronx; its code is explained all the same."""
    instance.environment["FAKE_TORCH_NEURONX_REFUSES"] = "NCC_EVRF007"
    done = instance.finish(*instance.torch, "--graphs", PREFILL, target="inf2")
    assert done.returncode == 4
    assert "more instructions than a NEFF may have (NCC_EVRF007)" in done.stderr


def test_an_environment_without_torch_neuronx_is_named(instance: Instance) -> None:
    """An interpreter that cannot import it ends the run with exit code 3 and where to get it."""
    done = instance.finish(
        "--engine", "trace", "--torch-python", str(instance.home / "nki-python"), target="inf2"
    )
    assert done.returncode == 3
    assert "torch_neuronx cannot be imported" in done.stderr
    assert "requirements-sdk2.31.txt" in done.stderr


def test_weights_that_are_not_there_are_asked_for(
    instance: Instance, arguments: dict[str, Any], tmp_path: Path
) -> None:
    """A traced file holds the weights: a bundle that only refers to them needs --weights."""
    instance.bundle = write_bundle(tmp_path / "light", **arguments | {"weights": "reference"}).folder
    one = (*instance.torch, "--graphs", PREFILL)
    done = instance.finish(*one, target="inf2")
    assert done.returncode == 4
    assert "--weights DIR" in done.stderr
    done = instance.finish(*one, "--weights", str(tmp_path / "checkpoint"), target="inf2")
    assert done.returncode == 0, done.stderr


def test_a_dry_run_shows_what_would_be_traced(instance: Instance, said: Path) -> None:
    """The arguments of torch_neuronx.trace are printed and nothing is traced."""
    done = instance.finish(*instance.torch, "--dry-run", target="inf2")
    assert done.returncode == 0
    assert done.stdout.count("torch_neuronx.trace(compiler_args=['--target', 'inf2'") == 2
    assert not said.exists()
