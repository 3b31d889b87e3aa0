"""Fixtures that several folders share: a tiny Llama, on disk and walked. Offline, on the CPU, a second or less each."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

TINY_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}


def pytest_configure() -> None:
    """Hear Ctrl-C even where a shell in the background has it ignored: tests send it, to children too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def store_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store of this test's own."""
    folder = tmp_path / "store"
    monkeypatch.setenv("NEURON_PORT_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny_llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with random weights in Hugging Face layout: configuration and safetensors."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny_llama")
    torch.manual_seed(3)
    model = LlamaForCausalLM(LlamaConfig(**TINY_LLAMA))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:  # norms of one would hide a forgotten weight
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
        assert parameter.std() > 0, name
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def config_only_folder(tmp_path: Path) -> Path:
    """A folder that holds a configuration and no weights."""
    folder = tmp_path / "config-only"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY_LLAMA))
    return folder


@pytest.fixture(scope="session")
def tiny_skeleton() -> Any:
    """The tiny Llama without data."""
    import torch
    from transformers import LlamaConfig

    from neuron_port.checkpoint import build_skeleton

    return build_skeleton(LlamaConfig(**TINY_LLAMA), torch.float32)


@pytest.fixture(scope="session")
def tiny_walks(tiny_skeleton: Any) -> list[Any]:
    """Its prefill (16 tokens) and decode (32 slots) walks."""
    from neuron_port.walk.families import programs_of
    from neuron_port.walk.program import GraphShapes
    from neuron_port.walk.walker import walk

    shapes = GraphShapes(batch=1, buckets=(16,), cache_length=32)
    return [walk(tiny_skeleton, "tiny", program) for program in programs_of(tiny_skeleton, shapes)]


@pytest.fixture(scope="session")
def registry() -> Any:
    from neuron_port.registry import Registry

    return Registry()
