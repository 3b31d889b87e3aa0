"""What state a bundle is in, and what that rests on: looked up anew, nothing is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .environment import Bundle, damaged_files
from .files import ENVIRONMENT, OK
from .jobs import by_reason
from .manifest import confirmed_before, current_records, files_of


def show(bundle: Bundle) -> int:
    """Print the states; the exit code says whether the manifest's own words still hold."""
    manifest = bundle.manifest
    said: list[str] = []
    later = ("neff/", "torchscript/", "device/", "weights/")
    broken = damaged_files(bundle.folder, manifest, within=lambda name: not name.startswith(later))
    spoken_of = (manifest["build"]["target"], manifest["build"].get("engine", "hlo"))
    known = "portable"
    for engine, entries in (("hlo", "targets"), ("trace", "traced")):
        for target, entry in manifest["build"].get(entries, {}).items():
            lines, holds = _target(bundle, target, engine, entry)
            said += lines
            known = entry["state"] if spoken_of == (target, engine) else known
            if not holds:
                broken.append(f"{target}, engine {engine}: `{entry['state']}` does not hold any more")
    if manifest["state"] != known:
        broken.append(
            f"the manifest says `{manifest['state']}`; no run of finish.py has come further than `{known}`"
        )
    where = f" ({spoken_of[0]}, engine {spoken_of[1]})" if spoken_of[0] else ""
    print(f"{manifest['model']['id']}: {manifest['state']}{where}")
    if not said:
        print("  nothing is compiled. It rests on:")
    print(_parity(manifest["parity"]))
    print("\n".join(said), end="\n" if said else "")
    for line in broken:
        print(f"BROKEN: {line}")
    if broken:
        print("Run finish.py again: what does not hold is made anew, and the state follows.")
    return ENVIRONMENT if broken else OK


def _parity(parity: Mapping[str, Any]) -> str:
    sides = ", ".join(f"{side} ({entry['cases']} cases)" for side, entry in parity["sides"].items())
    missing = f"; not run: {', '.join(parity['not_run'])}" if parity["not_run"] else ""
    return f"  portable: the graphs agree with {'; '.join(parity['oracle']) or 'nothing'} in {sides}{missing}"


def _target(bundle: Bundle, target: str, engine: str, entry: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Lines about one target, and whether its recorded state holds."""
    traced = engine == "trace"
    files, current = (
        files_of(bundle.folder, target, traced=traced),
        current_records(bundle, target, traced=traced),
    )
    lines = [f"  {target}, engine {engine}: {entry['state']}, by neuronx-cc {entry['compiler']}"]
    for graph in bundle.manifest["graphs"]:
        name = graph["id"]
        if name in current:
            changed = current[name]["sha256"] != entry["sha256"].get(name)
            note = "NOT the file that this state speaks of" if changed else _kernels(current[name])
        elif not files.path(name).is_file():
            note = "not compiled"
        elif files.record(name) is None:
            note = "its record is missing or damaged"
        elif not files.is_whole(name):
            note = "CHANGED since it was compiled: its SHA-256 is not the recorded one"
        else:
            note = "compiled from another graph, plan, kernel or weight than the bundle has now"
        lines.append(f"    {name}: {note}")
    complete = len(current) == len(bundle.manifest["graphs"])
    if entry["state"] != "device-verified":
        lines.append("    no device has confirmed these files")
        return lines, entry["state"] == "portable" or complete
    holds = complete and confirmed_before(entry, current)
    lines.append(
        f"    {entry['device']} confirmed exactly these files" if holds
        else f"    {entry['device']} confirmed other files than these"
    )  # fmt: skip
    return lines, holds


def _kernels(record: Mapping[str, Any]) -> str:
    kernels = record["kernels"]
    native = [name for name, entry in kernels.items() if entry["by"] == "nki"]
    left = {name: entry["reason"] for name, entry in kernels.items() if entry["by"] == "compiler"}
    parts = [f"NKI: {', '.join(native)}"] if native else []
    parts += [f"compiler: {', '.join(names)} ({reason})" for reason, names in by_reason(left).items()]
    return "; ".join(parts) or "no kernels in it"
