"""The manifest of a bundle: reading it, checking files against it, keeping the building machine out of it."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import neuron_port
from neuron_port.build.finishing.environment import damaged_files
from neuron_port.build.finishing.files import MANIFEST, SCHEMA_VERSION, sha256_of
from neuron_port.errors import NeuronPortError, StorageError
from neuron_port.types import Checkpoint, MatchPlan

REQUIRED = (
    "state", "tool", "model", "target", "graphs", "mapping", "kernels", "weights", "parity", "build",
    "requires", "provenance", "files",
)  # fmt: skip
PACKAGES = ("torch", "transformers", "safetensors", "numpy", "ml_dtypes", "jaxlib")
_ABSOLUTE_PATH = re.compile(
    r"(?<![\w.:/~-])(/(?:home|root|tmp|var|opt|usr|mnt|data|srv|work|Users|private)/\S+|[A-Z]:\\\S+)"
)


def load_manifest(bundle: Path) -> dict[str, Any]:
    """The manifest of a bundle.

    Raises: StorageError when it is missing or damaged; NeuronPortError when a newer neuron-port wrote it.
    """
    path = bundle / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StorageError(f"No neuron bundle at: `{bundle}`", hint=f"A bundle has a {MANIFEST}.") from error
    except ValueError as error:
        raise StorageError(
            f"`{path}` is damaged: {error}", hint="Copy or convert the bundle again."
        ) from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("schema_version"), int):
        raise StorageError(
            f"`{path}` is damaged: it has no schema_version", hint="Copy or convert the bundle again."
        )
    if manifest["schema_version"] > SCHEMA_VERSION:
        raise NeuronPortError(
            f"`{bundle}` has manifest version {manifest['schema_version']}; "
            f"this neuron-port reads {SCHEMA_VERSION}",
            hint="Upgrade neuron-port, or use the bundle's own build/finish.py.",
        )
    missing = [name for name in REQUIRED if name not in manifest]
    if missing:
        raise StorageError(
            f"`{path}` is damaged: it has no `{missing[0]}`", hint="Copy or convert the bundle again."
        )
    return manifest


def verify_files(bundle: Path) -> list[str]:
    """One line for every file of a bundle that is missing or has changed; empty when all is well."""
    return damaged_files(bundle, load_manifest(bundle), within=lambda name: True)


def file_hashes(folder: Path, known: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 of every file below `folder` by its path; `known` spares reading the large ones again."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [(path.relative_to(folder).as_posix(), path) for path in paths]
    return {
        name: known.get(name) or sha256_of(path)
        for name, path in names
        if name != MANIFEST and not name.startswith("neff/")
    }


def model_entry(checkpoint: Checkpoint, *, source: str, dtype: str, config_sha256: str) -> dict[str, Any]:
    """The manifest's `model`."""
    task = "text-generation" if checkpoint.architecture.endswith(("ForCausalLM", "LMHeadModel")) else None
    return {
        "id": checkpoint.name, "source": source, "revision": checkpoint.revision,
        "architecture": checkpoint.architecture, "task": task, "dtype": dtype,
        "weight_format": checkpoint.weight_format or dtype,
        "params": sum(spec.size for spec in checkpoint.weights.values()), "config_sha256": config_sha256,
        "license": checkpoint.license,
    }  # fmt: skip


def mapping_entries(plan: MatchPlan, kernels: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The manifest's `mapping`: what was decided for every group of equal layers, and why."""
    identities = {kernel["name"]: kernel["id"] for kernel in kernels}
    entries = []
    for match in plan.matches:
        named = match.decision != "compiler" and match.recipe
        entries.append(
            {
                "module": match.layers[0],
                "count": len(match.layers),
                "signature": match.signature,
                "decision": f"{match.decision}:{identities[match.recipe]}"
                if named and match.recipe
                else match.decision,
                "reason": match.reason,
                "evidence": dict(match.evidence),
            }
        )
    return entries


def provenance(stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """When, with what and how long; nothing that identifies the machine."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": packages,
        "stages": [
            {
                "name": stage["name"],
                "seconds": round(float(stage["seconds"]), 3),
                "reused": bool(stage["reused"]),
            }
            for stage in stages
        ],
    }


def tool_entry() -> dict[str, str]:
    return {"name": "neuron-port", "version": neuron_port.__version__}


def public_source(source: str) -> str:
    """Where a checkpoint came from; of a directory only the last part, which names no machine."""
    if (
        source.startswith(("/", "~", ".", "file:"))
        or re.match(r"[A-Za-z]:\\", source)
        or Path(source).is_dir()
    ):
        return f"local:{Path(source.removeprefix('file:')).name}"
    return source


def without_paths(value: Any) -> Any:
    """The same JSON with absolute paths cut to their last part: a bundle does not tell where it was built."""
    if isinstance(value, str):
        return _ABSOLUTE_PATH.sub(lambda found: re.findall(r"[^/\\]+", found[0])[-1], value)
    if isinstance(value, Mapping):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_paths(item) for item in value]
    return value
