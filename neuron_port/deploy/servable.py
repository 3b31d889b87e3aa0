"""Refuses, before anything is made or written, a bundle that `serve --backend neuron` would refuse on the instance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neuron_port.errors import UsageError


def check_servable(bundle: Path, manifest: Mapping[str, Any]) -> None:
    """Raise UsageError unless the bundle is compiled, holds its weights, and runs on one core."""
    weights, degree = manifest["weights"], manifest["target"].get("tp", 1)
    if manifest["state"] == "portable":
        raise UsageError(
            f"`{bundle}` is not compiled: there is nothing to run on a chip",
            hint="First: neuron-port build BUNDLE --target T, here or with --remote.",
        )
    if weights.get("random") or weights["mode"] == "reference":
        raise UsageError(
            f"`{bundle}` holds no weights: an instance cannot serve it",
            hint="Convert again with --weights copy and a real checkpoint.",
        )
    if degree > 1:
        raise UsageError(
            f"`{bundle}` is split over {degree} ranks, and `neuron-port serve` runs one",
            hint="Convert the model with --tensor-parallel 1 to serve it.",
        )
