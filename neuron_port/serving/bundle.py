"""A bundle as the server reads it: its graphs' interfaces, its weights in the graphs' layout, its tokenizer.

Everything is read from the bundle's own files (docs/bundle.md), so that what is served is what was proven.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from neuron_port.build import load_manifest, verify_files
from neuron_port.build.finishing.weights import CONVERTED
from neuron_port.errors import CheckpointError, StorageError, UsageError
from neuron_port.types import GraphInput, GraphOutput, GraphSpec, TensorSpec, permutation

if TYPE_CHECKING:
    import torch

EMBEDDING = "sentence_embedding"  # the output that pools (docs/encoders.md)
Task = Literal["generate", "embed"]


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An opened bundle. `graphs` are in the manifest's order; `manifest` is neuron_port.json."""

    folder: Path
    manifest: Mapping[str, Any]
    graphs: tuple[GraphSpec, ...]

    @property
    def name(self) -> str:
        """The name under which the model is served unless another is given: the last part of its id."""
        return str(self.manifest["model"]["id"]).rstrip("/").rsplit("/", 1)[-1]

    @property
    def task(self) -> Task:
        return "embed" if any(graph.phase == "forward" for graph in self.graphs) else "generate"

    def reference_hlo(self, graph: GraphSpec) -> bytes:
        """The graph with its kernels written out: what XLA-CPU executes."""
        return (self.folder / "graphs" / graph.id / "graph.ref.hlo.pb").read_bytes()

    def json_file(self, name: str) -> Mapping[str, Any]:
        """One of the model's own configuration files; empty when the bundle has none of that name."""
        path = self.folder / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def weight_files(self) -> list[Path]:
        """The safetensors files of weights/, each of them there.

        Raises: CheckpointError when the weights were random or stand elsewhere: such a bundle cannot be served.
        """
        entry = self.manifest["weights"]
        if entry["random"]:
            raise CheckpointError(
                f"`{self.folder}` was converted with random weights, which are not stored: there is nothing to serve",
                hint="Convert the model again without --random-weights.",
            )
        files = [self.folder / "weights" / item["name"] for item in entry["files"]]
        absent = [path.name for path in files if not path.is_file()]
        if absent:
            raise CheckpointError(
                f"weights/{absent[0]} is not in the bundle `{self.folder}`",
                hint="A bundle made with --weights reference or link needs the checkpoint's files in weights/.",
            )
        return files


def open_bundle(folder: Path, *, verify: bool = True) -> Bundle:
    """Read a bundle's manifest and interfaces, and compare every file with its hash.

    Raises: StorageError when the bundle is missing, damaged or changed; UsageError when it is one that cannot
        be served (several ranks, sequence-to-sequence, vision).
    """
    manifest = load_manifest(folder)
    if verify and (damaged := verify_files(folder)):
        raise StorageError(
            f"`{folder}` is damaged: {damaged[0]}"
            + (f", and {len(damaged) - 1} more" if damaged[1:] else ""),
            hint="Copy or convert the bundle again; --no-verify serves it as it is.",
        )
    graphs = tuple(_graph(folder, entry) for entry in manifest["graphs"])
    _refuse_unservable(folder, manifest, graphs)
    return Bundle(folder=folder, manifest=manifest, graphs=graphs)


def _graph(folder: Path, entry: Mapping[str, Any]) -> GraphSpec:
    """The interface of one graph, from its manifest entry and its io.json."""
    path = folder / "graphs" / entry["id"] / "io.json"
    try:
        interface = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(f"`{path}` cannot be read: {error}", hint="Convert the bundle again.") from error
    return GraphSpec(
        id=entry["id"],
        phase=entry["phase"],
        batch=entry["bucket"]["batch"],
        sequence_length=entry["bucket"]["seq"],
        cache_length=entry["bucket"]["cache"],
        fills_bucket=_fills_bucket(entry["phase"], interface["inputs"]),
        inputs=tuple(
            GraphInput(
                name=item["name"], role=item["role"], source=item["source"], transform=item["transform"],
                spec=TensorSpec(shape=tuple(item["shape"]), dtype=item["dtype"]),
            )
            for item in interface["inputs"]
        ),
        outputs=tuple(
            GraphOutput(
                name=item["name"], role=item["role"], alias_of=item["alias_of"],
                spec=TensorSpec(shape=tuple(item["shape"]), dtype=item["dtype"]),
            )
            for item in interface["outputs"]
        ),
    )  # fmt: skip


def _fills_bucket(phase: str, inputs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a prompt must have exactly the bucket's tokens: a state that is no key/value cache is a recurrence's.

    Padding would run on in such a state; in a cache it lies behind the prompt, where no token looks.
    """
    states = [item["name"] for item in inputs if item["role"] == "state"]
    return phase == "prefill" and any(not name.startswith(("key_cache", "value_cache")) for name in states)


def _refuse_unservable(folder: Path, manifest: Mapping[str, Any], graphs: Sequence[GraphSpec]) -> None:
    if manifest["target"].get("tp", 1) > 1:
        raise UsageError(
            f"`{folder}` is split over {manifest['target']['tp']} ranks, and `serve` runs one",
            hint="Convert the model with --tensor-parallel 1 to serve it here.",
        )
    given = {item.name for graph in graphs for item in graph.inputs if item.role == "input"}
    phases = {graph.phase for graph in graphs}
    known = {"input_ids", "attention_mask", "token_type_ids", "position_ids", "positions", "slot"}
    if phases not in ({"prefill", "decode"}, {"forward"}) or "input_ids" not in given or given - known:
        architecture = manifest["model"]["architecture"]
        foreign = ", ".join(sorted(given - known)) or ", ".join(sorted(phases))
        raise UsageError(
            f"`{architecture}` cannot be served: its graphs take {foreign}",
            hint="`serve` knows text generation from a prompt, and sentence embeddings.",
        )
    if phases == {"forward"} and not all(
        EMBEDDING in {item.name for item in graph.outputs} for graph in graphs
    ):
        raise UsageError(
            f"`{folder}` is an encoder without pooling: its graphs have no output `{EMBEDDING}`",
            hint="A checkpoint in the layout of sentence-transformers has modules.json, which says how to pool.",
        )


class BundleWeights:
    """The tensors of weights/, each read and laid out once however many graphs take it."""

    def __init__(self, bundle: Bundle) -> None:
        from safetensors import safe_open

        self._home: dict[str, Any] = {}
        for path in sorted(bundle.weight_files(), key=lambda path: path.name == CONVERTED):
            file = safe_open(path, framework="pt")
            self._home.update(dict.fromkeys(file.keys(), file))
        self._laid_out: dict[tuple[str, str, str], torch.Tensor] = {}

    def get(self, wanted: GraphInput) -> torch.Tensor:
        """One weight of a graph: in its dtype and layout, contiguous.

        Raises: CheckpointError when no file of the bundle holds it.
        """
        import torch

        assert wanted.source is not None, wanted.name
        name = wanted.source.removeprefix("derived:")
        key = (name, wanted.transform, wanted.spec.dtype)
        if key not in self._laid_out:
            if name not in self._home:
                raise CheckpointError(
                    f"No file of weights/ holds `{name}`, which the graphs read",
                    hint="Convert the bundle again, or copy all of its files.",
                )
            tensor = self._home[name].get_tensor(name).to(getattr(torch, wanted.spec.dtype))
            axes = permutation(wanted.transform, tensor.ndim)
            self._laid_out[key] = tensor.permute(axes).reshape(wanted.spec.shape).contiguous()
        return self._laid_out[key]
