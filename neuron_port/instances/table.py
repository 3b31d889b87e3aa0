"""Instance types as frozen records, read from `instances.toml`; a name that is not there gets its neighbours."""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from neuron_port.errors import UsageError

TABLE = Path(__file__).with_name("instances.toml")
GIB_PER_GB = 1e9 / 2**30

Confidence = Literal["high", "medium", "low", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Where a group of figures comes from, the day it speaks of (ISO), and how far it can be trusted."""

    source: str
    date: str
    confidence: Confidence


UNKNOWN = Evidence(source="no public source found", date="", confidence="unknown")


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One EC2 instance type. Figures of accelerators are sums over the instance; None: no source gives it."""

    name: str
    target: str | None  # what neuronx-cc compiles for; None without a Neuron chip
    accelerator: str | None  # name of the chip or GPU; None on a CPU instance
    vcpus: int
    memory_gib: float
    accelerators: int
    cores: int  # physical NeuronCores; a GPU counts as one
    device_memory_gib: float
    tflops_bf16: float  # dense
    tflops_fp32: float
    bandwidth_gib_s: float  # device memory
    link_gib_s: float | None  # between accelerators, per accelerator, as published; None on one accelerator
    usd_per_hour: float | None
    watts: float | None  # published maximum of the accelerators; host and cooling come on top
    hardware_evidence: Evidence
    price_evidence: Evidence
    power_evidence: Evidence

    @property
    def kind(self) -> Literal["neuron", "gpu", "cpu"]:
        if self.accelerator is None:
            return "cpu"
        return "gpu" if self.target is None else "neuron"


def instance(name: str) -> Instance:
    """The instance type of this name; UsageError with neighbours when the table has none."""
    known = _table()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    same = [other for other in known if other.split(".")[0] == name.split(".")[0]]
    suggestion = f"Did you mean {_or(near)}?" if near else f"Known: {', '.join(same or known)}."
    raise UsageError(f"Unknown instance type: `{name}`", hint=suggestion)


def instances_of(target: str) -> tuple[Instance, ...]:
    """Instance types that run what is compiled for a target, cheapest first; those without a price last."""
    return _by_price(entry for entry in _table().values() if entry.target == target)


def gpu_instances() -> tuple[Instance, ...]:
    """The GPU instance types to compare with, cheapest first."""
    return _by_price(entry for entry in _table().values() if entry.kind == "gpu")


def compile_hosts() -> tuple[Instance, ...]:
    """Instance types without an accelerator, on which neuronx-cc can run, cheapest first."""
    return _by_price(entry for entry in _table().values() if entry.kind == "cpu")


# Largest count of parameters on one core -> memory in GiB of a host that compiles the graph. Public reports: an 8B model
# was killed on 32 GiB (aws-neuron-sdk issue 1222), Stable Diffusion 2.1 on 16 GiB (aws-neuron-samples issue 10). The
# rest is interpolation, on the safe side.
_COMPILE_MEMORY_GIB = ((5e8, 32), (2e9, 64), (9e9, 128), (2e10, 256), (float("inf"), 512))


def compile_memory_gib(parameters: float) -> int:
    """Memory that neuronx-cc wants of its host for a graph with that many parameters on one core; low confidence."""
    return next(memory for limit, memory in _COMPILE_MEMORY_GIB if parameters <= limit)


def all_instances() -> tuple[Instance, ...]:
    """Every instance type of the table, in its order."""
    return tuple(_table().values())


def with_price(entry: Instance, usd_per_hour: float) -> Instance:
    """The instance at a price that the reader gave, in US$ per hour; UsageError for a price that is none."""
    if not math.isfinite(usd_per_hour) or usd_per_hour < 0:
        raise UsageError(
            f"Price of {entry.name} is `{usd_per_hour}`, must be US$ per hour.",
            hint=f"For example: --price {entry.name}=1.25",
        )
    evidence = Evidence(source="given by you (--price)", date="", confidence="high")
    return replace(entry, usd_per_hour=usd_per_hour, price_evidence=evidence)


def with_prices(entries: Iterable[Instance], prices: Mapping[str, float]) -> tuple[Instance, ...]:
    """The instances, those named in `prices` at their given price; cheapest first."""
    return _by_price(
        with_price(entry, prices[entry.name]) if entry.name in prices else entry for entry in entries
    )


def table_date() -> str:
    """The day that the snapshot of prices speaks of (ISO)."""
    return str(_document()["meta"]["date"])


def table_region() -> str:
    """The region whose prices the table has."""
    return str(_document()["meta"]["region"])


def _by_price(entries: Iterable[Instance]) -> tuple[Instance, ...]:
    return tuple(
        sorted(entries, key=lambda entry: (entry.usd_per_hour is None, entry.usd_per_hour or 0, entry.name))
    )


def _or(names: list[str]) -> str:
    quoted = [f"`{name}`" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"


@cache
def _document() -> dict[str, Any]:
    with TABLE.open("rb") as file:
        return tomllib.load(file)


@cache
def _table() -> dict[str, Instance]:
    document = _document()
    return {
        name: _instance(name, size, family, document["accelerators"])
        for family in document["families"].values()
        for name, size in family["sizes"].items()
    }


def _instance(
    name: str, size: Mapping[str, Any], family: Mapping[str, Any], accelerators: Mapping[str, Any]
) -> Instance:
    """One row of a family, its accelerator's figures multiplied by their number."""
    chip: Mapping[str, Any] = accelerators.get(family.get("accelerator", ""), {})
    count = int(size.get("accelerators", 0))
    link = _gib_s("link", {**chip, **size}) if count > 1 else None
    watts = chip.get("watts")
    return Instance(
        name=name,
        target=family.get("target"),
        accelerator=family.get("accelerator"),
        vcpus=size["vcpus"],
        memory_gib=float(size["memory_gib"]),
        accelerators=count,
        cores=count * chip.get("cores", 1),
        device_memory_gib=count * chip.get("memory_gib", 0.0),
        tflops_bf16=count * chip.get("tflops_bf16", 0.0),
        tflops_fp32=count * chip.get("tflops_fp32", 0.0),
        bandwidth_gib_s=count * (_gib_s("bandwidth", chip) or 0.0),
        link_gib_s=link,
        usd_per_hour=size.get("usd_per_hour"),
        watts=count * watts if watts is not None else None,
        hardware_evidence=_evidence(chip.get("hardware") or family.get("hardware")),
        price_evidence=_evidence(size.get("price") or family.get("price")),
        power_evidence=_evidence(chip.get("power")),
    )


def _gib_s(name: str, figures: Mapping[str, Any]) -> float | None:
    """A bandwidth in GiB/s, whichever unit its source used; a size's own figure comes after its chip's."""
    for key in reversed(list(figures)):
        if key == f"{name}_gb_s":
            return float(figures[key]) * GIB_PER_GB
        if key == f"{name}_gib_s":
            return float(figures[key])
    return None


def _evidence(entry: Mapping[str, str] | None) -> Evidence:
    if entry is None:
        return UNKNOWN
    confidence: Any = entry["confidence"]
    return Evidence(source=entry["source"], date=entry["date"], confidence=confidence)
