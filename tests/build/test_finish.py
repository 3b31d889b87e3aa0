"""Finishing a bundle against stand-ins for neuronx-cc, nki and nrtpy: five steps, failures, resuming."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from stand_in_instance import Instance
from tiny_bundle import graph_bytes

from neuron_port.build import verify_files, write_bundle
from neuron_port.build.finishing.compiler import explain
from neuron_port.build.finishing.environment import Compiler, check_compiler_version, check_machine
from neuron_port.build.finishing.files import GIB, Stop
from neuron_port.build.finishing.hlo import HloError, entry_parameters, placeholders, replace_custom_calls
from neuron_port.build.finishing.kernels import NkiProbe, choose_kernels
from neuron_port.build.finishing.tables import ERROR_CODES, KERNEL_CODES
from neuron_port.lower import read_module

PREFILL, DECODE = "prefill_b1_s2", "decode_b1_t3"


# ------------------------------------------------------------------------------------------------- compiling


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


# -------------------------------------------------------------------------------------------------- failures


def test_a_compiler_error_code_is_translated(instance: Instance) -> None:
    """A refused graph ends with exit code 4, its cause and cure; the other graph's NEFF is kept."""
    instance.fail = {DECODE: "NCC_EVRF001"}
    done = instance.finish()
    assert done.returncode == 4
    assert "an operation is not supported by this compiler (NCC_EVRF001)" in done.stderr
    assert "cure: try the newest neuronx-cc" in done.stderr
    assert instance.manifest["state"] == "portable"
    instance.fail = {}
    assert instance.finish().returncode == 0
    assert [call["graph"] for call in instance.calls].count(PREFILL) == 1


def test_running_out_of_memory_is_recognised(instance: Instance) -> None:
    """A compiler that the kernel killed is reported as lack of memory, not as a mysterious -9."""
    instance.fail = {PREFILL: "memory"}
    done = instance.finish()
    assert done.returncode == 4
    assert "the host ran out of memory" in done.stderr
    assert "--jobs 1" in done.stderr


def test_a_truncated_neff_is_not_accepted_from_the_compiler(instance: Instance) -> None:
    """A NEFF shorter than its own header says does not count, whatever the exit status."""
    instance.fail = {PREFILL: "truncated"}
    done = instance.finish()
    assert done.returncode == 4
    assert "the NEFF is truncated" in done.stderr
    assert not (instance.bundle / "neff" / "trn2" / f"{PREFILL}.neff").exists()


def test_an_interrupted_run_goes_on_where_it_stopped(instance: Instance) -> None:
    """Ctrl-C ends the compiler and keeps what was finished; the same command continues."""
    instance.fail = {DECODE: "hang"}
    stopped = instance.interrupt_while_compiling()
    assert stopped.returncode == 130, stopped.stderr
    assert "Run the same command again" in stopped.stderr
    assert [graph["neff"] is None for graph in instance.manifest["graphs"]] == [False, True]
    instance.fail = {}
    assert instance.finish().returncode == 0
    assert [call["graph"] for call in instance.calls] == [PREFILL, DECODE, DECODE]


def test_a_missing_compiler_is_explained(instance: Instance) -> None:
    """Without neuronx-cc on PATH the run ends with exit code 3 and what to install."""
    (instance.home / "bin" / "neuronx-cc").unlink()
    done = instance.finish()
    assert done.returncode == 3
    assert "neuronx-cc is not on PATH" in done.stderr
    assert "requirements-sdk2.32.txt" in done.stderr


@pytest.mark.parametrize(
    ("version", "message"), [("2.21.33363.0", "too old"), ("0.0.1", "not the Neuron SDK's")]
)
def test_a_wrong_compiler_is_refused(instance: Instance, version: str, message: str) -> None:
    """An old compiler and a placeholder without a real version are refused before anything is compiled."""
    instance.version = version
    done = instance.finish()
    assert (done.returncode, instance.calls) == (3, [])
    assert message in done.stderr


def test_a_damaged_bundle_is_refused(instance: Instance) -> None:
    """A graph whose bytes changed stops the run first."""
    path = instance.bundle / "graphs" / PREFILL / "graph.ref.hlo.pb"
    path.write_bytes(path.read_bytes() + b"\0")
    done = instance.finish()
    assert (done.returncode, instance.calls) == (3, [])
    assert f"graphs/{PREFILL}/graph.ref.hlo.pb has changed" in done.stderr


def test_a_64_bit_instruction_id_would_be_refused(
    instance: Instance, arguments: dict[str, Any], tmp_path: Path
) -> None:
    """The stand-in compiler checks ids as XLA does, so the passing tests prove 32-bit ids."""
    graph = arguments["graphs"][0]
    large = dataclasses.replace(graph, reference_hlo=graph_bytes(kernel=None, first_id=2**31))
    instance.bundle = write_bundle(tmp_path / "large", **arguments | {"graphs": [large], "golden": {}}).folder
    done = instance.finish("--kernels", "off")
    assert done.returncode == 4
    assert "INT_MAX" in done.stderr


def test_two_runs_at_once_are_refused(instance: Instance) -> None:
    """A bundle is finished by one process at a time."""
    import fcntl

    with (instance.bundle / "build" / ".finish.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = instance.finish()
    assert done.returncode == 3
    assert "Another finish.py" in done.stderr


def test_a_small_disk_is_refused() -> None:
    """Too little free space is said before compiling."""
    machine = {"graph_count": 2, "memory_bytes": 64 * GIB, "cpu_count": 8, "jobs": None}
    assert check_machine(free_disk_bytes=4 * GIB, **machine) == 2
    with pytest.raises(Stop, match=r"The disk has 1\.0 GiB free"):
        check_machine(free_disk_bytes=GIB, **machine)


def test_jobs_follow_memory() -> None:
    """As many compilations at once as there are 16 GiB of memory, unless told otherwise."""
    machine = {"graph_count": 8, "free_disk_bytes": 100 * GIB, "cpu_count": 32}
    assert check_machine(memory_bytes=40 * GIB, jobs=None, **machine) == 2
    assert check_machine(memory_bytes=40 * GIB, jobs=5, **machine) == 5


def test_versions_are_compared_as_numbers() -> None:
    """2.9 is older than 2.23."""
    with pytest.raises(Stop, match="too old"):
        check_compiler_version(Compiler("neuronx-cc", "2.9.4.0"))
    assert check_compiler_version(Compiler("neuronx-cc", "2.100.0.0")).version == "2.100.0.0"


@pytest.mark.parametrize("code", sorted(ERROR_CODES))
def test_every_documented_code_has_a_cause_and_a_cure(code: str) -> None:
    """A log with the code yields a sentence of ours, never the raw log."""
    outcome = explain(1, f"2026-08-01 ERROR [NCC_{code}] internal words")
    assert outcome.codes == (code,)
    assert outcome.cause.endswith(f"(NCC_{code})")
    assert outcome.cure
    assert set(KERNEL_CODES) <= set(ERROR_CODES)


def test_an_unknown_failure_quotes_the_compiler() -> None:
    """A failure that we have no words for shows the last line that speaks of an error."""
    outcome = explain(70, "info\nERROR: assertion failed: tile\nbye")
    assert "ERROR: assertion failed: tile" in outcome.cause


# --------------------------------------------------------------------------------------------------- kernels


def test_kernels_are_compiled_into_the_graph(instance: Instance) -> None:
    """With nki, placeholders become native kernels, which the compiler knows, and the record says so."""
    done = instance.finish(*instance.nki)
    assert done.returncode == 0, done.stderr
    kernels = instance.manifest["build"]["targets"]["trn2"]["kernels"]
    assert kernels[PREFILL] == {"on": True, "reason": "nki 0.6.0"}
    assert instance.manifest["build"]["targets"]["trn2"]["nki"] == "0.6.0"


def test_a_native_kernel_names_its_compiled_file_and_nothing_else_changes() -> None:
    """Replacing a call changes its target and configuration; shapes, ids, operands and parameters stay."""
    module = graph_bytes(kernel="rms_norm")
    (call,) = placeholders(module)
    assert [shape.dimensions for shape in call.inputs] == [(2, 4), (4,)]
    assert call.attributes == {"eps": 1e-5, "bias": None}
    config = base64.b64encode(b'{"func_name": "rms_norm"}')
    changed = replace_custom_calls(module, {(call.computation, call.instruction.id): config})
    assert placeholders(changed) == []
    assert b"neuron_port.rms_norm" not in changed
    assert config in changed
    assert entry_parameters(changed) == entry_parameters(module)
    before, after = read_module(module).computations, read_module(changed).computations
    different = [(old, new) for old, new in zip(before[0].instructions, after[0].instructions) if old != new]
    ((old, new),) = different
    settled = {"custom_call_target": "AwsNeuronCustomNativeKernel", "backend_config": config}
    assert dataclasses.replace(old, attributes={**old.attributes, **settled}) == new
    assert replace_custom_calls(module, {}) == module


def test_bytes_that_are_no_hlo_are_refused() -> None:
    """A truncated module raises, instead of being read as a shorter one."""
    with pytest.raises(HloError):
        placeholders(graph_bytes(kernel="rms_norm")[:-5])


def test_a_kernel_that_nki_refuses_costs_the_kernels_not_the_graph(instance: Instance) -> None:
    """When nki fails, the compiler-lowered twin is compiled and the reason is recorded."""
    instance.environment["FAKE_NKI"] = "broken"
    done = instance.finish(*instance.nki)
    assert done.returncode == 0, done.stderr
    recorded = instance.manifest["build"]["targets"]["trn2"]["kernels"][PREFILL]
    assert recorded["on"] is False
    assert "partition dimension 256 exceeds maximum 128" in recorded["reason"]


def test_kernels_that_the_compiler_refuses_fall_back(instance: Instance) -> None:
    """With --kernels auto a kernel error of neuronx-cc leads to the twin; with --kernels on it fails."""
    instance.fail = {PREFILL: "NCC_EVRF065+kernels"}
    assert instance.finish(*instance.nki, "--kernels", "on").returncode == 4
    done = instance.finish(*instance.nki)
    assert done.returncode == 0, done.stderr
    recorded = instance.manifest["build"]["targets"]["trn2"]["kernels"]
    assert (recorded[PREFILL]["on"], recorded[DECODE]["on"]) == (False, True)
    assert "refused the kernels" in recorded[PREFILL]["reason"]


def test_kernels_on_without_nki_is_an_environment_error(instance: Instance) -> None:
    """--kernels on insists."""
    done = instance.finish("--kernels", "on")
    assert done.returncode == 3
    assert "--nki-python" in done.stderr


@pytest.mark.parametrize(
    ("requested", "target", "probe", "expected"),
    [
        ("auto", "trn2", NkiProbe("0.6.0"), True),
        ("auto", "trn2", NkiProbe("0.3.0", "nki 0.3.0 is older than 0.4"), False),
        ("auto", "inf2", NkiProbe("0.6.0"), False),
        ("auto", "trn1", NkiProbe("0.6.0"), False),
        ("on", "inf2", NkiProbe("0.6.0"), True),
        ("off", "trn2", NkiProbe("0.6.0"), False),
    ],
)
def test_kernels_are_chosen_by_chip_and_nki(
    requested: str, target: str, probe: NkiProbe, expected: bool
) -> None:
    """trn2 uses kernels when nki can; inf2 and trn1 only when asked; every choice has a reason."""
    chosen, reason = choose_kernels(requested, target, lambda: probe)
    assert chosen is expected
    assert reason


# ---------------------------------------------------------------------------------------------------- device


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
