"""Looks at this machine without importing what it looks at: a broken package must not break the doctor.

Versions are read from the metadata of installed distributions, modules are looked for and not imported, programs are
asked for their version with a time limit, and AWS is never called.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

PACKAGES = {  # distribution -> the module that it brings
    "torch": "torch", "transformers": "transformers", "jaxlib": "jaxlib", "jax": "jax", "boto3": "boto3",
    "starlette": "starlette", "uvicorn": "uvicorn", "prometheus-client": "prometheus_client",
    "neuronx-cc": "neuronxcc", "torch-neuronx": "torch_neuronx", "libneuronxla": "libneuronxla", "nki": "nki",
    "nrtpy": "nrtpy", "jax-neuronx": "jax_neuronx", "vllm-neuron": "vllm_neuron", "optimum-neuron": "optimum.neuron",
}  # fmt: skip
PROGRAMS = ("neuronx-cc", "neuron-ls", "neuron-top", "docker")
PROGRAM_SECONDS = 20


@dataclass(frozen=True, kw_only=True)
class Package:
    """One installed distribution. `module` is None where its module cannot be found, or looking for it failed."""

    name: str
    version: str | None  # None: not installed
    module: str | None
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Program:
    """One program on PATH; `version` is what it says of itself, in one line."""

    name: str
    path: str | None
    version: str = ""
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Everything that was seen."""

    python: str
    system: str
    cpus: int
    memory_bytes: int
    instance_type: str | None  # of EC2, from the machine's own tables
    devices: tuple[str, ...]  # /dev/neuron*
    driver: str | None
    packages: Mapping[str, Package]
    programs: Mapping[str, Program]
    credentials: str | None  # where AWS credentials are written, never what they are
    requirements: Mapping[str, str]  # package -> what neuron-port asks of it: `jaxlib>=0.10.2,<0.11`


@dataclass(frozen=True)
class Places:
    """Where to look; a parameter, so that tests bring a machine of their own."""

    root: Path = Path("/")
    home: Path = field(default_factory=Path.home)
    search_path: Sequence[str] | None = None  # of distributions; None: this interpreter's
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    run: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run


def look(places: Places | None = None) -> Machine:
    """What is here. Nothing that is broken raises: it is written in `problem`."""
    places = places or Places()
    return Machine(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        cpus=os.cpu_count() or 1,
        memory_bytes=_memory_bytes(places.root),
        instance_type=_instance_type(places.root),
        devices=tuple(sorted(str(path) for path in _glob(places.root / "dev", "neuron[0-9]*"))),
        driver=_line(places.root / "sys/module/neuron/version"),
        packages={name: find_package(name, module, places.search_path) for name, module in PACKAGES.items()},
        programs={name: _program(name, places) for name in PROGRAMS},
        credentials=_credentials(places),
        requirements=_requirements(),
    )


def find_package(name: str, module: str, search_path: Sequence[str] | None = None) -> Package:
    """The distribution of that name, and whether its module is there; broken metadata is a problem, not an error."""
    try:
        found = next(iter(_distributions(name, search_path)), None)
        version = found.version if found is not None else None
    except Exception as error:  # metadata can be damaged in any way
        return Package(name=name, version=None, module=None, problem=_sentence(error))
    if found is None:
        return Package(name=name, version=None, module=None)
    place, problem = _module(module, search_path)
    return Package(
        name=name,
        version=version or "no version",
        module=place,
        problem=problem or ("" if place else f"its module `{module}` is not there"),
    )


def _requirements() -> dict[str, str]:
    """What neuron-port's own metadata asks of each package, extras included."""
    try:
        texts = metadata.requires("neuron-port") or []
    except Exception:  # run from a checkout that is not installed, or damaged metadata
        return {}
    found: dict[str, str] = {}
    for text in texts:
        requirement = text.partition(";")[0].strip()
        name = re.match(r"[\w.-]+", requirement)
        if name is not None:
            found.setdefault(name[0], requirement)
    return found


def _distributions(name: str, search_path: Sequence[str] | None) -> Sequence[metadata.Distribution]:
    if search_path is None:
        return list(metadata.distributions(name=name))
    return list(metadata.distributions(name=name, path=list(search_path)))


def _module(name: str, search_path: Sequence[str] | None) -> tuple[str | None, str]:
    """(where the module is, what went wrong). Parents are not imported: their folder is looked into."""
    relative = Path(*name.split("."))
    for entry in search_path if search_path is not None else sys.path:
        base = Path(entry or ".") / relative
        for candidate in (base / "__init__.py", base.with_suffix(".py"), base):
            if candidate.exists():
                return str(candidate), ""
    if search_path is not None or "." in name:
        return None, ""
    try:
        spec = importlib.util.find_spec(name)  # extension modules, and what an editable install points to
    except Exception as error:  # whatever a broken finder raises
        return None, _sentence(error)
    return (spec.origin or name, "") if spec is not None else (None, "")


def _program(name: str, places: Places) -> Program:
    path = shutil.which(name, path=places.environment.get("PATH", ""))
    if path is None:
        return Program(name=name, path=None)
    try:
        done = places.run(
            [path, "--version"],
            capture_output=True,
            text=True,
            timeout=PROGRAM_SECONDS,
            check=False,
            env=dict(places.environment),
        )
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        return Program(name=name, path=path, problem=f"does not run: {_sentence(error)}")
    text = " ".join(f"{done.stdout} {done.stderr}".split())[:100]
    if done.returncode != 0:
        return Program(
            name=name,
            path=path,
            problem=f"`{name} --version` ended with {done.returncode}: {text}".rstrip(": "),
        )
    return Program(name=name, path=path, version=text)


def _memory_bytes(root: Path) -> int:
    found = re.search(r"MemTotal:\s+(\d+) kB", _text(root / "proc/meminfo"))
    return int(found[1]) * 1024 if found else 0


def _instance_type(root: Path) -> str | None:
    """`inf2.xlarge` where DMI says so: on Nitro instances the product's name is the instance type."""
    vendor = _line(root / "sys/devices/virtual/dmi/id/sys_vendor") or ""
    product = _line(root / "sys/devices/virtual/dmi/id/product_name") or ""
    return product if "Amazon EC2" in vendor and re.fullmatch(r"[a-z0-9-]+\.[a-z0-9-]+", product) else None


def _credentials(places: Places) -> str | None:
    """Where credentials would come from. They are not read, and AWS is not asked."""
    environment = places.environment
    if environment.get("AWS_ACCESS_KEY_ID"):
        return "the environment (AWS_ACCESS_KEY_ID)"
    if environment.get("AWS_PROFILE"):
        return f"the profile `{environment['AWS_PROFILE']}`"
    for variable in (
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    ):
        if environment.get(variable):
            return f"the environment ({variable})"
    file = Path(environment.get("AWS_SHARED_CREDENTIALS_FILE") or places.home / ".aws" / "credentials")
    try:
        return str(file) if file.is_file() else None
    except OSError:
        return None


def _glob(folder: Path, pattern: str) -> list[Path]:
    try:
        return list(folder.glob(pattern))
    except OSError:
        return []


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _line(file: Path) -> str | None:
    return _text(file).strip() or None


def _sentence(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]
