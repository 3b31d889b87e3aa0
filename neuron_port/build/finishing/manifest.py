"""Writes into the manifest what is true now: files with their hashes, the state, the device's report.

This file alone writes a state, and every state is derived from what lies in the bundle at that moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import tracing
from .build import Build
from .environment import Bundle
from .files import MANIFEST, read_json, sha256_of, write_json
from .jobs import is_current
from .neffs import Neffs
from .tracing import Tracing

Records = Mapping[str, Mapping[str, Any]]


def current_records(bundle: Bundle, target: str, *, traced: bool = False) -> dict[str, dict[str, Any]]:
    """By graph: the records of the files that are whole and were made of what the bundle holds now."""
    kept = files_of(bundle.folder, target, traced=traced)
    current = tracing.is_current if traced else is_current
    found = {}
    for graph in bundle.manifest["graphs"]:
        record = kept.record(graph["id"])
        if record and kept.is_whole(graph["id"]) and current(bundle, target, graph, record):
            found[graph["id"]] = record
    return found


def files_of(folder: Path, target: str, *, traced: bool) -> Neffs:
    """What was compiled for a target: its NEFFs, or its traced files."""
    return Neffs(folder / "torchscript" / target, suffix=".pt") if traced else Neffs(folder / "neff" / target)


def confirmed_before(entry: Mapping[str, Any], records: Records) -> bool:
    """Whether a device has confirmed exactly these files, byte by byte."""
    hashes = {graph: record["sha256"] for graph, record in records.items()}
    return entry.get("state") == "device-verified" and entry.get("sha256") == hashes


def update_manifest(build: Build, device: Mapping[str, Any] | None, instance: str) -> dict[str, Any]:
    """After a run of engine hlo: the target's entry in `build.targets`, which is returned."""
    records = current_records(build.bundle, build.target)
    made = {
        "compiler": build.compiler.version, "nki": build.nki_version or None,
        "kernels": {graph: record["kernels"] for graph, record in sorted(records.items())},
    }  # fmt: skip
    return _update(build, "hlo", records, made, device, instance)


def update_traced(engine: Tracing, device: Mapping[str, Any] | None, instance: str) -> dict[str, Any]:
    """After a run of engine trace: the target's entry in `build.traced`, which is returned."""
    records = current_records(engine.bundle, engine.target, traced=True)
    made = {"compiler": engine.versions["neuronx-cc"], "versions": dict(engine.versions),
            "kernels": {graph: record["kernels"] for graph, record in sorted(records.items())}}  # fmt: skip
    return _update(engine, "trace", records, made, device, instance)


def _update(
    engine: Build | Tracing, name: str, records: Records, made: Mapping[str, Any],
    device: Mapping[str, Any] | None, instance: str,
) -> dict[str, Any]:  # fmt: skip
    """Write what is true now.

    `state`, `build.target`, `build.engine` and each graph's `neff` or `torchscript` speak of one target and
    engine: the last that was finished whole. Every other keeps its own entry.
    """
    folder, target = engine.bundle.folder, engine.target
    manifest = read_json(folder / MANIFEST)
    complete = len(records) == len(manifest["graphs"])
    agreed = bool(device and device.get("graphs") and set(device["graphs"]) == set(records)
                  and all(result["pass"] for result in device["graphs"].values()))  # fmt: skip
    entries = manifest["build"].setdefault("targets" if name == "hlo" else "traced", {})
    before = entries.get(target, {})
    verified = complete and (confirmed_before(before, records) if device is None else agreed)
    state = "device-verified" if verified else "compiled" if complete else "portable"
    entries[target] = {
        "state": state, **made,
        "sha256": {graph: record["sha256"] for graph, record in sorted(records.items())},
        "seconds": round(sum(record["seconds"] for record in records.values()), 1),
        "device": instance if device is not None else before.get("device") if verified else None,
    }  # fmt: skip
    spoken_of = (manifest["build"]["target"], manifest["build"].get("engine", "hlo"))
    if complete or spoken_of[0] is None or spoken_of == (target, name):
        _speak_of(manifest, target, name, records, state)
    report = folder / "device" / (instance if name == "hlo" else f"{instance}.traced")
    if device is not None:
        write_device_report(report, device)
    compiled = "neff" if name == "hlo" else "torchscript"
    reports = (f"device/{report.name}/",) if device is not None else ()
    list_files(manifest, folder, (f"{compiled}/{target}/", *reports))
    write_json(folder / MANIFEST, manifest)
    return dict(entries[target])


def _speak_of(manifest: dict[str, Any], target: str, engine: str, records: Records, state: str) -> None:
    """Make this target and engine the ones that the manifest's state speaks of."""
    manifest["state"] = state
    made = next(iter(records.values()), None)
    compiler = made["compiler"] if made else manifest["build"]["compiler"]
    manifest["build"] |= {"target": target, "engine": engine, "compiler": compiler}
    compiled, suffix = ("neff", "neff") if engine == "hlo" else ("torchscript", "pt")
    for graph in manifest["graphs"]:
        record = records.get(graph["id"])
        graph["neff"] = None
        graph.pop("torchscript", None)
        graph[compiled] = record and {
            "path": f"{compiled}/{target}/{graph['id']}.{suffix}", "target": target,
            "sha256": record["sha256"], "compiler": record["compiler"], "argv": record["argv"],
            "kernels": sorted(name for name, entry in record["kernels"].items() if entry["by"] == "nki"),
        }  # fmt: skip


def write_device_report(folder: Path, device: Mapping[str, Any]) -> None:
    """device/<instance>/: what a device answered, and how fast."""
    parity = {name: value for name, value in device.items() if name != "benchmarks"}
    write_json(folder / "parity.json", parity)
    write_json(folder / "bench.json", device.get("benchmarks", {}))


def list_files(manifest: dict[str, Any], folder: Path, prefixes: tuple[str, ...]) -> None:
    """Bring the manifest's hashes of the files below the prefixes up to date."""
    kept = {name: value for name, value in manifest["files"].items() if not name.startswith(prefixes)}
    written = sorted(
        path
        for prefix in prefixes
        for path in (folder / prefix).glob("*")
        if path.is_file() and path.name[0] != "."
    )
    manifest["files"] = kept | {path.relative_to(folder).as_posix(): sha256_of(path) for path in written}
