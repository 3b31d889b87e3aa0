"""Finishing a bundle against stand-ins: compiling, skipping, resuming, sharing a cache."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from stand_in_instance import Instance

from neuron_port.build import verify_files, write_bundle

PREFILL, DECODE = "prefill_b1_s2", "decode_b1_t3"


def test_a_portable_bundle_becomes_compiled(instance: Instance) -> None:
    """Every graph gets a NEFF, a record and a log; the manifest says compiled and its hashes are right."""
    done = instance.finish()
    assert done.returncode == 0, done.stderr
    manifest = instance.manifest
    assert manifest["state"] == "compiled"
    assert "no device has confirmed" in done.stderr
    for graph in manifest["graphs"]:
        record = json.loads((instance.bundle / "neff" / "trn2" / f"{graph['id']}.json").read_text())
        assert (instance.bundle / graph["neff"]["path"]).is_file()
        assert (record["sha256"], record["compiler"]) == (graph["neff"]["sha256"], "2.27.5334.0")
    assert verify_files(instance.bundle) == []


def test_the_compiler_gets_the_documented_command(instance: Instance) -> None:
    """The strict stand-in accepts the flags, phases differ in -O, and NEURON_CC_FLAGS do not leak in."""
    assert instance.finish().returncode == 0
    commands = {call["graph"]: call for call in instance.calls}
    wanted = {"--auto-cast", "none", "--lnc", "2", "-O1", "--native-int64=disabled"}
    assert wanted <= set(commands[PREFILL]["argv"])
    assert "-O2" in commands[DECODE]["argv"]
    assert "NEURON_CC_FLAGS" not in commands[PREFILL]["env"]


@pytest.mark.parametrize("target", ["inf2", "trn1"])
def test_other_chips_are_finished_from_the_same_bundle(instance: Instance, target: str) -> None:
    """A bundle planned for trn2 compiles for gen2 chips with their flags, kernels off, and says why."""
    done = instance.finish(target=target)
    assert done.returncode == 0, done.stderr
    assert "AWS's documents disagree" in done.stderr
    assert all("--lnc" not in call["argv"] for call in instance.calls)
    assert instance.manifest["build"]["target"] == target
    assert instance.manifest["graphs"][0]["neff"]["path"].startswith(f"neff/{target}/")


def test_an_older_compiler_does_not_get_flags_that_it_does_not_know(instance: Instance) -> None:
    """Flags that came with 2.27 are left out for 2.26."""
    instance.version = "2.26.6360.0"
    done = instance.finish()
    assert done.returncode == 0, done.stderr
    assert "goes with Neuron SDK 2.31 and nki 0.5" in done.stderr
    assert not any("integer" in part for call in instance.calls for part in call["argv"])


def test_finished_graphs_are_skipped_and_it_says_so(instance: Instance) -> None:
    """A second run compiles nothing."""
    instance.finish()
    before = len(instance.calls)
    done = instance.finish()
    assert (done.returncode, len(instance.calls)) == (0, before)
    assert done.stderr.count("already compiled, skipped") == 2


def test_another_compiler_version_compiles_again(instance: Instance) -> None:
    """The compiler's version is part of a NEFF's key."""
    instance.finish()
    instance.version = "2.28.1.0"
    done = instance.finish()
    assert "newer than 2.27, the last known here" in done.stderr
    assert len(instance.calls) == 4


@pytest.mark.parametrize("damage", ["truncate", "remove", "half a record"])
def test_a_damaged_neff_is_compiled_again(instance: Instance, damage: str) -> None:
    """A NEFF that is truncated, missing or without a whole record costs one compilation of that graph."""
    instance.finish()
    neff = instance.bundle / "neff" / "trn2" / f"{DECODE}.neff"
    if damage == "truncate":
        neff.write_bytes(neff.read_bytes()[:-7])
    elif damage == "remove":
        neff.unlink()
    else:
        neff.with_suffix(".json").write_text('{"key": "')
    done = instance.finish()
    assert done.returncode == 0, done.stderr
    assert [call["graph"] for call in instance.calls][2:] == [DECODE]
    assert ("truncated or changed" in done.stderr) == (damage == "truncate")
    assert verify_files(instance.bundle) == []


def test_only_the_named_graphs_are_compiled(instance: Instance) -> None:
    """--graphs limits the work; the state stays portable until every graph has a NEFF."""
    assert instance.finish("--graphs", DECODE).returncode == 0
    assert instance.manifest["state"] == "portable"
    assert [graph["neff"] is None for graph in instance.manifest["graphs"]] == [True, False]
    assert instance.finish().returncode == 0
    assert instance.manifest["state"] == "compiled"
    assert len(instance.calls) == 2


def test_an_unknown_graph_is_a_usage_error(instance: Instance) -> None:
    """The graphs that exist are named."""
    done = instance.finish("--graphs", "decode_b9")
    assert done.returncode == 2
    assert f"The bundle has: {PREFILL}, {DECODE}" in done.stderr


def test_a_dry_run_writes_nothing(instance: Instance) -> None:
    """--dry-run prints one command per graph and leaves the bundle as it was."""
    before = {path: path.stat().st_mtime_ns for path in instance.bundle.rglob("*")}
    done = instance.finish("--dry-run")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 2
    assert instance.calls == []
    assert {path: path.stat().st_mtime_ns for path in instance.bundle.rglob("*")} == before


def test_bundles_share_a_cache(instance: Instance, tmp_path: Path, arguments: dict[str, Any]) -> None:
    """With --cache, an equal graph of another bundle is taken from the cache."""
    cache = ("--cache", str(tmp_path / "cache"))
    assert instance.finish(*cache).returncode == 0
    other = write_bundle(tmp_path / "second", **arguments).folder
    twin = dataclasses.replace(instance, home=tmp_path / "twin", bundle=other)
    done = twin.finish(*cache)
    assert done.returncode == 0, done.stderr
    assert (done.stderr.count("taken from the cache"), twin.calls) == (2, [])
    assert verify_files(other) == []


def test_neffs_survive_writing_the_bundle_again(instance: Instance, arguments: dict[str, Any]) -> None:
    """A bundle that is replaced keeps its NEFFs; those whose graph is the same need no compilation."""
    instance.finish()
    write_bundle(instance.bundle, **arguments)
    assert instance.manifest["state"] == "portable"
    assert instance.finish().returncode == 0
    assert len(instance.calls) == 2
