"""The deployable bundle: portable HLO with its proof, finished on an instance by `finish.py`.

Names load on first use: writing a bundle needs torch, reading a manifest does not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuron_port.build.artifact import Artifact as Artifact
    from neuron_port.build.artifact import GraphFiles as GraphFiles
    from neuron_port.build.bundle import write_bundle as write_bundle
    from neuron_port.build.manifest import load_manifest as load_manifest
    from neuron_port.build.manifest import verify_files as verify_files

_HOMES = {
    "Artifact": "artifact",
    "GraphFiles": "artifact",
    "load_manifest": "manifest",
    "verify_files": "manifest",
    "write_bundle": "bundle",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
