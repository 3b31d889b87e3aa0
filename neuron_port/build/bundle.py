"""Writes a neuron bundle: all that a Neuron instance needs, proven here and finished there by one command."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from neuron_port.build import finishing
from neuron_port.build.artifact import Artifact, GraphFiles
from neuron_port.build.finishing.files import MANIFEST, SCHEMA_VERSION, sha256_of
from neuron_port.build.finishing.hlo import HloError, entry_parameters, placeholders
from neuron_port.build.finishing.hlo_edit import without_kernels
from neuron_port.build.finishing.tables import MINIMUM_COMPILER, MINIMUM_NKI, TARGETS
from neuron_port.build.kernels import write_kernels
from neuron_port.build.manifest import (
    file_hashes,
    mapping_entries,
    model_entry,
    provenance,
    public_source,
    tool_entry,
    without_paths,
)
from neuron_port.build.plan import INSTANCE_TYPES, LOGICAL_CORE_SIZE, build_plan
from neuron_port.build.report import Parity, check_parity, write_parity
from neuron_port.build.sharded_weights import ranks_of
from neuron_port.build.storage import keep_neffs, replacing, write_arrays, write_json
from neuron_port.build.weights import WeightsMode, write_weights
from neuron_port.errors import LoweringError, UsageError
from neuron_port.types import Checkpoint, GraphSpec, MatchPlan, QuantizationCost, VerifiedKernel, to_json

_HERE = Path(__file__).parent
# Everything that Hugging Face tools read beside the weights.
HUGGING_FACE_FILES = (
    "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json",
    "vocab*", "merges.txt", "chat_template*", "preprocessor_config.json", "LICENSE*",
    "modules.json", "*_Pooling/config.json",
)  # fmt: skip


def write_bundle(
    destination: Path,
    *,
    checkpoint: Checkpoint,
    plan: MatchPlan,
    graphs: Sequence[GraphFiles],
    kernels: Sequence[VerifiedKernel],
    recipe_folders: Mapping[str, Path],
    parity: Parity,
    quantization_cost: QuantizationCost | None = None,
    golden: Mapping[str, Mapping[str, np.ndarray]],
    target: str,
    dtype: str,
    weights: WeightsMode,
    derived_weights: Mapping[str, np.ndarray],
    stages: Sequence[Mapping[str, Any]],
    pages: Mapping[str, Callable[[Path], None]] | None = None,
) -> Artifact:
    """Write a portable bundle to `destination`, whole or not at all.

    Args:
        parity: reports by side: "kernels", "graphs", "model". A side that is absent is recorded as not run.
        quantization_cost: of a quantised checkpoint, what was measured beside the unquantised one.
        golden: graph id -> arrays by the graph's own input and output names: every input except
            weights (state that is absent starts as zeros) and the outputs' float32 references.
        weights: "copy", "link" or "reference" (weights.lock.json only).
        derived_weights: tensors that no checkpoint file holds; graphs read them as "derived:<name>".
        stages: {"name", "seconds", "reused"} of every stage of the conversion.
        pages: file name -> writer, for what people look at; written last and hashed like every other file.

    Raises: UsageError (destination, target), ParityError (unproven kernel, failed report), RecipeError,
        CheckpointError (weights), LoweringError (graph and interface disagree), StorageError (disk).
    """
    _check(graphs, golden, target)
    check_parity(parity)
    source = public_source(checkpoint.source)
    with replacing(destination) as folder:
        _copy_hugging_face_files(checkpoint, folder)
        kernel_entries = write_kernels(folder / "kernels", kernels, recipe_folders, plan)
        graph_entries = [_write_graph(folder, graph, kernel_entries) for graph in graphs]
        for graph, arrays in golden.items():
            write_arrays(folder / "parity" / "golden" / f"{graph}.safetensors", arrays)
        parity_entry = write_parity(
            folder / "parity", parity, title=checkpoint.name, quantization_cost=quantization_cost
        )
        weights_entry = write_weights(
            folder / "weights", destination=destination, checkpoint=checkpoint, mode=weights,
            derived=derived_weights, graphs=graphs, source=source,
        )  # fmt: skip
        _write_build(folder / "build", [graph.spec for graph in graphs], checkpoint, target, dtype)
        for name, write_page in (pages or {}).items():
            write_page(folder / name)
        manifest = _manifest(
            plan, kernel_entries, target,
            model=model_entry(
                checkpoint, source=source, dtype=dtype, config_sha256=sha256_of(folder / "config.json")
            ),
            graphs=graph_entries, weights=weights_entry, parity=parity_entry, provenance=provenance(stages),
            ranks=ranks_of([graph.spec for graph in graphs]),
        )  # fmt: skip
        placed = {} if weights == "reference" else {f"weights/{entry['name']}": entry["sha256"]
                                                    for entry in weights_entry["files"]}  # fmt: skip
        manifest["files"] = file_hashes(folder, placed)
        manifest = without_paths(manifest)
        write_json(folder / MANIFEST, manifest)
        keep_neffs(destination, folder)
    return Artifact(folder=destination, manifest=manifest)


def _manifest(
    plan: MatchPlan, kernel_entries: list[dict[str, Any]], target: str, **entries: Any
) -> dict[str, Any]:
    """The manifest of a portable bundle, all but the digests of its files."""
    return {
        "schema_version": SCHEMA_VERSION,
        "state": "portable",
        "tool": tool_entry(),
        "model": entries["model"],
        "target": {
            "chip": target, "lnc": LOGICAL_CORE_SIZE[target], "tp": entries["ranks"],
            "instance_types": list(INSTANCE_TYPES[target]),
        },
        "graphs": entries["graphs"],
        "mapping": mapping_entries(plan, kernel_entries),
        "kernels": kernel_entries,
        "weights": entries["weights"],
        "parity": entries["parity"],
        "build": {"target": None, "compiler": None, "targets": {}},
        "requires": {
            "neuronx-cc": f">={_dotted(MINIMUM_COMPILER)}",
            "nki": f">={_dotted(MINIMUM_NKI)}" if kernel_entries and target == "trn2" else None,
            "runtime": "nrtpy>=2.34",
        },
        "provenance": entries["provenance"],
    }  # fmt: skip


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _check(graphs: Sequence[GraphFiles], golden: Mapping[str, Mapping[str, np.ndarray]], target: str) -> None:
    if target not in TARGETS:
        raise UsageError(f"Unknown target: `{target}`", hint=f"Known: {', '.join(TARGETS)}")
    if not graphs:
        raise UsageError("A bundle needs at least one graph")
    specs = {graph.spec.id: graph.spec for graph in graphs}
    if len(specs) != len(graphs):
        raise UsageError("Two graphs have the same id", hint="One graph for each bucket.")
    for graph, arrays in golden.items():
        if graph not in specs:
            raise UsageError(f"Golden values for an unknown graph: `{graph}`")
        spec = specs[graph]
        names = {item.name for item in spec.inputs} | {item.name for item in spec.outputs}
        if unknown := sorted(set(arrays) - names):
            raise UsageError(
                f"Golden values of `{graph}` name no input or output of it: {', '.join(unknown)}"
            )


def _write_graph(folder: Path, graph: GraphFiles, kernels: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Write graphs/<id>/ and return the manifest's entry for it."""
    spec, home = graph.spec, folder / "graphs" / graph.spec.id
    used = _check_hlo(graph, {kernel["name"]: kernel["sha256"] for kernel in kernels})
    home.mkdir(parents=True)
    (home / "graph.hlo.pb").write_bytes(graph.hlo)
    (home / "graph.ref.hlo.pb").write_bytes(graph.reference_hlo)
    write_json(home / "io.json", interface(spec))
    write_json(home / "lint.json", graph.lint)
    return {
        "id": spec.id,
        "phase": spec.phase,
        "bucket": {"batch": spec.batch, "seq": spec.sequence_length, "cache": spec.cache_length},
        "hlo_sha256": hashlib.sha256(graph.hlo).hexdigest(),
        "ref_hlo_sha256": hashlib.sha256(graph.reference_hlo).hexdigest(),
        "inputs": len(spec.inputs),
        "outputs": len(spec.outputs),
        "aliases": sum(item.alias_of is not None for item in spec.outputs),
        "kernels": used,
        "neff": None,
    }


def interface(spec: GraphSpec) -> dict[str, Any]:
    """io.json: inputs and outputs in the order of the HLO's parameters and results."""
    return {
        "graph": spec.id,
        "inputs": [
            {"name": item.name, "role": item.role, "dtype": item.spec.dtype, "shape": item.spec.shape,
             "source": (item.source or item.name) if item.role == "weight" else item.source,
             "transform": item.transform, "shard": to_json(item.shard)}
            for item in spec.inputs
        ],
        "outputs": [
            {"name": item.name, "role": item.role, "dtype": item.spec.dtype, "shape": item.spec.shape,
             "alias_of": item.alias_of}
            for item in spec.outputs
        ],
        "transforms": {
            "none": "as in the file",
            "transpose": "the last two axes change places: [N, K] in the file is [K, N] in the graph",
            "permute:a,b": "axis n of the graph's tensor is the n-th named axis of the file's",
        },
    }  # fmt: skip


def _check_hlo(graph: GraphFiles, kernels: Mapping[str, str]) -> list[str]:
    """The names of the kernels that the graph calls.

    Raises: LoweringError when the bytes, the interface and the kernels do not belong together.
    """
    name = graph.spec.id
    try:
        for which, module in (("graph.hlo.pb", graph.hlo), ("graph.ref.hlo.pb", graph.reference_hlo)):
            found = [(shape.dtype, shape.dimensions) for shape in entry_parameters(module)]
            wanted = [(item.spec.dtype, tuple(item.spec.shape)) for item in graph.spec.inputs]
            if found != wanted:
                first = next(
                    (i for i, pair in enumerate(zip(found, wanted)) if pair[0] != pair[1]), len(wanted)
                )
                raise LoweringError(
                    f"{name}: {which} has {len(found)} parameters, its interface {len(wanted)} inputs; "
                    f"they differ from parameter {first} on"
                )
        calls, left = placeholders(graph.hlo), placeholders(graph.reference_hlo)
        twin = without_kernels(graph.hlo)
    except HloError as error:
        raise LoweringError(f"{name}: the HLO cannot be read: {error}") from error
    if left:
        raise LoweringError(f"{name}: the reference graph still calls kernel `{left[0].kernel}`")
    for call in calls:
        if kernels.get(call.kernel) != call.kernel_sha256:
            raise LoweringError(
                f"{name} calls kernel `{call.kernel}` with a source that is not among the verified ones",
                hint="Lower the graph again with the kernels that were verified.",
            )
    if twin != graph.reference_hlo:
        raise LoweringError(
            f"{name}: graph.ref.hlo.pb is not graph.hlo.pb with its kernels' references in their place",
            hint="Make it with `without_kernels`: finishing leaves single kernels to the compiler that way.",
        )
    return sorted({call.kernel for call in calls})


def _copy_hugging_face_files(checkpoint: Checkpoint, folder: Path) -> None:
    directory = Path(checkpoint.directory)
    for pattern in HUGGING_FACE_FILES:
        for path in sorted(directory.glob(pattern)):
            if path.is_file():
                target = folder / path.relative_to(directory)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, target)
    if not (folder / "config.json").exists():
        write_json(folder / "config.json", checkpoint.config)


def _write_build(
    folder: Path, specs: Sequence[GraphSpec], checkpoint: Checkpoint, target: str, dtype: str
) -> None:
    """The bundle's build/: the plan, finish.py with its parts, requirements and a page for people."""
    write_json(folder / "plan.json", build_plan(specs, target=target, dtype=dtype))
    shutil.copyfile(_HERE / "finish.py", folder / "finish.py")
    parts = Path(finishing.__file__).parent
    (folder / "finishing").mkdir()
    for part in sorted(parts.glob("*.py")):
        shutil.copyfile(part, folder / "finishing" / part.name)
    for requirements in sorted((_HERE / "templates").glob("requirements-*.txt")):
        shutil.copyfile(requirements, folder / requirements.name)
    page = Template((_HERE / "templates" / "README.md").read_text(encoding="utf-8"))
    text = page.substitute(
        model=checkpoint.name, target=target, graphs="\n".join(f"- `{spec.id}`" for spec in specs)
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
