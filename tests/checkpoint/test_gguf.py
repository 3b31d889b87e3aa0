"""GGUF files become ordinary checkpoint folders, once; truncated ones are refused up front."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter

from neuron_port.checkpoint import WeightReader, load_model, load_tokenizer, resolve
from neuron_port.checkpoint.gguf_header import read_gguf_header
from neuron_port.errors import CheckpointError
from neuron_port.store import Store

LAYER_SHAPES = {
    "attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32), "ffn_gate": (48, 32),
    "ffn_up": (48, 32), "ffn_down": (32, 48), "attn_norm": (32,), "ffn_norm": (32,),
}  # fmt: skip


def write_gguf(file: Path, architecture: str = "llama") -> dict[str, np.ndarray]:
    """Write a one-layer model with a vocabulary of 64 characters; returns its tensors by GGUF name."""
    random = np.random.default_rng(0)
    shapes = {"token_embd": (64, 32), "output_norm": (32,)}
    shapes |= {f"blk.0.{name}": shape for name, shape in LAYER_SHAPES.items()}
    tensors = {f"{name}.weight": random.standard_normal(s).astype(np.float32) for name, s in shapes.items()}
    writer = GGUFWriter(file, architecture)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(64)
    writer.add_string("general.license", "mit")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<s>", "</s>", *(chr(33 + index) for index in range(61)), "AB"])
    writer.add_token_types([3, 3] + [1] * 62)
    writer.add_token_merges(["A B"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_gguf_becomes_a_checkpoint(store: Store, tmp_path: Path) -> None:
    """Weights, configuration, tokenizer and licence come over; float32 options get their decimals back."""
    tensors = write_gguf(tmp_path / "tiny.gguf")
    checkpoint = resolve(str(tmp_path / "tiny.gguf"), store=store)
    assert checkpoint.name == "tiny"
    assert checkpoint.license == "mit"
    assert checkpoint.config["rms_norm_eps"] == 1e-5
    assert checkpoint.config["tie_word_embeddings"] is True
    assert len(checkpoint.weights) == len(tensors)
    reader = WeightReader(checkpoint)
    up = reader.get("model.layers.0.mlp.up_proj.weight")
    assert np.array_equal(up.numpy(), tensors["blk.0.ffn_up.weight"])
    assert torch.equal(load_model(checkpoint).lm_head.weight, reader.get("model.embed_tokens.weight"))
    tokenizer = load_tokenizer(checkpoint)
    assert tokenizer is not None
    assert tokenizer("ABC")["input_ids"] == [63, 36]


def test_gguf_is_converted_once(store: Store, tmp_path: Path) -> None:
    """The second time, also under another name, the conversion is skipped and says so."""
    write_gguf(tmp_path / "tiny.gguf")
    first = resolve(str(tmp_path / "tiny.gguf"), store=store)
    (tmp_path / "tiny.gguf").rename(tmp_path / "moved.gguf")
    messages: list[str] = []
    second = resolve(str(tmp_path / "moved.gguf"), store=store, progress=messages.append)
    assert messages == ["moved.gguf was converted before, skipping."]
    assert second.revision == first.revision


def test_truncated_gguf(store: Store, tmp_path: Path) -> None:
    """A GGUF file that lost its end is refused with expected and actual size, and nothing is stored."""
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    header = read_gguf_header(file)
    assert header.metadata["general.architecture"] == "llama"
    os.truncate(file, file.stat().st_size - 200)
    with pytest.raises(CheckpointError, match=rf"truncated: \d+ bytes expected, {file.stat().st_size} there"):
        resolve(str(file), store=store)
    assert not (store.root / "checkpoint").exists()


def test_gguf_truncated_in_its_header(tmp_path: Path) -> None:
    """A GGUF file that ends inside its header is refused."""
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    os.truncate(file, 300)
    with pytest.raises(CheckpointError, match="does not end within its 300 bytes"):
        read_gguf_header(file)


def test_not_gguf(store: Store, tmp_path: Path) -> None:
    """Another file under a GGUF name is refused."""
    (tmp_path / "a.gguf").write_bytes(b"PK\x03\x04" * 10)
    with pytest.raises(CheckpointError, match="is not a GGUF file"):
        resolve(str(tmp_path / "a.gguf"), store=store)


def test_unknown_gguf_architecture(store: Store, tmp_path: Path) -> None:
    """An architecture that transformers cannot read from GGUF is named, and nothing half-converted stays."""
    write_gguf(tmp_path / "tiny.gguf", architecture="wkv9")
    with pytest.raises(CheckpointError, match="architecture `wkv9`"):
        resolve(str(tmp_path / "tiny.gguf"), store=store)
    assert not list((store.root / "checkpoint").iterdir())
