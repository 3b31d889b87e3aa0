"""What a remote build is: which phases run on which instances, for how long at most, and at what price at most."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from neuron_port.build import load_manifest
from neuron_port.deploy.locations import Location
from neuron_port.errors import UsageError
from neuron_port.instances import (
    Instance,
    compile_hosts,
    compile_memory_gib,
    instance,
    instances_of,
    with_prices,
)

PhaseName = Literal["compile", "verify"]
Market = Literal["spot", "on-demand"]

# What we expect a phase to take, to refuse a ceiling that cannot pay for it. Assumed: nobody has measured them.
EXPECTED_MINUTES: dict[PhaseName, int] = {"compile": 30, "verify": 20}
DEFAULT_TIMEOUT_MINUTES = 120
DEFAULT_MAX_USD = 10.0
# The Neuron DLAMI whose JAX environment brings neuronx-cc (aws-neuron-sdk, deploy/environments/dlami.rst). The same
# image compiles and verifies: a NEFF is compiled again when the compiler is another.
IMAGE = "/aws/service/neuron/dlami/multi-framework/ubuntu-24.04/latest/image_id"
NRTPY = "nrtpy==2.34.10"  # SDK 2.32


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a user asks of a remote build."""

    target: str
    remote: Location
    verify: bool = True
    compile_instance: str | None = None
    verify_instance: str | None = None
    market: Market = "on-demand"
    retry_on_demand: bool = True  # once, when a spot instance is reclaimed or there is no spot capacity
    max_usd: float = DEFAULT_MAX_USD
    timeout_minutes: int = DEFAULT_TIMEOUT_MINUTES  # of each phase
    prices: Mapping[str, float] = field(default_factory=dict)
    image: str = IMAGE
    pip_index: str | None = None
    subnet: str | None = None
    finish_arguments: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One instance's work. `usd_per_hour` is the on-demand price, which a spot instance never exceeds."""

    name: PhaseName
    instance: Instance
    usd_per_hour: float
    minutes: int  # its hard end

    @property
    def expected_usd(self) -> float:
        return self.usd_per_hour * EXPECTED_MINUTES[self.name] / 60

    @property
    def most_usd(self) -> float:
        return self.usd_per_hour * self.minutes / 60


@dataclass(frozen=True, kw_only=True)
class Job:
    """A remote build of one bundle. The same bundle with the same options has the same id."""

    id: str
    bundle: Path
    options: Options
    phases: tuple[Phase, ...]
    manifest: Mapping[str, Any]

    def record(self, files: Mapping[str, Mapping[str, Any]], **facts: str) -> dict[str, Any]:
        """job.json, the instance's orders."""
        return {
            "schema_version": 1, "job": self.id, "target": self.options.target,
            "model": self.manifest["model"]["id"], "finish": list(self.options.finish_arguments),
            "pip_index": self.options.pip_index, "nrtpy": NRTPY, "files": files,
            "phases": [
                {"name": phase.name, "instance": phase.instance.name, "minutes": phase.minutes,
                 "usd_per_hour": phase.usd_per_hour} for phase in self.phases
            ],
            **facts,
        }  # fmt: skip


def make_job(bundle: Path, options: Options, *, job_id: str | None = None) -> Job:
    """The job for a bundle, or a refusal before anything is created; a plan gives the job's id.

    Raises: UsageError (options that cannot be met, a ceiling that cannot pay), StorageError (no bundle).
    """
    manifest = load_manifest(bundle)
    if options.timeout_minutes < 5:
        raise UsageError(
            f"--timeout-minutes is {options.timeout_minutes}, must be 5 or more",
            hint="Starting an instance alone takes minutes.",
        )
    if not options.max_usd > 0:
        raise UsageError(f"--max-usd is {options.max_usd}, must be above 0")
    _check_weights(manifest, options)
    machines: list[tuple[PhaseName, Instance]] = [("compile", _compile_machine(manifest, options))]
    if options.verify:
        machines.append(("verify", _verify_machine(manifest, options)))
    return Job(
        id=job_id or _job_id(manifest, options), bundle=bundle, options=options, phases=_limits(machines, options),
        manifest=manifest,
    )  # fmt: skip


def _check_weights(manifest: Mapping[str, Any], options: Options) -> None:
    """A device runs real weights: a bundle without them can be compiled, not verified."""
    weights = manifest["weights"]
    if not options.verify or (weights["mode"] != "reference" and not weights.get("random")):
        return
    why = "random weights, which are not stored" if weights.get("random") else "weights by reference only"
    raise UsageError(
        f"This bundle holds {why}: a device cannot check it",
        hint="Compile without the check (--no-verify), or convert again with --weights copy and a real checkpoint.",
    )


def _priced(found: Instance, options: Options) -> Instance:
    entry = with_prices((found,), options.prices)[0]
    if entry.usd_per_hour is None:
        raise UsageError(
            f"No price is known for {entry.name}: its cost cannot be bounded",
            hint=f"Look it up and say --price {entry.name}=USD.",
        )
    return entry


def _compile_machine(manifest: Mapping[str, Any], options: Options) -> Instance:
    """The cheapest CPU instance with enough memory; compiling needs memory and no chip."""
    if options.compile_instance is not None:
        return _priced(instance(options.compile_instance), options)
    on_a_core = manifest["model"]["params"] / manifest["target"].get("tp", 1)
    memory_gib = compile_memory_gib(on_a_core)
    hosts = [host for host in with_prices(compile_hosts(), options.prices) if host.memory_gib >= memory_gib]
    if not hosts:
        raise UsageError(
            f"No CPU instance of the table has {memory_gib} GiB for compiling {on_a_core / 1e9:.0f}B parameters per core",
            hint="Name one with --compile-instance, or use more tensor parallelism.",
        )
    return _priced(hosts[0], options)


def _verify_machine(manifest: Mapping[str, Any], options: Options) -> Instance:
    target, degree = options.target, manifest["target"].get("tp", 1)
    if options.verify_instance is not None:
        chosen = instance(options.verify_instance)
        if chosen.target != target:
            raise UsageError(
                f"{chosen.name} does not run what is compiled for {target}",
                hint=f"Choose from: {', '.join(entry.name for entry in instances_of(target))}.",
            )
        return _priced(chosen, options)
    fitting = [
        entry for entry in with_prices(instances_of(target), options.prices)
        if entry.cores >= degree and entry.device_memory_gib * 2**30 > manifest["weights"]["bytes"]
    ]  # fmt: skip
    if not fitting:
        raise UsageError(
            f"No {target} instance of the table holds {manifest['weights']['bytes'] / 2**30:.0f} GiB of weights on "
            f"{degree} cores", hint="Name one with --verify-instance.",
        )  # fmt: skip
    return _priced(fitting[0], options)


def _limits(machines: list[tuple[PhaseName, Instance]], options: Options) -> tuple[Phase, ...]:
    """Phases with their hard ends: the time limit, or sooner where the ceiling would be passed.

    The instance keeps its end by itself, so the ceiling holds when nobody is watching any more.
    """
    asked = [
        Phase(
            name=name,
            instance=entry,
            usd_per_hour=float(entry.usd_per_hour or 0),
            minutes=options.timeout_minutes,
        )
        for name, entry in machines
    ]
    expected = sum(phase.expected_usd for phase in asked)
    if expected > options.max_usd:
        lines = ", ".join(
            f"{phase.name} on {phase.instance.name} {EXPECTED_MINUTES[phase.name]} min x "
            f"${phase.usd_per_hour:.4f}/h = ${phase.expected_usd:.2f}"
            for phase in asked
        )
        raise UsageError(
            f"This build is expected to cost ${expected:.2f} ({lines}), above the ceiling of ${options.max_usd:.2f}",
            hint="Nothing was created. Raise --max-usd, or choose smaller instances.",
        )
    most = sum(phase.most_usd for phase in asked)
    share = min(1.0, options.max_usd / most) if most else 1.0
    # What is expected comes first; what the ceiling leaves is shared in proportion to what could be used at most.
    spare = (options.max_usd - expected) / (most - expected) if most > expected else 1.0
    if share == 1.0:
        return tuple(asked)
    return tuple(
        Phase(name=phase.name, instance=phase.instance, usd_per_hour=phase.usd_per_hour,
              minutes=_minutes(phase, spare)) for phase in asked
    )  # fmt: skip


def _minutes(phase: Phase, spare: float) -> int:
    expected = EXPECTED_MINUTES[phase.name]
    return max(1, int(expected + spare * (phase.minutes - expected)))


def _job_id(manifest: Mapping[str, Any], options: Options) -> str:
    """Model, target and a digest of everything that decides the result, not of the bundle's present state."""
    decides = {
        "graphs": [[graph["id"], graph["hlo_sha256"], graph["ref_hlo_sha256"]] for graph in manifest["graphs"]],
        "kernels": [kernel["sha256"] for kernel in manifest["kernels"]],
        "weights": [file["sha256"] for file in manifest["weights"]["files"]],
        "target": options.target, "verify": options.verify, "image": options.image,
        "finish": list(options.finish_arguments),
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:10]
    slug = re.sub(r"[^a-z0-9]+", "-", manifest["model"]["id"].lower()).strip("-")[:40].strip("-") or "model"
    return f"{slug}-{options.target}-{digest}"
