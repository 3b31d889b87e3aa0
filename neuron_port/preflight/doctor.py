"""`neuron-port doctor`: what is installed, which versions go together, what works here, and one cure for each gap.

Versions that go together are in releases.toml. Nothing is imported, nothing is installed, and AWS is not called.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from neuron_port.preflight.probes import Machine, Package

TABLE = Path(__file__).with_name("releases.toml")
SDK_PACKAGES = ("neuronx-cc", "torch-neuronx", "libneuronxla", "nki", "nrtpy", "jax-neuronx", "vllm-neuron")
# Stands in the cures for the address of the SDK's pip repository, which its installation guide gives.
REPOSITORY = "$NEURON_REPOSITORY"
REPOSITORY_NOTE = (
    "NEURON_REPOSITORY: the address in the Neuron SDK's installation guide (setup/pytorch/manual.rst)"
)
INSTALL_RUNTIME = f"python -m venv nrt && nrt/bin/pip install --extra-index-url {REPOSITORY} nrtpy"
GIB = 2**30
LITTLE_MEMORY_GIB = 16  # a compilation of a large transformer takes 10 GiB and more

State = Literal["yes", "no", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Release:
    """One SDK release and the prefixes of its packages' versions; an empty tuple: it has no such package."""

    sdk: str
    python: tuple[str, ...]
    packages: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that does not go together or is not what it seems, and the command that cures it."""

    what: str
    cure: str


@dataclass(frozen=True, kw_only=True)
class Ability:
    """Something that neuron-port does: whether it works on this machine, why not, and the one command that cures it."""

    name: str
    works: State
    reason: str
    cure: str = ""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """All of it."""

    machine: Machine
    release: str | None  # the SDK that the installed packages are of; None: none, or of several
    problems: tuple[Problem, ...]
    abilities: tuple[Ability, ...]
    releases_source: str


def diagnose(machine: Machine) -> Diagnosis:
    """What follows from what was seen."""
    document = _document()
    releases = tuple(_release(row) for row in document["release"])
    reserved = {
        name
        for name, versions in document["placeholders"].items()
        if _is_placeholder(machine.packages[name], versions)
    }
    real = {
        name: package
        for name, package in machine.packages.items()
        if package.version is not None and name not in reserved
    }
    seen = _Seen(machine=machine, real=real, reserved=frozenset(reserved))
    return Diagnosis(
        machine=machine,
        release=_release_of(real, releases),
        problems=(*_broken(seen), *_mixed(seen, releases)),
        abilities=tuple(_abilities(seen)),
        releases_source=str(document["source"]),
    )


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """The machine, and which of its packages are what they say."""

    machine: Machine
    real: Mapping[str, Package]
    reserved: frozenset[str]  # installed, and only a reserved name

    def has(self, *names: str) -> bool:
        return all(name in self.real and not self.real[name].problem for name in names)

    def lacking(self, *names: str) -> tuple[str, ...]:
        return tuple(name for name in names if not self.has(name))

    def install(self, requirement: str) -> str:
        return f"pip install --extra-index-url {REPOSITORY} '{requirement}'"


def _is_placeholder(package: Package, versions: Sequence[str]) -> bool:
    """Whether a package is what the public index has under the name: of a known version, or without its module."""
    if package.version is None:
        return False
    listed = any(
        _begins(package.version, version) or package.version.startswith(f"{version}.post")
        for version in versions
    )
    return listed or (package.module is None and package.version.startswith("0.0"))


def _document() -> dict[str, Any]:
    with TABLE.open("rb") as file:
        return tomllib.load(file)


def _release(row: Mapping[str, Any]) -> Release:
    packages = {name: tuple(row[name]) for name in SDK_PACKAGES if name in row}
    return Release(sdk=row["sdk"], python=tuple(row["python"]), packages=packages)


def releases_of(package: Package, releases: Sequence[Release]) -> tuple[str, ...]:
    """The SDK releases that have this version of the package."""
    version = package.version or ""
    return tuple(
        release.sdk
        for release in releases
        if any(_begins(version, prefix) for prefix in release.packages.get(package.name, ()))
    )


def _begins(version: str, prefix: str) -> bool:
    return version == prefix or version.startswith((f"{prefix}.", f"{prefix}+"))


def _release_of(real: Mapping[str, Package], releases: Sequence[Release]) -> str | None:
    found = [set(releases_of(real[name], releases)) for name in SDK_PACKAGES if name in real]
    common = set.intersection(*found) if found else set()
    return max(common, default=None)


def _broken(seen: _Seen) -> Iterator[Problem]:
    """Placeholders, packages without their module, programs that do not run, devices without a driver."""
    for name, package in seen.machine.packages.items():
        if name in seen.reserved:
            yield Problem(
                what=f"{name} {package.version} only reserves the name on the public index: it is not the Neuron SDK's",
                cure=f"pip uninstall -y {name} && {seen.install(name)}",
            )
        elif package.problem:
            version = f" {package.version}" if package.version else ""
            yield Problem(
                what=f"{name}{version} is broken: {package.problem}",
                cure=f"pip install --force-reinstall --no-deps {name}",
            )
    if seen.has("nki", "nrtpy"):
        yield Problem(
            what="nki and nrtpy are in one environment, where their modules overwrite each other",
            cure=INSTALL_RUNTIME,
        )
    for program in seen.machine.programs.values():
        if program.problem:
            yield Problem(what=f"{program.path} {program.problem}", cure=f"which -a {program.name}")
    if seen.machine.devices and seen.machine.driver is None:
        yield Problem(
            what=f"{len(seen.machine.devices)} Neuron devices, but the kernel module `neuron` is not loaded",
            cure="sudo modprobe neuron",
        )


def _mixed(seen: _Seen, releases: Sequence[Release]) -> Iterator[Problem]:
    """Packages of SDK releases that do not go together, judged from the compiler where there is one."""
    installed = [seen.real[name] for name in SDK_PACKAGES if name in seen.real]
    known = {package.name: releases_of(package, releases) for package in installed}
    for package in installed:
        if not known[package.name]:
            yield Problem(
                what=f"{package.name} {package.version} is of no SDK release from {releases[0].sdk} to "
                f"{releases[-1].sdk}",
                cure=f"{seen.install(package.name)} --upgrade",
            )
    base = next((package for package in installed if known[package.name]), None)
    if base is None:
        return
    release = next(one for one in releases if one.sdk == known[base.name][-1])
    for package in installed:
        if known[package.name] and release.sdk not in known[package.name]:
            yield _pair(seen, base, package, known[package.name][-1], release)
    python = ".".join(seen.machine.python.split(".")[:2])
    if python not in release.python:
        yield Problem(
            what=f"Python {python} is not one of SDK {release.sdk}: {', '.join(release.python)}",
            cure=f"python{release.python[-1]} -m venv neuron",
        )


def _pair(seen: _Seen, base: Package, package: Package, sdk: str, release: Release) -> Problem:
    prefixes = release.packages.get(package.name, ())
    what = (
        f"{package.name} {package.version} is of SDK {sdk}, {base.name} {base.version} of SDK {release.sdk}"
    )
    if not prefixes:
        return Problem(what=f"{what}, which has no {package.name}", cure=f"pip uninstall -y {package.name}")
    return Problem(what=what, cure=seen.install(f"{package.name}=={prefixes[-1]}.*"))


def _abilities(seen: _Seen) -> Iterator[Ability]:
    """What neuron-port does, in the order in which a user comes to it."""
    yield _packages(seen, "check, plan, convert", "torch", "transformers")
    yield _packages(seen, "prove graphs on XLA-CPU", "jaxlib", "jax")
    yield _compiler(seen)
    yield _kernels(seen)
    yield _device(seen)
    yield _packages(
        seen, "serve on a CPU (xla-cpu, reference)", "jaxlib", "starlette", "uvicorn", "prometheus-client"
    )
    yield _remote(seen)


def _packages(seen: _Seen, name: str, *needs: str) -> Ability:
    missing = seen.lacking(*needs)
    if not missing:
        versions = ", ".join(f"{need} {seen.real[need].version}" for need in needs)
        return Ability(name=name, works="yes", reason=versions)
    wanted = " ".join(f"'{seen.machine.requirements.get(need, need)}'" for need in missing)
    return Ability(name=name, works="no", reason=f"lacks {', '.join(missing)}", cure=f"pip install {wanted}")


def _compiler(seen: _Seen) -> Ability:
    name, program = "build: compile graphs", seen.machine.programs["neuronx-cc"]
    if program.path is None or program.problem or "neuronx-cc" in seen.reserved:
        reason = program.problem or "neuronx-cc is not on PATH"
        if "neuronx-cc" in seen.reserved:
            reason = "only the placeholder of neuronx-cc is installed"
        return Ability(name=name, works="no", reason=reason, cure=seen.install("neuronx-cc==2.27.*"))
    memory = seen.machine.memory_bytes / GIB
    little = f"; {memory:.0f} GiB of memory is little for it" if memory < LITTLE_MEMORY_GIB else ""
    return Ability(name=name, works="yes", reason=f"{program.path}: {program.version}{little}")


def _kernels(seen: _Seen) -> Ability:
    name = "build: NKI kernels"
    if seen.has("nki"):
        return Ability(name=name, works="yes", reason=f"nki {seen.real['nki'].version}")
    reason = "only the placeholder of nki is installed" if "nki" in seen.reserved else "lacks nki"
    reason += "; graphs are compiled without kernels"
    return Ability(name=name, works="no", reason=reason, cure=seen.install("nki==0.6.*"))


def _device(seen: _Seen) -> Ability:
    name, machine = "check and serve on a device", seen.machine
    if not machine.devices:
        neuron = (machine.instance_type or "").startswith(("inf2.", "trn1", "trn2"))
        return Ability(
            name=name,
            works="no",
            reason="there is no /dev/neuron*"
            + (f" on {machine.instance_type}" if machine.instance_type else ""),
            cure="sudo modprobe neuron" if neuron else "neuron-port deploy --help",
        )
    if not seen.has("nrtpy"):
        return Ability(
            name=name,
            works="no",
            reason=f"{len(machine.devices)} devices, but nrtpy is not in this environment",
            cure=INSTALL_RUNTIME,
        )
    return Ability(
        name=name, works="yes", reason=f"{len(machine.devices)} devices, nrtpy {seen.real['nrtpy'].version}"
    )


def _remote(seen: _Seen) -> Ability:
    name = "build --remote, deploy"
    if not seen.has("boto3"):
        return _packages(seen, name, "boto3")
    if seen.machine.credentials is None:
        on_ec2 = seen.machine.instance_type is not None
        role = "; the instance's own role was not asked" if on_ec2 else ""
        return Ability(
            name=name,
            works="unknown" if on_ec2 else "no",
            reason=f"no AWS credentials are written here{role}",
            cure="aws configure",
        )
    return Ability(
        name=name, works="yes", reason=f"credentials from {seen.machine.credentials}; AWS was not asked"
    )
