"""Writes each tensor-parallel rank's own weights: `tp{rank}_sharded_checkpoint.safetensors`, as NxD Inference does.

A rank's file has every tensor that its graphs read from the checkpoint, under the graphs' `source` names, in the
checkpoint's layout and dtype: cut ones as the rank's part, the others whole. One tensor at a time is in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuron_port.build.made_weights import Bytes, write_tensors
from neuron_port.errors import CheckpointError
from neuron_port.types import Checkpoint, GraphInput, GraphSpec, TensorSpec

if TYPE_CHECKING:
    from neuron_port.checkpoint import WeightReader

FILE_NAME = "tp{rank}_sharded_checkpoint.safetensors"


def ranks_of(specs: Sequence[GraphSpec]) -> int:
    """How many ranks run the graphs of a bundle."""
    found = {spec.ranks for spec in specs}
    assert len(found) == 1, f"graphs of {found} ranks in one bundle"
    return found.pop()


def write_sharded(folder: Path, checkpoint: Checkpoint, specs: Sequence[GraphSpec]) -> list[dict[str, Any]]:
    """Write a file for each rank; the manifest's entries of them.

    Raises: CheckpointError when two graphs read different parts under one name.
    """
    import torch  # which opening a bundle does without

    from neuron_port.checkpoint import WeightReader
    from neuron_port.walk.sharding import part_of

    inputs = _by_source(checkpoint, specs)
    reader = WeightReader(checkpoint)
    shapes = {name: _local(checkpoint, reader, name, item) for name, item in inputs.items()}
    entries = []
    for rank in range(ranks_of(specs)):

        def read(name: str, rank: int = rank) -> Bytes:
            whole = reader.get(name, getattr(torch, shapes[name].dtype))
            part = part_of(whole, inputs[name].shard, rank).contiguous()
            values: Bytes = part.reshape(-1).view(torch.uint8).numpy().data
            return values

        entries.append(write_tensors(folder / FILE_NAME.format(rank=rank), shapes, read))
    return entries


def _by_source(checkpoint: Checkpoint, specs: Sequence[GraphSpec]) -> dict[str, GraphInput]:
    """The checkpoint's tensors that the graphs read, by name, quantised ones among them: any input that reads one."""
    found: dict[str, GraphInput] = {}
    for item in (item for spec in specs for item in spec.inputs if item.role == "weight"):
        source = item.source or item.name
        name = source.removeprefix("derived:")
        if source.startswith("derived:") and name not in checkpoint.weights:
            continue  # a computed buffer: whole, in derived.safetensors
        if found.setdefault(name, item).shard != item.shard:
            raise CheckpointError(f"Graphs read different parts of `{name}` under one name")
    return dict(sorted(found.items()))


def _local(checkpoint: Checkpoint, reader: WeightReader, name: str, item: GraphInput) -> TensorSpec:
    spec = checkpoint.weights[reader.canonical(name).removeprefix("derived:")]
    return spec if item.shard is None else replace(spec, shape=item.shard.local_shape(tuple(spec.shape)))
