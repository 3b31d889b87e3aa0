"""A bundle as what other tools read: a Hugging Face checkpoint folder for vLLM and optimum-neuron.

Both read the folder that Hugging Face tools write: config.json as it is, tokenizer files, safetensors with an index.
What is particular to Neuron goes into a file of its own, because a `neuron` entry in config.json would tell
optimum-neuron that the model is compiled already. No Neuron device has run these exports.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any, Literal

from neuron_port.build import load_manifest
from neuron_port.build.bundle import HUGGING_FACE_FILES
from neuron_port.build.finishing.files import sha256_of, write_json
from neuron_port.errors import CheckpointError, UsageError

Format = Literal["vllm", "optimum"]
TEMPLATES = Path(__file__).parent / "templates"
LOCK, DERIVED = "weights.lock.json", "derived.safetensors"
# Architectures that vLLM Neuron 0.24.0.1.1.0 registers, by the prefix of their class (its recipes and registry).
VLLM_ARCHITECTURES = ("Llama", "GptOss", "Qwen3", "SmolLM3", "DeepseekV32")
# Decoders that optimum-neuron 0.4.5 exports (its documentation's list of supported architectures).
OPTIMUM_DECODERS = ("llama", "llama4_text", "gemma3_text", "granite", "mixtral", "phi3", "qwen2", "qwen3", "qwen3_moe",
                    "smollm3")  # fmt: skip


def export_checkpoint(bundle: Path, output: Path, to: Format) -> list[str]:
    """Write the checkpoint folder, whole or not at all, and return warnings for the user.

    Raises: UsageError (destination, a bundle that cannot be exported), CheckpointError (damaged weights).
    """
    manifest = load_manifest(bundle)
    shards = weight_files(bundle, manifest)
    if output.exists() and any(output.iterdir()):
        raise UsageError(
            f"`{output}` is not empty: it is not replaced", hint="Choose another folder, or remove it."
        )
    aside = output.with_name(f".{output.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        for path in sorted(path for pattern in HUGGING_FACE_FILES for path in bundle.glob(pattern)):
            (aside / path.relative_to(bundle)).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, aside / path.relative_to(bundle))
        _copy_weights(shards, aside)
        hints = neuron_hints(manifest)
        if to == "optimum":
            write_json(aside / "neuron_export.json", hints)
        (aside / "README.md").write_text(_page(to, manifest, hints), encoding="utf-8")
        if output.exists():
            output.rmdir()
        aside.rename(output)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return _warnings(to, bundle, manifest)


def weight_files(bundle: Path, manifest: Mapping[str, Any]) -> dict[Path, str]:
    """The checkpoint's own safetensors files in a bundle, each with its SHA-256.

    Raises: UsageError when the bundle has none to export.
    """
    weights = manifest["weights"]
    if weights.get("random"):
        raise UsageError(
            f"`{bundle}` was made with random weights, which are not stored: there is no checkpoint to export",
            hint="Convert a real checkpoint (without --random-weights).",
        )
    lock = json.loads((bundle / "weights" / LOCK).read_text(encoding="utf-8"))
    found = {bundle / "weights" / entry["name"]: entry["sha256"] for entry in lock["files"]
             if entry["name"].endswith(".safetensors") and entry["name"] != DERIVED}  # fmt: skip
    absent = [path.name for path in found if not path.is_file()]
    if absent or not found:
        what = (
            "holds its weights by reference only"
            if weights["mode"] == "reference"
            else f"lacks {', '.join(absent)}"
        )
        raise UsageError(
            f"`{bundle}` {what}: there is no checkpoint to export",
            hint=f"Convert again with --weights copy, or export from `{lock['source']}` itself.",
        )
    return found


def _copy_weights(shards: Mapping[Path, str], folder: Path) -> None:
    """Copy the shards, check them, and write the index that several need."""
    index: dict[str, str] = {}
    total = 0
    for path, digest in shards.items():
        shutil.copyfile(path, folder / path.name)
        if sha256_of(folder / path.name) != digest:
            raise CheckpointError(
                f"`{path}` has changed since the bundle was made", hint="Convert the model again."
            )
        names, size = _header(path)
        total += size
        if clash := next((name for name in names if name in index), None):
            raise CheckpointError(f"`{clash}` is in two files: {index[clash]} and {path.name}")
        index |= dict.fromkeys(names, path.name)
    if len(shards) > 1 or "model.safetensors" not in {path.name for path in shards}:
        write_json(
            folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index}
        )


def _header(path: Path) -> tuple[list[str], int]:
    """Tensor names of a safetensors file and the bytes of their values."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return list(header), sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in header.values())


def neuron_hints(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the bundle was made for, in the words of optimum-neuron's `neuron` entry."""
    buckets = [graph["bucket"] for graph in manifest["graphs"]]
    decoder = any(graph["phase"] == "decode" for graph in manifest["graphs"])
    length = max((bucket["cache"] or bucket["seq"]) if decoder else bucket["seq"] for bucket in buckets)
    return {
        "task": manifest["model"]["task"] or ("text-generation" if decoder else None),
        "static_batch_size": max(bucket["batch"] for bucket in buckets),
        "static_sequence_length": length,
        "tensor_parallel_size": manifest["target"].get("tp", 1),
        "instance_type": manifest["target"]["chip"],
        "torch_dtype": manifest["model"]["dtype"],
        "auto_cast": None,
        "decoder": decoder,
    }


def export_command(to: Format, hints: Mapping[str, Any]) -> str:
    """The command that serves or compiles the folder, to be run in it."""
    batch, length, degree = (
        hints[name] for name in ("static_batch_size", "static_sequence_length", "tensor_parallel_size")
    )
    if to == "vllm":
        return f"vllm serve . --tensor-parallel-size {degree} --max-num-seqs {batch} --max-model-len {length}"
    task = f" --task {hints['task']}" if hints["task"] else ""
    command = (
        f"optimum-cli export neuron --model .{task} --batch_size {batch} --sequence_length {length} "
        f"--instance_type {hints['instance_type']}"
    )
    if hints["decoder"]:
        command += f" --tensor_parallel_size {degree} --torch_dtype {hints['torch_dtype']}"
    return f"{command} ../compiled"


def _page(to: Format, manifest: Mapping[str, Any], hints: Mapping[str, Any]) -> str:
    page = Template((TEMPLATES / f"export_{to}.md").read_text(encoding="utf-8"))
    return page.substitute(
        model=manifest["model"]["id"], revision=manifest["model"]["revision"], command=export_command(to, hints),
        target=manifest["target"]["chip"],
    )  # fmt: skip


def _warnings(to: Format, bundle: Path, manifest: Mapping[str, Any]) -> list[str]:
    architecture, target = str(manifest["model"]["architecture"]), manifest["target"]["chip"]
    config = json.loads((bundle / "config.json").read_text(encoding="utf-8"))
    found = []
    if to == "vllm" and not architecture.startswith(VLLM_ARCHITECTURES):
        found.append(
            f"{architecture} is not among the architectures that vLLM Neuron 0.24 is known to register."
        )
    if to == "vllm" and target != "trn2":
        found.append(f"vLLM Neuron 0.24 runs on Trn2 and Trn3, and this bundle was made for {target}.")
    decoder = neuron_hints(manifest)["decoder"]
    if to == "optimum" and decoder and config.get("model_type") not in OPTIMUM_DECODERS:
        found.append(f"optimum-neuron 0.4.5 lists no decoder of type `{config.get('model_type')}`.")
    if manifest["model"].get("weight_format") in ("int8", "fp8"):
        found.append(
            "The bundle's quantised weights are not part of the export: it is the original checkpoint."
        )
    return found
