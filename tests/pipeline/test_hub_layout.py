"""A checkpoint in the hub's layout converts, and its bundle holds and names what the graphs read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from neuron_port.build.finishing.weights import Weights
from neuron_port.checkpoint import WeightReader, resolve
from neuron_port.store import Store
from tests.pipeline.command import convert, manifest, parity
from tests.pipeline.conftest import SMALL_LLAMA, save

MERGED = "model.layers.0.mlp.experts.gate_up_proj"


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer of Mixtral, each expert's matrices by themselves."""
    from transformers import MixtralConfig

    sizes = {key: value for key, value in SMALL_LLAMA.items() if key not in ("architectures", "model_type")}
    config = MixtralConfig(**sizes, num_local_experts=4, num_experts_per_tok=2)
    folder = save(config, tmp_path_factory.mktemp("hub") / "mixtral")
    assert "model.layers.0.block_sparse_moe.experts.3.w1.weight" in load_file(folder / "model.safetensors")
    return folder


def sources(bundle: Path) -> set[str]:
    """The weights that the graphs of a bundle read."""
    graphs = [json.loads(file.read_text()) for file in bundle.glob("graphs/*/io.json")]
    return {entry["source"] for graph in graphs for entry in graph["inputs"] if entry["role"] == "weight"}


@pytest.mark.parametrize("mode", ["copy", pytest.param("link", marks=pytest.mark.long)])
def test_mixtral_from_its_own_files(mode: str, mixtral: Path, home: Path, tmp_path: Path) -> None:
    """All proofs hold; every weight that a graph reads is found under its name, and the lock says of what it is made."""
    bundle = tmp_path / "b"
    finished = convert(mixtral, bundle, "--dtype", "float32", "--weights", mode)
    assert finished.code == 0, finished.stderr
    assert any(entry["decision"].startswith("recipe:moe_router") for entry in manifest(bundle)["mapping"])
    for side in ("kernels", "graphs", "model"):
        assert all(case["passed"] for report in parity(bundle)[side] for case in report["cases"])

    reader = WeightReader(resolve(str(mixtral), store=Store(tmp_path / "store")))
    weights = Weights(sorted((bundle / "weights").glob("*.safetensors")))
    names = {name for name in sources(bundle) if not name.startswith("derived:")}
    assert MERGED in names
    for name in names:
        assert np.array_equal(weights.float32(name), reader.get(name, torch.float32).numpy()), name

    lock: Any = json.loads((bundle / "weights" / "weights.lock.json").read_text())
    merged = lock["tensors"][MERGED]
    assert merged["file"] == "converted.safetensors"
    assert len(merged["made_of"]) == 8
    assert merged["made_of"][0] == "model.layers.0.block_sparse_moe.experts.0.w1.weight"
    assert merged["operations"] == ["MergeModulelist(dim=0)", "Concatenate(dim=1)"]
    assert [entry["name"] for entry in lock["files"]] == ["model.safetensors"]
    placed = {entry["name"] for entry in manifest(bundle)["weights"]["files"]} - {"derived.safetensors"}
    assert placed == {"converted.safetensors"} | ({"model.safetensors"} if mode == "link" else set())
    assert (bundle / "weights" / "model.safetensors").is_symlink() == (mode == "link")
