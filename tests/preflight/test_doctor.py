"""The doctor on machines made of folders: placeholders, mixed releases, broken packages, devices, credentials."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from neuron_port.cli import commands
from neuron_port.preflight.doctor import Ability, Diagnosis, diagnose
from neuron_port.preflight.probes import Places, find_package, look


class FakeMachine:
    """A root, a home and a folder of distributions; what is not put in is not there."""

    def __init__(self, folder: Path) -> None:
        self.root, self.home, self.site = folder / "root", folder / "home", folder / "site"
        self.bin = folder / "bin"
        for place in (self.root / "dev", self.home, self.site, self.bin):
            place.mkdir(parents=True)
        self.environment = {"PATH": str(self.bin)}

    def install(self, name: str, version: str, module: str | None) -> None:
        """A distribution's metadata and, where `module` is named, its package."""
        info = self.site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        if module is not None:
            (self.site / module).mkdir()
            (self.site / module / "__init__.py").write_text("raise RuntimeError('must not be imported')\n")

    def program(self, name: str, text: str) -> None:
        file = self.bin / name
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def diagnosis(self, **changes: Any) -> Diagnosis:
        places = Places(
            root=self.root,
            home=self.home,
            search_path=[str(self.site)],
            environment=self.environment,
            **changes,
        )
        return diagnose(replace(look(places), python="3.11.9"))  # of every release, whatever runs the tests


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    return FakeMachine(tmp_path)


def ability(found: Diagnosis, name: str) -> Ability:
    return next(one for one in found.abilities if one.name == name)


def test_an_empty_machine_has_a_cure_for_everything(machine: FakeMachine) -> None:
    """Nothing works, nothing crashes, and each gap has one command."""
    found = machine.diagnosis()
    assert {one.works for one in found.abilities} == {"no"}
    assert all(one.cure for one in found.abilities)
    assert found.problems == ()
    assert found.release is None


def test_one_release_is_recognised(machine: FakeMachine) -> None:
    """neuronx-cc 2.27 and nki 0.6 are both of SDK 2.32: no problem, and the release is named."""
    machine.install("neuronx-cc", "2.27.5334.0", "neuronxcc")
    machine.install("nki", "0.6.0", "nki")
    found = machine.diagnosis()
    assert found.release == "2.32"
    assert found.problems == ()
    assert ability(found, "build: NKI kernels").works == "yes"


def test_two_releases_do_not_go_together(machine: FakeMachine) -> None:
    """neuronx-cc of SDK 2.32 beside nki of 2.31: both are named, and the cure installs the pair."""
    machine.install("neuronx-cc", "2.27.5334.0", "neuronxcc")
    machine.install("nki", "0.5.0", "nki")
    found = machine.diagnosis()
    assert found.release is None
    assert [one.what for one in found.problems] == [
        "nki 0.5.0 is of SDK 2.31, neuronx-cc 2.27.5334.0 of SDK 2.32"
    ]
    assert "nki==0.6.*" in found.problems[0].cure


def test_a_package_that_the_release_has_not(machine: FakeMachine) -> None:
    """torch-neuronx ended with SDK 2.31: beside the compiler of 2.32 it is named as what does not belong."""
    machine.install("neuronx-cc", "2.27.5334.0", "neuronxcc")
    machine.install("torch-neuronx", "2.9.0.2.15.32035", "torch_neuronx")
    found = machine.diagnosis()
    assert "of SDK 2.32, which has no torch-neuronx" in found.problems[0].what
    assert found.problems[0].cure == "pip uninstall -y torch-neuronx"


def test_an_unknown_version_is_of_no_release(machine: FakeMachine) -> None:
    """A compiler of 2019 is of none of the releases in the table."""
    machine.install("neuronx-cc", "1.5.0", "neuronxcc")
    assert "is of no SDK release from 2.26 to 2.32" in machine.diagnosis().problems[0].what


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("neuronx-cc", "1.0.post1"),
        ("torch-neuronx", "1.0"),
        ("libneuronxla", "1.0"),
        ("nki", "0.0.1"),
        ("nrtpy", "0.0.1"),
        ("jax-neuronx", "0.0.0"),
        ("vllm-neuron", "0.1.0"),
    ],
)
def test_placeholders_of_the_public_index(name: str, version: str, machine: FakeMachine) -> None:
    """What the public index has under the SDK's names is told from the SDK, and counts as not installed."""
    machine.install(name, version, None)
    found = machine.diagnosis()
    assert f"{name} {version} only reserves the name" in found.problems[0].what
    assert found.problems[0].cure.startswith(f"pip uninstall -y {name} && pip install")
    assert found.release is None


def test_a_placeholder_of_the_compiler_is_no_compiler(machine: FakeMachine) -> None:
    """The reason why nothing compiles is the placeholder, even where a program of that name is on PATH."""
    machine.install("neuronx-cc", "1.0.post1", None)
    machine.program("neuronx-cc", "echo hello")
    found = ability(machine.diagnosis(), "build: compile graphs")
    assert found.works == "no"
    assert found.reason == "only the placeholder of neuronx-cc is installed"


def test_a_compiler_on_path_compiles(machine: FakeMachine) -> None:
    """A neuronx-cc that states its version is enough; a little memory is said."""
    machine.program("neuronx-cc", "echo NeuronX Compiler version 2.27.5334.0")
    machine.write("proc/meminfo", "MemTotal:       8000000 kB\n")
    found = ability(machine.diagnosis(), "build: compile graphs")
    assert found.works == "yes"
    assert "2.27.5334.0" in found.reason
    assert "8 GiB of memory is little" in found.reason


def test_a_compiler_that_does_not_run_is_a_problem(machine: FakeMachine) -> None:
    """A program that ends with an error is named with what it said."""
    machine.program("neuronx-cc", "echo libneuron.so is missing >&2; exit 127")
    found = machine.diagnosis()
    assert "ended with 127: libneuron.so is missing" in found.problems[0].what
    assert ability(found, "build: compile graphs").works == "no"


def test_a_program_that_hangs_does_not_hold_up_the_doctor(machine: FakeMachine) -> None:
    """A version that is not told in time is a problem like any other."""
    machine.program("neuron-ls", "true")

    def never(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    assert "does not run: TimeoutExpired" in machine.diagnosis(run=never).problems[0].what


def test_a_package_without_its_module_is_broken(machine: FakeMachine) -> None:
    """Metadata of jaxlib without jaxlib: named, with the command that mends it."""
    machine.install("jaxlib", "0.10.2", None)
    found = machine.diagnosis()
    assert found.problems[0].what == "jaxlib 0.10.2 is broken: its module `jaxlib` is not there"
    assert ability(found, "prove graphs on XLA-CPU").works == "no"


def test_damaged_metadata_is_no_crash(machine: FakeMachine) -> None:
    """A dist-info folder without metadata, and one of binary rubbish, are survived."""
    (machine.site / "torch-2.13.0.dist-info").mkdir()
    (machine.site / "nki-0.6.0.dist-info").mkdir()
    (machine.site / "nki-0.6.0.dist-info" / "METADATA").write_bytes(b"\xff\xfe\x00rubbish")
    found = machine.diagnosis()
    assert ability(found, "check, plan, convert").works == "no"


def test_modules_are_not_imported(machine: FakeMachine) -> None:
    """A package that would raise when imported is looked at all the same."""
    machine.install("nki", "0.6.0", "nki")
    found = find_package("nki", "nki", [str(machine.site)])
    assert (found.version, found.problem) == ("0.6.0", "")


def test_nki_and_nrtpy_cannot_share(machine: FakeMachine) -> None:
    """The two wheels overwrite each other's modules: the cure is an environment of its own."""
    machine.install("nki", "0.6.0", "nki")
    machine.install("nrtpy", "2.34.10", "nrtpy")
    problem = machine.diagnosis().problems[0]
    assert "overwrite each other" in problem.what
    assert problem.cure.startswith("python -m venv")


def test_a_neuron_instance_is_recognised(machine: FakeMachine) -> None:
    """DMI names the instance type; devices and driver are seen; nrtpy makes the device usable."""
    machine.write("sys/devices/virtual/dmi/id/sys_vendor", "Amazon EC2\n")
    machine.write("sys/devices/virtual/dmi/id/product_name", "inf2.xlarge\n")
    machine.write("dev/neuron0", "")
    machine.write("sys/module/neuron/version", "2.24.1\n")
    machine.install("nrtpy", "2.34.10", "nrtpy")
    found = machine.diagnosis()
    assert found.machine.instance_type == "inf2.xlarge"
    assert (len(found.machine.devices), found.machine.driver) == (1, "2.24.1")
    assert ability(found, "check and serve on a device").works == "yes"


def test_a_device_without_its_driver_is_a_problem(machine: FakeMachine) -> None:
    """A device node is there, the kernel module is not loaded."""
    machine.write("dev/neuron0", "")
    assert machine.diagnosis().problems[0].cure == "sudo modprobe neuron"


def test_a_laptop_is_no_instance(machine: FakeMachine) -> None:
    """Another vendor's product name is not taken for an instance type."""
    machine.write("sys/devices/virtual/dmi/id/sys_vendor", "LENOVO\n")
    machine.write("sys/devices/virtual/dmi/id/product_name", "20.xlarge\n")
    assert machine.diagnosis().machine.instance_type is None


def test_credentials_are_found_and_not_read(machine: FakeMachine) -> None:
    """Where credentials are is told; what they are is in no field of the diagnosis."""
    machine.install("boto3", "1.44.5", "boto3")
    assert ability(machine.diagnosis(), "build --remote, deploy").works == "no"
    machine.environment["AWS_ACCESS_KEY_ID"] = "AKIASECRET"
    found = machine.diagnosis()
    assert ability(found, "build --remote, deploy").works == "yes"
    assert "AKIASECRET" not in repr(found)


def test_a_profile_on_disk_counts(machine: FakeMachine) -> None:
    """A credentials file in the home folder is found by its place."""
    machine.install("boto3", "1.44.5", "boto3")
    (machine.home / ".aws").mkdir()
    (machine.home / ".aws" / "credentials").write_text("[default]\n")
    assert "credentials" in ability(machine.diagnosis(), "build --remote, deploy").reason


def test_a_python_that_the_release_has_not(machine: FakeMachine) -> None:
    """The interpreter's version is held against the release's list."""
    machine.install("neuronx-cc", "2.27.5334.0", "neuronxcc")
    places = Places(root=machine.root, home=machine.home, search_path=[str(machine.site)], environment={})
    seen = look(places)
    assert not diagnose(replace(seen, python="3.12.1")).problems
    found = diagnose(replace(seen, python="3.14.0"))
    assert "Python 3.14 is not one of SDK 2.32" in found.problems[0].what


def test_the_command_answers_on_this_machine() -> None:
    """`doctor` exits with 0 and finds the torch that runs these tests; JSON says the same."""
    done = CliRunner().invoke(commands, ["doctor"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("what works here")
    done = CliRunner().invoke(commands, ["doctor", "--json"])
    assert json.loads(done.stdout)["machine"]["packages"]["torch"]["version"]
