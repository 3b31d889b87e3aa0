"""Step 1: the bundle is whole, the compiler is the SDK's and new enough, the machine is large enough."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from .files import ENVIRONMENT, GIB, MANIFEST, SCHEMA_VERSION, Stop, gib, read_json, say, sha256_of
from .tables import COMPILER_RELEASES, INSTALL, MINIMUM_COMPILER, PLACEHOLDERS


@dataclass(frozen=True)
class Bundle:
    """The folder, its manifest and its build plan."""

    folder: Path
    manifest: dict[str, Any]
    plan: dict[str, Any]


def open_bundle(folder: Path) -> Bundle:
    """Read the manifest and the plan, or stop with a sentence."""
    try:
        manifest = read_json(folder / MANIFEST)
        version = manifest["schema_version"]
    except FileNotFoundError as error:
        raise Stop(
            ENVIRONMENT, f"{folder} is no neuron bundle: it has no {MANIFEST}.", "Name it by --bundle."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise Stop(ENVIRONMENT, f"{MANIFEST} is damaged: {error}.", "Copy the bundle again.") from error
    if version > SCHEMA_VERSION:
        raise Stop(
            ENVIRONMENT,
            f"The bundle has manifest version {version}; this program knows {SCHEMA_VERSION}.",
            "Run the finish.py that lies in the bundle.",
        )
    try:
        return Bundle(folder, manifest, read_json(folder / "build" / "plan.json"))
    except (OSError, ValueError) as error:
        raise Stop(
            ENVIRONMENT, f"build/plan.json cannot be read: {error}.", "Copy the bundle again."
        ) from error


def damaged_files(folder: Path, manifest: Mapping[str, Any], *, within: Callable[[str], bool]) -> list[str]:
    """One line for each file whose SHA-256 is not the manifest's, among the paths that `within` accepts."""
    problems = []
    for name, expected in sorted(manifest.get("files", {}).items()):
        if not within(name):
            continue
        path = folder / name
        if not path.is_file():
            kind = "is a link to nothing" if path.is_symlink() else "is missing"
            problems.append(f"{name} {kind}")
        elif sha256_of(path) != expected:
            problems.append(f"{name} has changed")
    return problems


def check_integrity(bundle: Bundle) -> None:
    """Stop when a file that compilation reads is not the one that was written.

    Weights are checked before they are loaded onto a device, because compilation does not read them; NEFFs
    are checked one by one in step 4, because a damaged one is simply compiled again.
    """
    later = ("weights/", "neff/", "device/")
    problems = damaged_files(bundle.folder, bundle.manifest, within=lambda name: not name.startswith(later))
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise Stop(
            ENVIRONMENT,
            f"The bundle is damaged: {'; '.join(problems[:3])}{more}.",
            "Copy the bundle again, or convert the model again.",
        )
    say(f"bundle: {bundle.manifest['model']['id']}, {len(bundle.manifest['files'])} files, hashes right")


def version_pair(text: str) -> tuple[int, int]:
    """(2, 27) of "2.27.5334.0+abc"; (0, 0) when there is no number."""
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def placeholder_packages() -> list[str]:
    """Packages of this interpreter that only reserve a name: the public index has them at these versions."""
    found = []
    for name, versions in PLACEHOLDERS.items():
        with contextlib.suppress(metadata.PackageNotFoundError):
            version = metadata.version(name)
            if version_pair(version) in ((0, 0), *versions):
                found.append(f"{name} {version}")
    return found


@dataclass(frozen=True)
class Compiler:
    """neuronx-cc: where it is and its version."""

    path: str
    version: str


def find_compiler() -> Compiler:
    """The neuronx-cc on PATH, or stop saying what to install."""
    reserved = placeholder_packages()
    for name in reserved:
        say(f"note: {name} is a placeholder from the public index, not the Neuron SDK's package")
    path = shutil.which("neuronx-cc")
    if path is None:
        why = (
            " (only the placeholder package is installed)"
            if any("neuronx-cc" in name for name in reserved)
            else ""
        )
        raise Stop(ENVIRONMENT, f"neuronx-cc is not on PATH{why}.", f"Install the Neuron SDK: {INSTALL}.")
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Stop(
            ENVIRONMENT, f"{path} does not run: {error}.", f"Install the Neuron SDK: {INSTALL}."
        ) from error
    text = answer.stdout + "\n" + answer.stderr
    found = re.search(r"NeuronX Compiler version ([\w.+]+)", text) or re.search(
        r"\b(\d+\.\d+\.\d+[\w.+]*)", text
    )
    if answer.returncode != 0 or found is None or version_pair(found[1]) == (0, 0):
        raise Stop(
            ENVIRONMENT,
            f"{path} is not the Neuron SDK's compiler: `neuronx-cc --version` states no version of it.",
            f"Remove the placeholder package and install the Neuron SDK: {INSTALL}.",
        )
    return check_compiler_version(Compiler(path, found[1]))


def check_compiler_version(compiler: Compiler) -> Compiler:
    """Stop when the compiler is too old; say which SDK and nki belong to it."""
    pair = version_pair(compiler.version)
    newest = max(COMPILER_RELEASES)
    if pair < MINIMUM_COMPILER:
        raise Stop(
            ENVIRONMENT,
            f"neuronx-cc {compiler.version} is too old: the bundle needs "
            f"{MINIMUM_COMPILER[0]}.{MINIMUM_COMPILER[1]} or newer.",
            f"Install SDK 2.32: {INSTALL}.",
        )
    if pair in COMPILER_RELEASES:
        sdk, nki = COMPILER_RELEASES[pair]
        say(f"neuronx-cc {compiler.version}: goes with Neuron SDK {sdk} and nki {nki}")
    else:
        say(f"neuronx-cc {compiler.version}: newer than {newest[0]}.{newest[1]}, the last known here")
    return compiler


def available_memory_bytes() -> int:
    """Memory that the kernel says is free for new programs."""
    with contextlib.suppress(OSError, ValueError):
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="utf-8"))
        if found:
            return int(found[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_machine(
    *, graph_count: int, free_disk_bytes: int, memory_bytes: int, cpu_count: int, jobs: int | None
) -> int:
    """Stop when the disk is too small; return how many graphs to compile at once."""
    needed = 2 * GIB + graph_count * GIB // 2
    if free_disk_bytes < needed:
        raise Stop(
            ENVIRONMENT,
            f"The disk has {gib(free_disk_bytes)} free; compiling {graph_count} graphs wants {gib(needed)}.",
            "Free some space, or point --work at a larger disk.",
        )
    # Compiling a large transformer takes 10 GiB and more; two at once are what gets killed on small hosts.
    fitting = max(1, min(graph_count, cpu_count // 2, memory_bytes // (16 * GIB)))
    chosen = jobs or fitting
    if memory_bytes < 16 * GIB * chosen:
        say(
            f"note: {gib(memory_bytes)} of memory for {chosen} compilation(s) at once is little; if one is "
            "killed, compile on a host with more memory (no Neuron device is needed for that)"
        )
    return chosen
