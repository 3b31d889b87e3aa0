"""Puts a checkpoint's weights into a bundle: copied, linked, or named in a lock file.

Where the checkpoint's tensors are not those of the modules (made_weights.py), a copy is written anew under the
modules' names, and its own files stay away; links and references keep the files, and only what differs is written.
Quantised weights are derived; a copy then leaves out what they were made of.
For tensor-parallel ranks every rank has a file of its own (sharded_weights.py): a copy has these alone, a link the
checkpoint's files beside them, a reference neither.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from neuron_port.build.artifact import GraphFiles
from neuron_port.build.finishing.files import sha256_of
from neuron_port.build.made_weights import quantized_specs, write_converted, write_derived
from neuron_port.build.sharded_weights import ranks_of, write_sharded
from neuron_port.build.storage import write_json
from neuron_port.checkpoint.architecture import tied_names_of
from neuron_port.errors import CheckpointError
from neuron_port.types import Checkpoint

WeightsMode = Literal["copy", "link", "reference"]
LOCK = "weights.lock.json"
DERIVED = "derived.safetensors"
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")


def write_weights(
    folder: Path,
    *,
    destination: Path,
    checkpoint: Checkpoint,
    mode: WeightsMode,
    derived: Mapping[str, np.ndarray],
    graphs: Sequence[GraphFiles],
    source: str,
) -> dict[str, Any]:
    """Write `folder` (the bundle's weights/) and return the manifest's `weights` entry.

    `destination` is where the bundle will stand, which decides how links are written.

    Raises: CheckpointError when a graph reads a tensor that neither the checkpoint nor `derived` has.
    """
    folder.mkdir(parents=True)
    specs = [graph.spec for graph in graphs]
    is_random = checkpoint.random_weights
    shards = [] if is_random else sorted(Path(checkpoint.directory).glob("*.safetensors"))
    index = {name: entry for shard in shards for name, entry in _tensors(shard).items()}
    _check_sources(graphs, index, {*derived, *quantized_specs(checkpoint)}, checkpoint)
    ranks = 1 if mode == "reference" or is_random else ranks_of(specs)
    rewritten = mode == "copy" and (
        bool(checkpoint.converted) or checkpoint.weight_format is not None or ranks > 1
    )
    originals = [_place(shard, folder, destination, "reference" if rewritten else mode) for shard in shards]
    files = [] if rewritten else list(originals)
    index = {} if rewritten else index
    if ranks > 1:
        files += write_sharded(folder, checkpoint, specs)
    elif (rewritten or checkpoint.converted) and not is_random:
        plain = [name for name in checkpoint.weights if name not in quantized_specs(checkpoint)]
        names = plain if rewritten else [name for name in plain if name in checkpoint.converted]
        entry, made = write_converted(folder, checkpoint, names)
        files.append(entry)
        index = index | made
    hashes = {entry["name"]: entry["sha256"] for entry in files}
    tensors = {name: entry | {"sha256": hashes[entry["file"]]} for name, entry in index.items()}
    write_json(folder / LOCK, _lock(checkpoint, source, originals, tensors))
    whole = checkpoint if ranks == 1 else replace(checkpoint, unquantized=None)  # ranks have their own parts
    if derived or (whole.unquantized and not is_random):
        files = [*files, write_derived(folder / DERIVED, derived, whole)]
    return {
        "mode": mode,
        "random": is_random,
        "bytes": sum(entry["bytes"] for entry in files),
        "files": files,
        "tied": _tied(checkpoint, index),
    }


def _lock(
    checkpoint: Checkpoint, source: str, originals: list[dict[str, Any]], tensors: Mapping[str, Any]
) -> dict[str, Any]:
    """weights.lock.json: where the weights are from, and for every tensor that the bundle holds whole its file."""
    lock: dict[str, Any] = {
        "source": source, "revision": checkpoint.revision, "random": checkpoint.random_weights,
        "files": originals, "tensors": tensors,
    }  # fmt: skip
    if checkpoint.unquantized is not None:
        layers = {name: f"{name.rpartition('.')[0]}.weight" for name in quantized_specs(checkpoint)}
        lock["quantized"] = {"format": checkpoint.weight_format, "made_of": layers}
    if checkpoint.random_weights:
        lock["generated_by"] = (
            f"neuron-port drew the weights of `{checkpoint.name}` from its configuration; revision "
            f"{checkpoint.revision} names them. They prove the graphs and nothing else: none are stored."
        )
        lock["expected"] = checkpoint.weights
    return lock


def _tensors(shard: Path) -> dict[str, dict[str, Any]]:
    """The header of a safetensors file: tensor name -> file, dtype, shape."""
    try:
        with shard.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(size))
    except (struct.error, ValueError) as error:
        raise CheckpointError(
            f"`{shard.name}` is not a whole safetensors file", hint="Fetch it again."
        ) from error
    return {
        name: {"file": shard.name, "dtype": entry["dtype"], "shape": entry["shape"]}
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _derived_sources(graphs: Sequence[GraphFiles]) -> set[str]:
    sources = _sources(graphs)
    return {name.removeprefix("derived:") for name in sources if name.startswith("derived:")}


def _sources(graphs: Sequence[GraphFiles]) -> set[str]:
    return {
        item.source or item.name for graph in graphs for item in graph.spec.inputs if item.role == "weight"
    }


def _readable(checkpoint: Checkpoint, index: Mapping[str, Any]) -> set[str]:
    """Names under which a tensor can be read: the files' own, those of what is made of them, and tied ones."""
    return {*index, *checkpoint.converted, *tied_names_of(checkpoint.directory)}


def _check_sources(
    graphs: Sequence[GraphFiles], index: Mapping[str, Any], derived: Collection[str], checkpoint: Checkpoint
) -> None:
    """Refuse graphs that read what is not there: weights (random ones are not stored), or computed tensors."""
    if checkpoint.random_weights:
        if missing := sorted(_derived_sources(graphs) - set(derived)):
            named = ", ".join(missing[:3])
            raise CheckpointError(f"Derived weights that a graph reads were not given: {named}")
        return
    readable = _readable(checkpoint, index)
    absent = sorted(
        name
        for name in _sources(graphs)
        if (
            name.removeprefix("derived:") not in derived
            if name.startswith("derived:")
            else name not in readable
        )
    )
    if absent:
        raise CheckpointError(
            f"`{checkpoint.name}` lacks {len(absent)} weights that the graphs read: {', '.join(absent[:3])}",
            hint="The checkpoint's safetensors files may be incomplete; fetch the model again.",
        )


def _place(shard: Path, folder: Path, destination: Path, mode: WeightsMode) -> dict[str, Any]:
    target = folder / shard.name
    if mode == "copy":
        digest = _copy(shard, target)
    else:
        digest = sha256_of(shard)
        if mode == "link":
            target.symlink_to(_link_text(shard, destination))
    return {"name": shard.name, "sha256": digest, "bytes": shard.stat().st_size}


def _copy(source: Path, target: Path) -> str:
    """Copy a file and return its SHA-256, reading it once."""
    digest = hashlib.sha256()
    with source.open("rb") as reading, target.open("wb") as writing:
        while piece := reading.read(1 << 22):
            digest.update(piece)
            writing.write(piece)
    shutil.copystat(source, target)
    return digest.hexdigest()


def _link_text(shard: Path, destination: Path) -> str:
    """Relative when the checkpoint lies beside the bundle, so that both move together; absolute otherwise."""
    real, home = shard.resolve(), destination.parent.resolve()
    if real.is_relative_to(home):
        return os.path.relpath(real, home / destination.name / "weights")
    return str(real)


def _tied(checkpoint: Checkpoint, index: Mapping[str, Any]) -> list[list[str]]:
    """Pairs of names that share one tensor: an output projection that the files leave out."""
    if not checkpoint.config.get("tie_word_embeddings") or "lm_head.weight" in index:
        return []
    embeddings = [name for name in checkpoint.weights if name.endswith(_EMBEDDINGS)]
    return [["lm_head.weight", embeddings[0]]] if embeddings else []
