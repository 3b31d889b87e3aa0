"""Writing a bundle: what it holds, what it refuses, and that it is whole or not there."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_bundle import graph_bytes, make_checkpoint, report

from neuron_port.build import load_manifest, verify_files, write_bundle
from neuron_port.build.finishing.weights import Weights, narrow, widen
from neuron_port.build.manifest import public_source, without_paths
from neuron_port.build.storage import write_arrays
from neuron_port.errors import (
    CheckpointError,
    LoweringError,
    NeuronPortError,
    ParityError,
    RecipeError,
    StorageError,
    UsageError,
)

Arguments = dict[str, Any]


def test_a_bundle_has_every_file_of_the_layout(bundle: Path) -> None:
    """Hugging Face files, weights, graphs, kernels, proof and finish.py lie where the layout says."""
    found = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert found >= {
        "neuron_port.json", "config.json", "tokenizer.json", "weights/model.safetensors",
        "weights/weights.lock.json", "weights/derived.safetensors", "graphs/prefill_b1_s2/graph.hlo.pb",
        "graphs/prefill_b1_s2/graph.ref.hlo.pb",
        "graphs/prefill_b1_s2/io.json", "graphs/prefill_b1_s2/lint.json", "kernels/rms_norm@3/kernel.py",
        "kernels/rms_norm@3/reference.py", "kernels/rms_norm@3/source.py", "kernels/rms_norm@3/README.md",
        "kernels/rms_norm@3/recipe.json", "parity/report.json", "parity/report.md",
        "parity/golden/decode_b1_t3.safetensors", "build/plan.json", "build/finish.py", "build/README.md",
        "build/requirements-sdk2.31.txt", "build/requirements-sdk2.32.txt",
    }  # fmt: skip
    assert "notes.txt" not in found


def test_hugging_face_files_are_verbatim(bundle: Path, tmp_path: Path) -> None:
    """config.json keeps its own spelling, so other tools read the folder as they read the checkpoint."""
    assert (bundle / "config.json").read_bytes() == (tmp_path / "checkpoint" / "config.json").read_bytes()


def test_the_manifest_accounts_for_every_file(bundle: Path) -> None:
    """Every file but the manifest itself has a hash, and all hashes are right."""
    manifest = load_manifest(bundle)
    found = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert set(manifest["files"]) == found - {"neuron_port.json"}
    assert verify_files(bundle) == []


@pytest.mark.parametrize("change", ["edit", "remove"])
def test_a_changed_file_is_named(bundle: Path, change: str) -> None:
    """verify_files names a file that was edited or removed."""
    path = bundle / "graphs" / "decode_b1_t3" / "graph.hlo.pb"
    if change == "edit":
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    else:
        path.unlink()
    (problem,) = verify_files(bundle)
    assert problem.startswith("graphs/decode_b1_t3/graph.hlo.pb")


def test_the_manifest_says_what_was_decided_and_proven(bundle: Path) -> None:
    """State, mapping with counts, kernels with tier and fallback, and the worst case of each side."""
    manifest = load_manifest(bundle)
    assert (manifest["schema_version"], manifest["state"]) == (1, "portable")
    assert [(entry["decision"], entry["count"]) for entry in manifest["mapping"]] == [
        ("recipe:rms_norm@3", 2), ("compiler", 1),
    ]  # fmt: skip
    (kernel,) = manifest["kernels"]
    assert (kernel["tiers"], kernel["fallback"], kernel["origin"]) == (["simulator"], "compiler", "recipe")
    assert manifest["parity"]["not_run"] == ["model"]
    assert manifest["parity"]["sides"]["graphs"]["worst"]["metrics"] == {"relative_error": 1e-6}
    assert manifest["graphs"][0]["aliases"] == 1
    assert manifest["graphs"][0]["neff"] is None


def test_the_manifest_does_not_name_the_building_machine(bundle: Path, tmp_path: Path) -> None:
    """Neither its host name nor one of its absolute paths stands in the manifest."""
    text = (bundle / "neuron_port.json").read_text()
    assert str(tmp_path) not in text
    assert not re.search(r'"/\w', text)
    assert f'"{socket.gethostname()}"' not in text
    assert load_manifest(bundle)["model"]["source"] == "local:checkpoint"


def test_paths_in_sentences_are_cut_to_their_last_part() -> None:
    """A reason that quotes a path keeps its meaning and loses the folders; addresses and shapes stay."""
    told = {"reason": ["probe of /home/ada/models/llama failed", "https://example.org/home/x", "[2/tmp]"]}
    assert without_paths(told) == {
        "reason": ["probe of llama failed", "https://example.org/home/x", "[2/tmp]"]
    }


@pytest.mark.parametrize(
    ("source", "said"), [("org/model", "org/model"), ("/srv/models/llama", "local:llama")]
)
def test_a_local_source_is_named_by_its_folder(source: str, said: str) -> None:
    """A hub id is kept; a directory tells its last part only."""
    assert public_source(source) == said


def test_io_json_orders_inputs_and_says_how_weights_are_laid_out(bundle: Path) -> None:
    """Inputs stand in parameter order with role, source and transform; a state names what it overwrites."""
    interface = json.loads((bundle / "graphs" / "prefill_b1_s2" / "io.json").read_text())
    described = [
        (entry["name"], entry["role"], entry["source"], entry["transform"]) for entry in interface["inputs"]
    ]
    assert described == [
        ("x", "input", None, "none"), ("gamma", "weight", "derived:gamma_plus_one", "none"),
        ("w", "weight", "proj.weight", "transpose"), ("cache", "state", None, "none"),
    ]  # fmt: skip
    assert [entry["alias_of"] for entry in interface["outputs"]] == [None, "cache"]


def test_weights_are_copied(bundle: Path, tmp_path: Path) -> None:
    """--weights copy puts independent files into the bundle."""
    shard = bundle / "weights" / "model.safetensors"
    assert not shard.is_symlink()
    assert shard.read_bytes() == (tmp_path / "checkpoint" / "model.safetensors").read_bytes()


def test_weights_are_linked(tmp_path: Path, arguments: Arguments) -> None:
    """--weights link writes links: relative to a checkpoint beside the bundle, absolute to one elsewhere."""
    beside = write_bundle(tmp_path / "bundle", **arguments | {"weights": "link"}).folder
    text = (beside / "weights" / "model.safetensors").readlink()
    assert text.as_posix() == "../../checkpoint/model.safetensors"
    assert verify_files(beside) == []
    apart = write_bundle(tmp_path / "far" / "bundle", **arguments | {"weights": "link"}).folder
    assert (apart / "weights" / "model.safetensors").readlink().is_absolute()
    assert verify_files(apart) == []


def test_weights_are_referred_to(tmp_path: Path, arguments: Arguments) -> None:
    """--weights reference writes the lock file: source, revision, every tensor's file, shape, dtype, hash."""
    bundle = write_bundle(tmp_path / "bundle", **arguments | {"weights": "reference"}).folder
    assert not (bundle / "weights" / "model.safetensors").exists()
    lock = json.loads((bundle / "weights" / "weights.lock.json").read_text())
    tensor = lock["tensors"]["proj.weight"]
    assert (lock["revision"], tensor["file"], tensor["dtype"]) == ("abc123", "model.safetensors", "F32")
    assert tensor["shape"] == [3, 4]
    assert tensor["sha256"] == lock["files"][0]["sha256"]


def test_random_weights_are_not_stored(tmp_path: Path, arguments: Arguments) -> None:
    """A checkpoint without weights gets a lock file that says how they were made."""
    arguments["checkpoint"] = make_checkpoint(tmp_path / "random", random_weights=True)
    bundle = write_bundle(tmp_path / "bundle", **arguments).folder
    lock = json.loads((bundle / "weights" / "weights.lock.json").read_text())
    assert lock["random"] is True
    assert "drew the weights" in lock["generated_by"]
    assert load_manifest(bundle)["weights"]["random"] is True


def test_a_weight_that_no_file_has_is_refused(tmp_path: Path, arguments: Arguments) -> None:
    """A graph that reads a tensor beyond the checkpoint is named before anything is written."""
    with pytest.raises(CheckpointError, match="derived:gamma_plus_one"):
        write_bundle(tmp_path / "bundle", **arguments | {"derived_weights": {}})
    assert not (tmp_path / "bundle").exists()


def test_derived_weights_and_golden_values_can_be_read_back(tmp_path: Path) -> None:
    """What we write, the safetensors library and the finishing reader read, bfloat16 included."""
    values = np.array([[1.5, -2.25], [3e38, 1e-3]], np.float32)
    path = tmp_path / "derived.safetensors"
    write_arrays(
        path, {"a": values, "b": values.astype(ml_dtypes.bfloat16), "c": np.arange(3, dtype=np.int32)}
    )
    read = load_file(path)
    assert np.array_equal(read["a"], values)
    assert np.array_equal(read["b"], values.astype(ml_dtypes.bfloat16))
    ours = Weights([path])
    assert np.array_equal(ours.float32("b"), values.astype(ml_dtypes.bfloat16).astype(np.float32))
    assert np.array_equal(ours.cast("c", "int32"), np.arange(3))


def test_bfloat16_rounds_like_ml_dtypes() -> None:
    """Narrowing to bfloat16 with integers alone is round-to-nearest-even, infinities and NaN included."""
    values = np.random.default_rng(0).normal(size=4096).astype(np.float32)
    values[:6] = [np.inf, -np.inf, np.nan, 1.00390625, 1.01171875, 0.0]
    expected = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    assert np.array_equal(widen(narrow(values, "bfloat16"), "bfloat16"), expected, equal_nan=True)


def test_an_unproven_kernel_is_refused(tmp_path: Path, arguments: Arguments) -> None:
    """A plan that uses a kernel without a report does not become a bundle."""
    with pytest.raises(ParityError, match="nothing proves: rms_norm"):
        write_bundle(tmp_path / "bundle", **arguments | {"kernels": []})


def test_a_failed_report_is_refused(tmp_path: Path, arguments: Arguments) -> None:
    """A model that disagrees with its reference does not become a bundle."""
    with pytest.raises(ParityError, match="model: tiny failed parity"):
        write_bundle(tmp_path / "bundle", **arguments | {"parity": {"model": [report("tiny", passed=False)]}})


def test_a_recipe_that_changed_after_its_proof_is_refused(tmp_path: Path, arguments: Arguments) -> None:
    """The kernel on disk must be the one that was verified."""
    kernel = arguments["recipe_folders"]["rms_norm"] / "kernel.py"
    kernel.write_text(kernel.read_text() + "# faster\n")
    with pytest.raises(RecipeError, match="has changed since it was verified"):
        write_bundle(tmp_path / "bundle", **arguments)


@pytest.mark.parametrize(
    ("hlo", "reference", "message"),
    [
        (graph_bytes(kernel="rms_norm", sha256="0" * 64), None, "not among the verified"),
        (graph_bytes(kernel="gated_mlp"), None, "not among the verified"),
        (graph_bytes(kernel="rms_norm", parameters=3), None, "3 parameters, its interface 4 inputs"),
        (None, graph_bytes(kernel="rms_norm"), "reference graph still calls kernel"),
        (b"\x1a\xff", None, "cannot be read"),
    ],
)
def test_a_graph_that_does_not_fit_is_refused(
    tmp_path: Path, arguments: Arguments, hlo: bytes | None, reference: bytes | None, message: str
) -> None:
    """HLO bytes, interface and kernels must belong together."""
    graph = arguments["graphs"][0]
    changed = replace(graph, hlo=hlo or graph.hlo, reference_hlo=reference or graph.reference_hlo)
    with pytest.raises(LoweringError, match=message):
        write_bundle(tmp_path / "bundle", **arguments | {"graphs": [changed]} | {"golden": {}})
    assert not (tmp_path / "bundle").exists()


def test_golden_values_must_name_the_graph_s_own_tensors(tmp_path: Path, arguments: Arguments) -> None:
    """A golden array that is no input or output is refused by name."""
    arguments["golden"]["decode_b1_t3"] = {"logitz": np.zeros(1, np.float32)}
    with pytest.raises(UsageError, match="logitz"):
        write_bundle(tmp_path / "bundle", **arguments)


def test_an_existing_bundle_is_replaced(bundle: Path, arguments: Arguments) -> None:
    """Writing over a bundle leaves the new one and nothing beside it."""
    (bundle / "stale").write_text("old")
    write_bundle(bundle, **arguments | {"target": "inf2"})
    assert load_manifest(bundle)["target"]["chip"] == "inf2"
    assert not (bundle / "stale").exists()
    assert [path.name for path in bundle.parent.iterdir() if path.name.startswith(".")] == []


def test_a_failed_replacement_keeps_the_old_bundle(bundle: Path, arguments: Arguments) -> None:
    """When the new bundle cannot be written, the old one stands untouched."""
    before = (bundle / "neuron_port.json").read_bytes()
    with pytest.raises(ParityError):
        write_bundle(bundle, **arguments | {"kernels": []})
    assert (bundle / "neuron_port.json").read_bytes() == before
    assert verify_files(bundle) == []


def test_a_replacement_that_was_killed_between_renames_is_undone(bundle: Path, arguments: Arguments) -> None:
    """The old bundle, set aside by a run that died, comes back before the next one begins."""
    bundle.rename(bundle.with_name(".bundle.previous"))
    with pytest.raises(ParityError):
        write_bundle(bundle, **arguments | {"kernels": []})
    assert verify_files(bundle) == []


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_anything_else_at_the_destination_is_refused(tmp_path: Path, arguments: Arguments, kind: str) -> None:
    """A folder with other things, a file or a link is left alone, with one sentence."""
    destination = tmp_path / "precious"
    if kind == "folder":
        destination.mkdir()
        (destination / "thesis.tex").write_text("x")
    elif kind == "file":
        destination.write_text("x")
    else:
        destination.symlink_to(tmp_path)
    with pytest.raises(UsageError, match="precious"):
        write_bundle(destination, **arguments)
    assert destination.exists()


@contextlib.contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """Let this process write no larger file: the nearest thing to a full disk that needs no privileges."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, arguments: Arguments) -> None:
    """Running out of space is one sentence with a cure, and no half bundle stays."""
    home = tmp_path / "out"
    arguments["derived_weights"]["gamma_plus_one"] = np.zeros(200_000, np.float32)
    with largest_file(100_000), pytest.raises(StorageError, match="No space left for the bundle"):
        write_bundle(home / "bundle", **arguments)
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (None, StorageError, "No neuron bundle at"),
        ("{", StorageError, "is damaged"),
        ("[]", StorageError, "no schema_version"),
        ('{"schema_version": 1}', StorageError, "no `state`"),
        ('{"schema_version": 2}', NeuronPortError, "manifest version 2; this neuron-port reads 1"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_explained(
    tmp_path: Path, text: str | None, error: type[NeuronPortError], message: str
) -> None:
    """Missing, damaged and newer manifests each get a sentence of their own."""
    if text is not None:
        (tmp_path / "neuron_port.json").write_text(text)
    with pytest.raises(error, match=message):
        load_manifest(tmp_path)


def test_the_plan_says_what_changes_on_other_chips(bundle: Path) -> None:
    """Every chip has its command per graph; --lnc is trn2's alone, infinities are saturated on gen2."""
    plan = json.loads((bundle / "build" / "plan.json").read_text())
    commands = {chip: entry["graphs"]["prefill_b1_s2"]["argv"] for chip, entry in plan["targets"].items()}
    assert list(commands) == ["trn2", "inf2", "trn1"]
    assert [chip for chip, argv in commands.items() if "--lnc" in argv] == ["trn2"]
    assert [chip for chip, argv in commands.items() if "--enable-saturate-infinity" in argv] == [
        "inf2",
        "trn1",
    ]
    assert "without --lnc" in plan["targets"]["inf2"]["changes"]
    assert "-O1" in commands["trn2"]
    assert "-O2" in plan["targets"]["trn2"]["graphs"]["decode_b1_t3"]["argv"]
