"""Writes into the manifest what is true now: NEFFs with their hashes, the state, the device's report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .build import Build, is_whole, recorded_key
from .files import MANIFEST, read_json, sha256_of, write_json


def update_manifest(build: Build, device: Mapping[str, Any] | None, instance: str) -> dict[str, Any]:
    """Write what is true now: NEFFs with their hashes, the state of this target, the device's report.

    `state`, `build` and each graph's `neff` speak of one target: the last one that was finished whole. Every
    target keeps its own entry in `build.targets`.
    """
    folder = build.bundle.folder
    manifest = read_json(folder / MANIFEST)
    records = {}
    for graph in manifest["graphs"]:
        path = build.neff(graph["id"])
        key = recorded_key(path)
        if key is not None and is_whole(path, key):
            records[graph["id"]] = read_json(path.with_suffix(".json"))
    complete = len(records) == len(manifest["graphs"])
    verified = bool(complete and device and device.get("graphs") and set(device["graphs"]) == set(records)
                    and all(result["pass"] for result in device["graphs"].values()))  # fmt: skip
    before = manifest["build"]["targets"].get(build.target, {})
    keys = {graph: record["key"] for graph, record in sorted(records.items())}
    if (
        device is None
        and complete
        and before.get("state") == "device-verified"
        and before.get("keys") == keys
    ):
        verified = True  # the same NEFFs that a device has confirmed already
    state = "device-verified" if verified else "compiled" if complete else "portable"
    manifest["build"]["targets"][build.target] = {
        "state": state, "compiler": build.compiler.version, "nki": build.nki_version or None, "keys": keys,
        "kernels": {graph: {"on": record["kernels"], "reason": record["kernels_reason"]}
                    for graph, record in sorted(records.items())},
        "seconds": round(sum(record["seconds"] for record in records.values()), 1),
        "device": instance if device is not None else before.get("device") if verified else None,
    }  # fmt: skip
    if complete or manifest["build"]["target"] in (None, build.target):
        _speak_of(manifest, build, records, state if complete else "portable")
    if device is not None:
        _write_device_report(folder / "device" / instance, device)
    prefixes = (f"neff/{build.target}/", f"device/{instance}/")
    kept = {name: value for name, value in manifest["files"].items() if not name.startswith(prefixes)}
    written = sorted(
        path
        for prefix in prefixes
        for path in (folder / prefix).glob("*")
        if path.is_file() and path.name[0] != "."
    )
    manifest["files"] = kept | {path.relative_to(folder).as_posix(): sha256_of(path) for path in written}
    write_json(folder / MANIFEST, manifest)
    return dict(manifest["build"]["targets"][build.target])


def _speak_of(
    manifest: dict[str, Any], build: Build, records: Mapping[str, Mapping[str, Any]], state: str
) -> None:
    """Make `build.target` the one that the manifest's state and NEFFs speak of."""
    manifest["state"] = state
    manifest["build"] |= {"target": build.target, "compiler": build.compiler.version}
    for graph in manifest["graphs"]:
        record = records.get(graph["id"])
        graph["neff"] = record and {
            "path": f"neff/{build.target}/{graph['id']}.neff", "target": build.target,
            "sha256": record["sha256"],
            "compiler": record["compiler"], "argv": record["argv"], "kernels": record["kernels"],
        }  # fmt: skip


def _write_device_report(folder: Path, device: Mapping[str, Any]) -> None:
    write_json(
        folder / "parity.json", {name: value for name, value in device.items() if name != "benchmarks"}
    )
    write_json(folder / "bench.json", device.get("benchmarks", {}))
