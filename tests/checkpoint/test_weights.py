"""Tensors one at a time equal the tensors of the whole model, real or random."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from neuron_port.checkpoint import WeightReader, load_model, resolve
from neuron_port.checkpoint.weights import random_tensor
from neuron_port.errors import CheckpointError
from neuron_port.store import Store

MakeLlama = Callable[..., Path]
PINNED_VALUES = [0.00045096237, -0.014568835, 0.017158875, -0.02717606]


@pytest.mark.parametrize("random_weights", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reader_equals_model(
    store: Store, make_llama: MakeLlama, random_weights: bool, tied: bool, dtype: torch.dtype
) -> None:
    """Every parameter of the loaded model, tied ones too, is what the reader gives under its name."""
    checkpoint = resolve(
        str(make_llama(tie_word_embeddings=tied)), store=store, random_weights=random_weights
    )
    reader = WeightReader(checkpoint)
    model = load_model(checkpoint, dtype)
    assert set(reader.names()) == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        assert torch.equal(reader.get(name, dtype), parameter), name


def test_sharded_equals_single(store: Store, make_llama: MakeLlama) -> None:
    """A checkpoint in several files gives the same tensors as in one."""
    single = WeightReader(resolve(str(make_llama("single")), store=store))
    folder = make_llama("sharded", shard_size="10KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    sharded = WeightReader(resolve(str(folder), store=store))
    assert set(single.names()) == set(sharded.names())
    assert all(torch.equal(single.get(name), sharded.get(name)) for name in single.names())


def test_unknown_tensor(store: Store, make_llama: MakeLlama) -> None:
    """A name that the model does not have is refused."""
    reader = WeightReader(resolve(str(make_llama()), store=store))
    with pytest.raises(CheckpointError, match=r"has no tensor `model\.absent`"):
        reader.get("model.absent")


def test_random_weights_are_decided_by_name_and_shape() -> None:
    """The same name and shape give the same values, another name others; these first values never change."""
    first = random_tensor("a.weight", (2, 2), 0.02)
    assert torch.equal(first, random_tensor("a.weight", (2, 2), 0.02))
    assert not torch.equal(first, random_tensor("b.weight", (2, 2), 0.02))
    assert first.flatten().tolist() == pytest.approx(PINNED_VALUES, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "shape", "mean", "deviation"),
    [
        ("up_proj.weight", (200, 200), 0.0, 0.02),
        ("norm.weight", (4000,), 1.0, 0.1),
        ("fc.bias", (4000,), 0.0, 0.02),
    ],
)
def test_random_distribution(name: str, shape: tuple[int, ...], mean: float, deviation: float) -> None:
    """Matrices and biases are small around zero, norm scales lie around one."""
    values = random_tensor(name, shape, 0.02)
    assert values.dtype == torch.float32
    assert values.mean().item() == pytest.approx(mean, abs=deviation / 10)
    assert values.std().item() == pytest.approx(deviation, rel=0.05)


def test_random_model_revision(store: Store, make_llama: MakeLlama) -> None:
    """Random weights have another revision than real ones of the same configuration."""
    folder = str(make_llama())
    random = resolve(folder, store=store, random_weights=True)
    assert random.revision == resolve(folder, store=store, random_weights=True).revision
    assert random.revision != resolve(folder, store=store).revision
