"""A bundle's state follows what lies in it, and nothing else: it drops back, and --status says what it rests on."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from stand_in_instance import Instance
from tiny_bundle import make_arguments

from neuron_port.build import write_bundle

PREFILL, DECODE = "prefill_b1_s2", "decode_b1_t3"


def neff(instance: Instance, graph: str = PREFILL) -> Path:
    return instance.bundle / "neff" / "trn2" / f"{graph}.neff"


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def forge(instance: Instance) -> None:
    """Change a NEFF by hand, and its record with it."""
    import hashlib

    path = neff(instance)
    path.write_bytes(path.read_bytes() + b"more")
    edit_json(path.with_suffix(".json"), sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def test_a_portable_bundle_says_what_it_rests_on(instance: Instance) -> None:
    """Nothing is compiled; the parity that the conversion found is all there is."""
    done = instance.status()
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tiny: portable\n")
    assert "portable: the graphs agree with transformers, cpu, float32 in kernels (1 cases)" in done.stdout


def test_a_verified_bundle_names_the_device(instance: Instance) -> None:
    """Every graph, its kernels and the device that confirmed the files are listed; nothing is written."""
    assert instance.finish(*instance.nki, *instance.device).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in instance.bundle.rglob("*")}
    done = instance.status()
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("tiny: device-verified (trn2, engine hlo)\n")
    assert f"{PREFILL}: NKI: rms_norm" in done.stdout
    assert "unknown confirmed exactly these files" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in instance.bundle.rglob("*")} == before


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("truncate", "CHANGED since it was compiled"),
        ("remove", "not compiled"),
        ("forge", "NOT the file that this state speaks of"),
        ("record", "its record is missing or damaged"),
        ("manifest", "the manifest says `device-verified`"),
    ],
)
def test_what_does_not_hold_any_more_is_named(instance: Instance, damage: str, words: str) -> None:
    """A NEFF that was changed, removed or forged, and a state written by hand, are noticed; exit code 3."""
    verified = ("--kernels", "off", *(() if damage == "manifest" else instance.device))
    assert instance.finish(*verified).returncode == 0
    path = neff(instance)
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:-7])
    elif damage == "remove":
        path.unlink()
    elif damage == "forge":
        forge(instance)
    elif damage == "record":
        path.with_suffix(".json").write_text("{")
    else:
        edit_json(instance.bundle / "neuron_port.json", state="device-verified")
    done = instance.status()
    assert done.returncode == 3, done.stdout
    assert words in done.stdout
    assert "BROKEN:" in done.stdout


@pytest.mark.parametrize("damage", ["remove", "forge"])
def test_finishing_again_without_a_device_drops_back(instance: Instance, damage: str) -> None:
    """What a device confirmed was that very file: another one is compiled, not verified."""
    assert instance.finish(*instance.device).returncode == 0
    (instance.home / "neuron0").unlink()
    if damage == "remove":
        neff(instance).unlink()
        instance.version = "2.28.1.0"  # so that the new file differs in its key, as it may on a device
    else:
        forge(instance)
    assert instance.finish().returncode == 0
    assert instance.manifest["state"] == "compiled"
    assert instance.status().returncode == 0


def test_a_neff_of_another_graph_does_not_count(
    instance: Instance, arguments: dict[str, Any], tmp_path: Path
) -> None:
    """A bundle converted again keeps its NEFFs; those of graphs that changed do not make it compiled."""
    assert instance.finish("--kernels", "off").returncode == 0
    other = make_arguments(tmp_path / "other", kernels=("rms_norm", "scale"))
    changed = dataclasses.replace(other["graphs"][0], spec=arguments["graphs"][0].spec)
    given = other | {"graphs": [changed, arguments["graphs"][1]], "golden": {}}
    write_bundle(instance.bundle, **given)
    assert neff(instance).is_file()
    assert instance.finish("--kernels", "off", "--graphs", DECODE).returncode == 0
    assert instance.manifest["state"] == "portable"
    assert [graph["neff"] is None for graph in instance.manifest["graphs"]] == [True, False]


def test_a_device_that_disagrees_takes_back_what_it_said(instance: Instance) -> None:
    """A later run on a device that disagrees leaves the bundle compiled."""
    assert instance.finish(*instance.device).returncode == 0
    instance.environment["FAKE_NRTPY_ERROR"] = "0.5"
    assert instance.finish(*instance.device).returncode == 5
    assert instance.manifest["state"] == "compiled"


def test_a_copy_of_the_neffs_alone_moves_nothing(
    instance: Instance, arguments: dict[str, Any], tmp_path: Path
) -> None:
    """NEFFs laid into another bundle by hand leave it portable until finishing has looked at them."""
    assert instance.finish("--kernels", "off").returncode == 0
    twin = write_bundle(tmp_path / "twin", **arguments).folder
    shutil.copytree(instance.bundle / "neff", twin / "neff")
    other = dataclasses.replace(instance, home=tmp_path / "twin-home", bundle=twin)
    assert other.manifest["state"] == "portable"
    done = other.finish("--kernels", "off")
    assert (done.returncode, other.calls) == (0, [])
    assert other.manifest["state"] == "compiled"
