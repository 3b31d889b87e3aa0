"""Linear layers in one byte for each weight: what is quantised, how exactly, and what is left as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, ResNetConfig, ResNetModel

from neuron_port.checkpoint import WeightReader, build_skeleton, load_config, load_model, quantized, resolve
from neuron_port.checkpoint.quantization import (
    CLASSES,
    FORMATS,
    QuantizedLinear,
    quantize,
    with_quantized_layers,
)
from neuron_port.errors import CheckpointError, UsageError
from neuron_port.store import Store
from neuron_port.types import TensorSpec

MakeLlama = Callable[..., Path]
Q_PROJ = "model.layers.0.self_attn.q_proj"


def values_of(stored_NK: torch.Tensor) -> np.ndarray:
    """What stored bytes mean on the chip: int8, or the e4m3 of NeuronCores before v4, whose values end at 240."""
    array = stored_NK.numpy()
    return (
        array.astype(np.float32) if array.dtype == np.int8 else array.view(ml_dtypes.float8_e4m3).astype("f4")
    )


@pytest.mark.parametrize(
    ("form", "largest_step"), [("int8", 0.5 / 127), ("fp8", 1 / 16)], ids=["int8", "fp8"]
)
def test_rounding_is_bounded(form: str, largest_step: float) -> None:
    """int8 is at most half a step off, a step being the row's largest / 127; fp8 a sixteenth of the weight itself."""
    weight_NK = torch.randn(48, 64) * torch.logspace(-6, 3, 48)[:, None]
    stored_NK, scale_N = quantize(weight_NK, FORMATS[form])
    assert stored_NK.element_size() == 1
    error = np.abs(values_of(stored_NK) * scale_N.numpy()[:, None] - weight_NK.numpy())
    largest_N = weight_NK.abs().amax(1, keepdim=True).numpy()
    allowed = largest_N if form == "int8" else np.maximum(np.abs(weight_NK.numpy()), largest_N / 240 / 64)
    assert (error <= allowed * largest_step * (1 + 1e-5)).all()


@pytest.mark.parametrize("form", FORMATS)
def test_the_largest_weight_is_kept(form: str) -> None:
    """The largest of each row uses the whole range and no more: on the chip nothing becomes infinite."""
    stored_NK, scale_N = quantize(torch.randn(32, 40) * 1e4, FORMATS[form])
    values = values_of(stored_NK)
    assert np.isfinite(values).all()
    assert (np.abs(values).max(1) == FORMATS[form].largest).all()
    assert scale_N.dtype == torch.float32


@pytest.mark.parametrize("form", FORMATS)
def test_a_row_of_zeros_stays_zero(form: str) -> None:
    """A row without weights has the scale one, not a division by zero."""
    stored_NK, scale_N = quantize(torch.tensor([[0.0, 0.0], [1.0, -2.0]]), FORMATS[form])
    assert not values_of(stored_NK)[0].any()
    assert scale_N[0] == 1


@pytest.mark.parametrize("form", FORMATS)
def test_layer_equals_its_dequantised_weight(form: str) -> None:
    """The scale behind the product gives what the dequantised weight gives."""
    weight_NK, x = torch.randn(6, 8), torch.randn(3, 8)
    layer = CLASSES[form](6, 8, torch.nn.Parameter(torch.randn(6)))
    stored_NK, scale_N = quantize(weight_NK, FORMATS[form])
    setattr(layer, layer.stored_name, torch.nn.Parameter(stored_NK, requires_grad=False))
    layer.weight_scale = torch.nn.Parameter(scale_N, requires_grad=False)
    expected = torch.nn.functional.linear(x, layer.dequantized(), layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    np.testing.assert_array_equal(
        layer.dequantized().numpy(), values_of(stored_NK) * scale_N.numpy()[:, None]
    )


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("random_weights", [False, True])
def test_reader_gives_quantised_tensors(
    store: Store, make_llama: MakeLlama, form: str, random_weights: bool
) -> None:
    """Linear layers read as bytes and scales, made of the checkpoint's own weights; everything else as it was."""
    plain = resolve(str(make_llama()), store=store, random_weights=random_weights)
    checkpoint = quantized(plain, form)
    reader, original = WeightReader(checkpoint), WeightReader(plain)
    stored = f"{Q_PROJ}.weight_{form}"
    expected = quantize(original.get(f"{Q_PROJ}.weight"), FORMATS[form])
    assert torch.equal(reader.get(stored, torch.bfloat16), expected[0])
    assert torch.equal(reader.get(f"{Q_PROJ}.weight_scale"), expected[1])
    assert reader.canonical(stored) == f"derived:{stored}"
    assert torch.equal(reader.get(f"derived:{stored}"), expected[0])
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
        assert torch.equal(reader.get(name), original.get(name))
        assert reader.canonical(name) == original.canonical(name)
    with pytest.raises(CheckpointError, match="has no tensor"):
        reader.get("model.absent")


def test_what_is_quantised(store: Store, make_llama: MakeLlama) -> None:
    """All linear layers but the output projection; specs and revision say so, and the original is kept at hand."""
    plain = resolve(str(make_llama(tie_word_embeddings=False)), store=store)
    checkpoint = quantized(plain, "int8")
    assert len(checkpoint.quantized) == 2 * 7
    assert "lm_head" not in checkpoint.quantized
    assert checkpoint.weights[f"{Q_PROJ}.weight_int8"] == TensorSpec(shape=(32, 32), dtype="int8")
    assert checkpoint.weights[f"{Q_PROJ}.weight_scale"] == TensorSpec(shape=(32,), dtype="float32")
    assert f"{Q_PROJ}.weight" not in checkpoint.weights
    assert checkpoint.unquantized == plain
    assert len({plain.revision, checkpoint.revision, quantized(plain, "fp8").revision}) == 3


@pytest.mark.parametrize("form", FORMATS)
def test_model_of_a_quantised_checkpoint(store: Store, make_llama: MakeLlama, form: str) -> None:
    """transformers' model with quantised layers holds what the reader gives, and answers nearly as before."""
    checkpoint = quantized(resolve(str(make_llama()), store=store), form)
    assert checkpoint.unquantized is not None
    reader = WeightReader(checkpoint)
    before = load_model(checkpoint.unquantized)
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        expected = before(tokens).logits
    model = with_quantized_layers(before, checkpoint, reader.get)
    assert sum(isinstance(module, QuantizedLinear) for module in model.modules()) == 14
    for name, tensor in model.state_dict().items():
        assert torch.equal(reader.get(name), tensor), name
    with torch.no_grad():
        difference = (model(tokens).logits - expected).abs().max() / expected.abs().max()
    assert 0 < difference < 0.1


def test_transposed_layers(store: Store, tmp_path: Path) -> None:
    """GPT-2 stores its weights with input features first: the quantised ones have outputs first, as their scales do."""
    sizes: dict[str, Any] = {"vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(tmp_path)
    checkpoint = quantized(resolve(str(tmp_path), store=store), "int8")
    assert checkpoint.unquantized is not None
    name = "transformer.h.0.mlp.c_fc"
    assert checkpoint.unquantized.weights[f"{name}.weight"].shape == (32, 128)
    assert checkpoint.weights[f"{name}.weight_int8"].shape == (128, 32)
    weight_KN = WeightReader(checkpoint.unquantized).get(f"{name}.weight")
    expected = quantize(weight_KN.t(), FORMATS["int8"])[0]
    assert torch.equal(WeightReader(checkpoint).get(f"{name}.weight_int8"), expected)
    skeleton = with_quantized_layers(build_skeleton(load_config(checkpoint), torch.bfloat16), checkpoint)
    assert skeleton.get_submodule(name).weight_int8.shape == (128, 32)
    assert skeleton.get_submodule(name).weight_scale.dtype == torch.float32


def test_weights_that_are_not_finite_are_refused(store: Store, make_llama: MakeLlama) -> None:
    """A weight with a NaN has no scale: it is refused, and named."""
    folder = make_llama()
    tensors = load_file(folder / "model.safetensors")
    tensors[f"{Q_PROJ}.weight"][3, 4] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    reader = WeightReader(quantized(resolve(str(folder), store=store), "int8"))
    reader.get("model.layers.0.self_attn.k_proj.weight_int8")
    with pytest.raises(CheckpointError, match=rf"`{Q_PROJ}\.weight` of `tiny` cannot be quantised"):
        reader.get(f"{Q_PROJ}.weight_int8")


def test_model_without_linear_layers_is_refused(store: Store, tmp_path: Path) -> None:
    """A model of convolutions alone has nothing that could be quantised."""
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    ResNetModel(config).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="has no linear layer whose weights could be fp8"):
        quantized(resolve(str(tmp_path), store=store), "fp8")
