"""The records of this stage: what goes into a bundle for each graph, and the bundle itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from neuron_port.types import BundleState, GraphSpec


@dataclass(frozen=True, kw_only=True)
class GraphFiles:
    """One graph as the compiler reads it.

    Attributes:
        spec: the graph's interface, in the order of the HLO's parameters and results.
        hlo: HloModuleProto whose verified kernels are custom calls `neuron_port.<kernel>`, each with its
            reference as the computation that it calls.
        reference_hlo: the same graph with the references in their place (`finishing.hlo_edit`): what was executed
            here, and what needs no NKI.
        lint: JSON of what is known about the graph before any compilation.
    """

    spec: GraphSpec
    hlo: bytes
    reference_hlo: bytes
    lint: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A bundle on disk and its manifest."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def state(self) -> BundleState:
        """Portable (HLO), compiled (every graph has a NEFF) or device-verified (a device agreed)."""
        return cast(BundleState, self.manifest["state"])

    @property
    def graphs(self) -> tuple[str, ...]:
        return tuple(graph["id"] for graph in self.manifest["graphs"])
