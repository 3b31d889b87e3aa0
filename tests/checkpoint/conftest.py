"""Tiny models made on the spot: real configurations and files, a few kilobytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from neuron_port.store import Store

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def make_llama(tmp_path: Path) -> Callable[..., Path]:
    """Save a tiny Llama model and return its folder; keyword arguments go to its configuration."""

    def make(name: str = "tiny", shard_size: str = "1GB", **config: Any) -> Path:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(LlamaConfig(**{**SIZES, **config}))
        folder = tmp_path / name
        model.save_pretrained(folder, max_shard_size=shard_size)
        return folder

    return make
