"""A one-layer Llama, one store for all tests of this folder, and its conversions: each is made once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY_LLAMA
from tests.pipeline.command import convert

SMALL_LLAMA: dict[str, Any] = TINY_LLAMA | {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}


def save(config: Any, folder: Path) -> Path:
    """A model of `config` with weights that differ everywhere, in Hugging Face layout."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:  # norms of one and biases of zero would hide a forgotten weight
            torch.nn.init.normal_(parameter, mean=float("weight" in name), std=0.2)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A one-layer Llama with random weights: configuration and safetensors, no tokenizer."""
    from transformers import LlamaConfig

    return save(LlamaConfig(**SMALL_LLAMA), tmp_path_factory.mktemp("small_llama") / "small")


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that all conversions of this folder share, by all workers too, so that no proof is made twice."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared_store"


@pytest.fixture
def home(shared_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shared store, in use."""
    monkeypatch.setenv("NEURON_PORT_HOME", str(shared_store))
    return shared_store


@pytest.fixture(scope="session")
def _session_home(shared_store: Path) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEURON_PORT_HOME", str(shared_store))
        yield shared_store


@pytest.fixture(scope="session")
def bundle(_session_home: Path, small_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small Llama converted for trn2 in bfloat16."""
    folder = tmp_path_factory.mktemp("bundles") / "bfloat16"
    finished = convert(small_llama, folder)
    assert finished.code == 0, finished.stderr
    return folder


@pytest.fixture(scope="session")
def float32_bundle(_session_home: Path, small_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small Llama converted for trn2 in float32."""
    folder = tmp_path_factory.mktemp("bundles") / "float32"
    finished = convert(small_llama, folder, "--dtype", "float32")
    assert finished.code == 0, finished.stderr
    return folder
