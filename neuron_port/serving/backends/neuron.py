"""A bundle's NEFFs on a NeuronCore, through nrtpy.

Written against nrtpy's public documentation (aws-neuron-sdk, neuron-runtime/nrtpy, SDK 2.32) and tested with a
stand-in for it. NOT VERIFIED: no machine with a Neuron device has run it.

Weights and states lie on the device once, shared by all graphs. A state is the same tensor as input and as output,
which is how the runtime lets a graph write it in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuron_port.errors import NeuronPortError, UsageError
from neuron_port.lower.execution import from_torch
from neuron_port.serving.bundle import Bundle, BundleWeights
from neuron_port.types import GraphInput, GraphOutput, GraphSpec

Array = NDArray[Any]
NOT_VERIFIED = (
    "The backend `neuron` follows nrtpy's documentation; no Neuron device has confirmed it yet. "
    "Compare its answers with --backend xla-cpu before relying on them."
)
_ALIAS_SUFFIX = ".must_alias_input"  # what the compiler adds to the name of an input that it writes in place


class NeuronRuntime:
    """All NEFFs of a bundle loaded on core 0, with one set of states between them."""

    def __init__(self, bundle: Bundle) -> None:
        files = neff_files(bundle)
        nrtpy = _nrtpy()
        self._tensor = nrtpy.NrtpyTensor
        weights = BundleWeights(bundle)
        self._weights: dict[tuple[str | None, str, str], Any] = {}
        self._states: dict[str, Any] = {}
        self._specs: dict[str, GraphInput] = {}
        self._graphs = {
            graph.id: self._load(graph, nrtpy.NrtpyModel.load_from_neff(str(files[graph.id])), weights)
            for graph in bundle.graphs
        }

    def run(self, graph: str, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Execute one graph; its states are written in place, on the device."""
        return self._graphs[graph].run(inputs)

    def clear(self, row: int | None = None) -> None:
        """Zero the states; of one row through the host's memory."""
        for name, item in self._specs.items():
            zeros = np.zeros(item.spec.shape, _raw(item.spec.dtype))
            if row is not None and item.spec.shape[0] > 1:
                zeros[...] = _read(self._states[name], item)
                zeros[row] = 0
            self._states[name].write_from_numpy(zeros)

    def _load(self, graph: GraphSpec, model: Any, weights: BundleWeights) -> _LoadedGraph:
        """Put on the device what the graph takes, as far as another graph has not done so."""
        tensors: dict[str, Any] = {}
        for item in graph.inputs:
            if item.role == "weight":
                key = (item.source, item.transform, item.spec.dtype)
                if key not in self._weights:
                    array = from_torch(weights.get(item)).view(_raw(item.spec.dtype))
                    self._weights[key] = self._upload(item.name, array)
                tensors[item.name] = self._weights[key]
                continue
            zeros = np.zeros(item.spec.shape, _raw(item.spec.dtype))
            if item.role == "input":
                tensors[item.name] = self._upload(item.name, zeros)
                continue
            if item.name not in self._states:
                self._states[item.name] = self._upload(item.name, zeros)
                self._specs[item.name] = item
            tensors[item.name] = self._states[item.name]
        outputs = {
            item.name: tensors[item.alias_of]
            if item.alias_of is not None
            else self._upload(item.name, np.zeros(item.spec.shape, _raw(item.spec.dtype)))
            for item in graph.outputs
        }
        return _LoadedGraph(graph, model, tensors, outputs)

    def _upload(self, name: str, array: Array) -> Any:
        return self._tensor.from_numpy(np.ascontiguousarray(array).reshape(array.shape), name=name)


class _LoadedGraph:
    """A NEFF with the device's tensors for everything that it takes and gives."""

    def __init__(
        self, graph: GraphSpec, model: Any, tensors: Mapping[str, Any], outputs: Mapping[str, Any]
    ) -> None:
        self._model = model
        self._tensors = tensors
        self._results = [(item, outputs[item.name]) for item in graph.outputs if item.alias_of is None]
        self._inputs = _by_neff_name(graph, tensors, model.input_tensors_info)
        self._outputs = _by_neff_name(graph, outputs, model.output_tensors_info)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        for name, array in inputs.items():
            self._tensors[name].write_from_numpy(array)
        self._model(inputs=self._inputs, outputs=self._outputs)
        return {item.name: _values(_read(tensor, item), item.spec.dtype) for item, tensor in self._results}


def neff_files(bundle: Bundle) -> dict[str, Path]:
    """The NEFF of each graph, by its id.

    Raises: UsageError when the bundle is only portable, or compiled for no chip as a whole.
    """
    target = bundle.manifest["build"]["target"]
    missing = [entry["id"] for entry in bundle.manifest["graphs"] if not entry["neff"]]
    if bundle.manifest["state"] == "portable" or target is None or missing:
        raise UsageError(
            f"`{bundle.folder}` is `{bundle.manifest['state']}`: its graphs are not compiled for a NeuronCore",
            hint=f"`neuron-port build {bundle.folder} --target inf2|trn1|trn2` compiles them; "
            "--backend xla-cpu serves it as it is.",
        )
    return {graph.id: bundle.folder / "neff" / target / f"{graph.id}.neff" for graph in bundle.graphs}


def _nrtpy() -> Any:
    try:
        import nrtpy
    except ImportError as error:
        raise NeuronPortError(
            "The backend `neuron` needs nrtpy, which is not installed",
            hint="On an Inf2, Trn1 or Trn2 instance with SDK 2.32: pip install nrtpy (not beside the nki wheel).",
        ) from error
    return nrtpy


def _by_neff_name(graph: GraphSpec, tensors: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors under the NEFF's own names of them.

    A tensor that nothing reads may have been dropped by the compiler; one that the NEFF wants must be there.
    """
    named: dict[str, Any] = {}
    for name, tensor in tensors.items():
        for candidate in (name, name + _ALIAS_SUFFIX):
            if candidate in known:
                named[candidate] = tensor
    if missing := sorted(set(known) - set(named)):
        raise NeuronPortError(
            f"The NEFF of `{graph.id}` has a tensor `{missing[0]}` that its interface does not name",
            hint="Compile the bundle again with its own build/finish.py.",
        )
    return named


def _raw(dtype: str) -> str:
    """NumPy's name for the bits of a dtype that NumPy does not have."""
    return {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}.get(dtype, dtype)


def _read(tensor: Any, item: GraphInput | GraphOutput) -> Array:
    """A device tensor's bits: the runtime does not always report dtypes."""
    bits = np.ascontiguousarray(tensor.numpy()).tobytes()
    return np.frombuffer(bits, _raw(item.spec.dtype)).reshape(item.spec.shape)


def _values(bits: Array, dtype: str) -> Array:
    """Bits as float32 where they are bfloat16's."""
    return (bits.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else bits
