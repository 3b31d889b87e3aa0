"""The bundle's own graphs on the CPU, through XLA: the twin of every kernel, and the very interface of the chip.

Weights are bound once; states are XLA's own buffers, which a step writes in place and hands to the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from neuron_port.lower import XlaExecutable
from neuron_port.lower.execution import Buffer, buffer_to_numpy, from_torch
from neuron_port.serving.bundle import Bundle, BundleWeights
from neuron_port.types import GraphInput, GraphSpec

Array = NDArray[Any]


class XlaRuntime:
    """All graphs of a bundle compiled for this CPU, with one set of states between them."""

    def __init__(self, bundle: Bundle) -> None:
        weights = BundleWeights(bundle)
        self._graphs = {graph.id: graph for graph in bundle.graphs}
        self._executables = {graph.id: _executable(bundle, graph, weights) for graph in bundle.graphs}
        self._states: dict[str, Buffer] = {}
        self._homes = {
            item.name: (graph.id, item)
            for graph in bundle.graphs
            for item in graph.inputs
            if item.role == "state"
        }
        self.clear()

    def run(self, graph: str, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Execute one graph; its states are written in place."""
        executable, spec = self._executables[graph], self._graphs[graph]
        given = {name: executable.put(name, array) for name, array in inputs.items()}
        states = [item.name for item in spec.inputs if item.role == "state"]
        results = executable.run(given | {name: self._states[name] for name in states})
        outputs = {}
        for item, buffer in zip(spec.outputs, results, strict=True):
            if item.alias_of is not None:
                self._states[item.alias_of] = buffer
            else:
                outputs[item.name] = buffer
        return {name: buffer_to_numpy(buffer) for name, buffer in outputs.items()}

    def clear(self, row: int | None = None) -> None:
        """Zero the states. Of one row: through the host's memory, which only recurrences and empty prompts need."""
        for name, (graph, item) in self._homes.items():
            array = np.zeros(item.spec.shape, _numpy_dtype(item))
            if row is not None and item.spec.shape[0] > 1:
                array[...] = buffer_to_numpy(self._states[name])
                array[row] = 0
            self._states[name] = self._executables[graph].put(name, array)


def _executable(bundle: Bundle, graph: GraphSpec, weights: BundleWeights) -> XlaExecutable:
    bound = {item.name: from_torch(weights.get(item)) for item in graph.inputs if item.role == "weight"}
    # A decode step writes a token into caches that it then reads whole: fused, every cache is copied four times.
    # Of one row the caches are small, and the products of vectors are faster fused.
    apart = graph.phase == "decode" and graph.batch > 1
    return XlaExecutable(bundle.reference_hlo(graph), fuse=not apart).bind(bound)


def _numpy_dtype(item: GraphInput) -> np.dtype[Any]:
    extended = getattr(ml_dtypes, item.spec.dtype, None)
    return np.dtype(extended if extended is not None else item.spec.dtype)
