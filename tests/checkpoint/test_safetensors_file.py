"""Damaged weight files are refused from their headers alone, by name and with the numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from neuron_port.checkpoint.safetensors_file import read_header, stored_tensors
from neuron_port.errors import CheckpointError
from neuron_port.types import TensorSpec


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with two tensors."""
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(3, 4), "b": torch.ones(5, dtype=torch.bfloat16)}, file)
    return file


def write_header(file: Path, header: dict[str, object], data: bytes) -> None:
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_header(file: Path) -> None:
    """Names, shapes and dtypes come from the header."""
    assert read_header(file) == {
        "a": TensorSpec(shape=(3, 4), dtype="float32"),
        "b": TensorSpec(shape=(5,), dtype="bfloat16"),
    }


@pytest.mark.parametrize("lost_bytes", [1, 40])
def test_truncated_data(file: Path, lost_bytes: int) -> None:
    """A file that lost its end is refused with expected and actual size."""
    size_bytes = file.stat().st_size
    os.truncate(file, size_bytes - lost_bytes)
    with pytest.raises(CheckpointError) as caught:
        read_header(file)
    assert caught.value.message == (
        f"{file} is truncated: {size_bytes} bytes expected, {size_bytes - lost_bytes} there."
    )


def test_truncated_header(file: Path) -> None:
    """A file that ends inside its header is refused with the least size that it must have."""
    os.truncate(file, 20)
    with pytest.raises(CheckpointError, match=r"truncated: at least \d+ bytes expected, 20 there"):
        read_header(file)


def test_appended_bytes(file: Path) -> None:
    """A file with more bytes than its header accounts for is refused."""
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(CheckpointError, match="accounts for"):
        read_header(file)


@pytest.mark.parametrize(
    "content", [b"", b"short", b"\xff" * 64, (20).to_bytes(8, "little") + b"not a json header..."]
)
def test_not_safetensors(file: Path, content: bytes) -> None:
    """Bytes that are no safetensors file are refused."""
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="is not a valid safetensors file"):
        read_header(file)


def test_git_lfs_pointer(file: Path) -> None:
    """A Git LFS pointer in place of the weights is recognised."""
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 538090408\n")
    with pytest.raises(CheckpointError, match="Git LFS pointer"):
        read_header(file)


def test_gap_between_tensors(file: Path) -> None:
    """Offsets that leave a gap are refused, and the tensor is named."""
    write_header(file, {"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, b"\0" * 12)
    with pytest.raises(CheckpointError, match=r"tensor `a` float32\[2\] lies at bytes 4 to 12"):
        read_header(file)


def test_size_that_does_not_fit_the_shape(file: Path) -> None:
    """A tensor whose bytes do not fit its shape is named."""
    write_header(file, {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, b"\0" * 8)
    with pytest.raises(CheckpointError, match=r"tensor `a` float32\[3\]"):
        read_header(file)


def test_unsupported_dtype(file: Path) -> None:
    """A dtype that nothing downstream knows is named."""
    write_header(file, {"a": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}}, b"\0" * 8)
    with pytest.raises(CheckpointError, match=r"`a` .* has dtype F64"):
        read_header(file)


def test_missing_shard(make_llama: Callable[..., Path]) -> None:
    """A shard that the index names and the folder lacks is named."""
    folder = make_llama(shard_size="10KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert stored_tensors(folder)
    shards[1].unlink()
    with pytest.raises(
        CheckpointError, match=f"lacks 1 of the {len(shards)} weight files .* {shards[1].name}"
    ):
        stored_tensors(folder)


def test_broken_index(make_llama: Callable[..., Path]) -> None:
    """An index that is not one is named."""
    folder = make_llama(shard_size="10KB")
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(CheckpointError, match="is not a safetensors index"):
        stored_tensors(folder)


def test_file_under_another_name(file: Path) -> None:
    """A safetensors file under a name that transformers does not load is pointed out."""
    file.rename(file.with_name("consolidated.safetensors"))
    with pytest.raises(CheckpointError, match=r"has consolidated\.safetensors but neither"):
        stored_tensors(file.parent)
