"""Writes the tensors that no file of the checkpoint holds as the graphs read them, one at a time in memory.

A mixture's experts are one tensor for each in the hub's files and one in three dimensions in the module that was
lowered; quantised weights are in no file at all. The instance has neither transformers nor its table, so what the graphs
read is made here, once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuron_port.build.finishing.weights import CONVERTED
from neuron_port.build.storage import SAFETENSORS_DTYPES
from neuron_port.types import Checkpoint, TensorSpec

if TYPE_CHECKING:
    from neuron_port.checkpoint import WeightReader

Bytes = bytes | memoryview


def write_converted(
    folder: Path, checkpoint: Checkpoint, names: Sequence[str]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Write the named tensors of `checkpoint`, in the files' dtype, under the modules' names.

    Returns: the manifest's entry of the file, and the lock's of each tensor: what it is made of, and how.
    """
    from neuron_port.checkpoint import WeightReader  # imports torch, which opening a bundle does without

    specs = {name: checkpoint.weights[name] for name in names}
    reader = WeightReader(checkpoint)
    entry = write_tensors(folder / CONVERTED, specs, lambda name: _read(reader, name, specs[name]))
    tensors = {}
    for name, spec in specs.items():
        made = checkpoint.converted.get(name)
        origin = {"made_of": made.made_of, "operations": made.operations} if made else {"made_of": [name]}
        form = {"dtype": SAFETENSORS_DTYPES[spec.dtype], "shape": list(spec.shape)}
        tensors[name] = {"file": CONVERTED, **form, **origin}
    return entry, tensors


def write_derived(path: Path, arrays: Mapping[str, np.ndarray], checkpoint: Checkpoint) -> dict[str, Any]:
    """Write computed buffers, and the weights of a quantised checkpoint's layers; the manifest's entry of the file."""
    from neuron_port.checkpoint import WeightReader

    specs = {name: TensorSpec(shape=array.shape, dtype=array.dtype.name) for name, array in arrays.items()}
    if not checkpoint.random_weights:  # random ones prove the graphs, and are not stored
        specs |= quantized_specs(checkpoint)
    reader = None if checkpoint.unquantized is None else WeightReader(checkpoint)

    def read(name: str) -> Bytes:
        if name in arrays:
            return np.ascontiguousarray(arrays[name]).tobytes()
        assert reader is not None, name
        return _read(reader, name, specs[name])

    return write_tensors(path, specs, read)


def quantized_specs(checkpoint: Checkpoint) -> dict[str, TensorSpec]:
    """What the layers of a quantised checkpoint hold in place of their weights; nothing of any other one."""
    if checkpoint.unquantized is None:
        return {}
    known = checkpoint.unquantized.weights
    return {name: spec for name, spec in checkpoint.weights.items() if name not in known}


def write_tensors(
    path: Path, specs: Mapping[str, TensorSpec], read: Callable[[str], Bytes]
) -> dict[str, Any]:
    """Write a safetensors file: `read` gives each tensor's bytes when its turn comes. Returns name, sha256 and bytes."""
    header: dict[str, Any] = {}
    end = 0
    for name, spec in specs.items():
        start, end = end, end + spec.size_bytes
        dtype = SAFETENSORS_DTYPES[spec.dtype]
        header[name] = {"dtype": dtype, "shape": list(spec.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # values start aligned
    found = hashlib.sha256()
    with path.open("wb") as file:
        for piece in (len(text).to_bytes(8, "little"), text):
            file.write(piece)
            found.update(piece)
        for name, spec in specs.items():
            values = read(name)
            assert memoryview(values).nbytes == spec.size_bytes, f"{name} is not {spec}"
            file.write(values)
            found.update(values)
    return {"name": path.name, "sha256": found.hexdigest(), "bytes": path.stat().st_size}


def _read(reader: WeightReader, name: str, spec: TensorSpec) -> Bytes:
    import torch

    tensor = reader.get(name, getattr(torch, spec.dtype))
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
