"""What the user types becomes a checkpoint, or one sentence that says why not."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertConfig, BertModel, GPT2Config, GPT2Model

from neuron_port.checkpoint import WeightReader, load_config, load_model, load_tokenizer, resolve
from neuron_port.errors import CheckpointError, UsageError
from neuron_port.store import Store
from neuron_port.types import TensorSpec

MakeLlama = Callable[..., Path]


def edit_config(folder: Path, **changes: object) -> None:
    """Set values of config.json; None removes."""
    config = json.loads((folder / "config.json").read_text()) | changes
    config = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


def refusal(model: Path | str, store: Store, **options: object) -> CheckpointError | UsageError:
    with pytest.raises((CheckpointError, UsageError)) as caught:
        resolve(str(model), store=store, **options)  # type: ignore[arg-type]
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value


def test_local_folder(store: Store, make_llama: MakeLlama) -> None:
    """A folder in Hugging Face layout is a checkpoint with the specs of its files."""
    checkpoint = resolve(str(make_llama()), store=store)
    assert checkpoint.name == "tiny"
    assert checkpoint.architecture == "LlamaForCausalLM"
    assert checkpoint.config["num_key_value_heads"] == 2
    assert checkpoint.weights["model.layers.1.self_attn.k_proj.weight"] == TensorSpec(
        shape=(16, 32), dtype="float32"
    )
    assert load_config(checkpoint).hidden_size == 32
    assert load_tokenizer(checkpoint) is None


def test_loaded_model_is_for_inference(store: Store, make_llama: MakeLlama) -> None:
    """The loaded model is in eval mode, without gradients, with eager attention, in the requested dtype."""
    checkpoint = resolve(str(make_llama()), store=store)
    model = load_model(checkpoint, torch.bfloat16)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.config._attn_implementation == "eager"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_equal_bytes_equal_revision(store: Store, make_llama: MakeLlama) -> None:
    """A copy elsewhere has the same revision; one changed weight or one changed option gives another."""
    folder = make_llama()
    revision = resolve(str(folder), store=store).revision
    copy = Path(shutil.copytree(folder, folder.parent / "copy"))
    assert resolve(str(copy), store=store).revision == revision

    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    changed = resolve(str(copy), store=store).revision
    assert changed != revision
    edit_config(copy, rms_norm_eps=1e-3)
    assert resolve(str(copy), store=store).revision not in (revision, changed)


def test_preset_with_random_weights_is_offline(store: Store) -> None:
    """A hub preset with random weights needs no hub, and has the sizes that its name promises."""

    def no_network(*_: object, **__: object) -> str:
        raise AssertionError("the hub was asked")

    checkpoint = resolve("llama-3.1-8b", store=store, random_weights=True, snapshot=no_network)
    assert sum(spec.size for spec in checkpoint.weights.values()) == 8_030_261_248
    assert checkpoint.license == "llama3.1"
    assert checkpoint.config["rope_parameters"]["rope_type"] == "llama3"


def test_base_model_names(store: Store, tmp_path: Path) -> None:
    """Files saved from a base model, whose names lack the first part, are mapped to the module's names."""
    GPT2Model(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4, n_positions=64)).save_pretrained(
        tmp_path
    )
    edit_config(tmp_path, architectures=["GPT2LMHeadModel"])
    checkpoint = resolve(str(tmp_path), store=store)
    assert "transformer.h.0.ln_1.weight" in checkpoint.weights
    expected = dict(load_model(checkpoint).named_parameters())["transformer.h.0.mlp.c_fc.weight"]
    assert torch.equal(WeightReader(checkpoint).get("transformer.h.0.mlp.c_fc.weight"), expected)


def test_unused_tensors_are_told(store: Store, make_llama: MakeLlama) -> None:
    """Tensors that the model does not use are left out, and progress says so."""
    folder = make_llama()
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "extra.weight": torch.ones(2)}, folder / "model.safetensors", {"format": "pt"})
    messages: list[str] = []
    checkpoint = resolve(str(folder), store=store, progress=messages.append)
    assert "extra.weight" not in checkpoint.weights
    assert messages == ["1 tensors in the files are not used by the model, the first is `extra.weight`."]


@pytest.mark.parametrize(
    ("model", "words"),
    [("smolm2-135", "Did you mean `smollm2-135m`?"), ("zzz", "Presets: all-minilm-l6-v2, bert-base")],
)
def test_unknown_name(store: Store, model: str, words: str) -> None:
    """A misspelt name gets its neighbour, any other unknown name the list."""
    error = refusal(model, store)
    assert error.message == f"Unknown model: `{model}`"
    assert words in str(error.hint)


def test_missing_paths(store: Store, tmp_path: Path) -> None:
    """Paths that do not exist, and files of the wrong kind, are named."""
    assert "There is no folder" in refusal(tmp_path / "absent", store).message
    assert "There is no file" in refusal(tmp_path / "absent.gguf", store).message
    (tmp_path / "model.bin").write_bytes(b"")
    assert "is not a GGUF file" in refusal(tmp_path / "model.bin", store).message


def test_revision_of_a_folder(store: Store, make_llama: MakeLlama) -> None:
    """A revision is for models on the hub."""
    assert "no revision `v2`" in refusal(make_llama(), store, revision="v2").message


def test_folder_without_config(store: Store, tmp_path: Path) -> None:
    """A folder without config.json is not a checkpoint."""
    assert "has no config.json" in refusal(tmp_path, store).message


def test_config_that_is_not_json(store: Store, make_llama: MakeLlama) -> None:
    """A damaged config.json is named."""
    folder = make_llama()
    (folder / "config.json").write_text('{"model_type": "llama",')
    assert "config.json is not valid JSON" in refusal(folder, store).message


def test_encoder_is_read(store: Store, tmp_path: Path) -> None:
    """An architecture that does not generate text is a checkpoint like any other."""
    config = BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48
    )
    BertModel(config).save_pretrained(tmp_path)
    checkpoint = resolve(str(tmp_path), store=store)
    assert checkpoint.architecture == "BertModel"
    assert "embeddings.word_embeddings.weight" in checkpoint.weights


def test_architecture_that_is_no_model_is_refused(store: Store, make_llama: MakeLlama) -> None:
    """A class that transformers does not have is refused by its name."""
    folder = make_llama()
    edit_config(folder, architectures=["LlamaForNothing"])
    assert "is of LlamaForNothing, which is no model known to transformers" in refusal(folder, store).message


def test_unknown_model_type(store: Store, make_llama: MakeLlama) -> None:
    """A model type that transformers does not know is named, with transformers' version."""
    folder = make_llama()
    edit_config(folder, model_type="brandnew", architectures=None)
    assert "model type `brandnew`, which is no model known to transformers" in refusal(folder, store).message


def test_architecture_of_another_model_type(store: Store, make_llama: MakeLlama) -> None:
    """An architecture that is not the model type's own is refused with both names."""
    folder = make_llama()
    edit_config(folder, architectures=["MixtralForCausalLM"])
    message = refusal(folder, store).message
    assert "but its model type `llama` is not that of MixtralForCausalLM (`mixtral`)" in message


@pytest.mark.parametrize(
    "changes", [{"hidden_size": "wide"}, {"num_attention_heads": 0}, {"hidden_size": -4}]
)
def test_impossible_config(store: Store, make_llama: MakeLlama, changes: dict[str, object]) -> None:
    """Values that no model can be built from are refused with transformers' reason."""
    folder = make_llama()
    edit_config(folder, **changes)
    assert re.search(r"(refuses|can be built from) .*: \w+Error: ", refusal(folder, store).message)


def test_remote_code_is_refused(store: Store, make_llama: MakeLlama) -> None:
    """A model that brings its own code is refused, and the reason is said."""
    folder = make_llama()
    edit_config(folder, auto_map={"AutoModelForCausalLM": "modeling_evil.EvilModel"})
    assert "code of its own (modeling_evil.EvilModel)" in refusal(folder, store).message


def test_quantized_checkpoint_is_refused(store: Store, make_llama: MakeLlama) -> None:
    """A quantized checkpoint is refused by its method."""
    folder = make_llama()
    edit_config(folder, quantization_config={"quant_method": "awq"})
    assert "quantized weights (awq)" in refusal(folder, store).message


def test_config_without_weights(store: Store, make_llama: MakeLlama) -> None:
    """A configuration alone is refused with the cure, and the cure works."""
    folder = make_llama()
    (folder / "model.safetensors").unlink()
    assert "--random-weights" in str(refusal(folder, store).hint)
    assert resolve(str(folder), store=store, random_weights=True).random_weights


def test_pickled_weights_are_refused(store: Store, make_llama: MakeLlama) -> None:
    """Weights that exist only as a pickle are refused: safetensors are required."""
    folder = make_llama()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    error = refusal(folder, store)
    assert "only as pytorch_model.bin" in error.message
    assert "Safetensors files are required" in str(error.hint)


def test_missing_tensor(store: Store, make_llama: MakeLlama) -> None:
    """A tensor that the files lack is named, and so is one that they have instead."""
    folder = make_llama()
    tensors = load_file(folder / "model.safetensors")
    tensors["model.final_norm.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    message = refusal(folder, store).message
    assert "lack 1 of the 21 tensors" in message
    assert "`model.norm.weight`" in message
    assert "`model.final_norm.weight`" in message


def test_shape_mismatch(store: Store, make_llama: MakeLlama) -> None:
    """A tensor whose shape is not the configuration's is named with both shapes."""
    folder = make_llama()
    edit_config(folder, intermediate_size=40)
    message = refusal(folder, store).message
    assert "`model.layers.0.mlp.gate_proj.weight`" in message
    assert "has shape [48, 32]" in message
    assert "makes it [40, 32]" in message


def test_tied_weights_that_differ(store: Store, make_llama: MakeLlama) -> None:
    """Weights that config.json ties but the files hold with different values are refused."""
    folder = make_llama()
    edit_config(folder, tie_word_embeddings=True)
    assert "ties `lm_head.weight` to `model.embed_tokens.weight`" in refusal(folder, store).message


def test_reference_is_transformers(store: Store, make_llama: MakeLlama) -> None:
    """The loaded model computes what transformers computes from the same folder."""
    folder = make_llama()
    tokens = torch.tensor([[1, 5, 9]])
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")(tokens).logits
        actual = load_model(resolve(str(folder), store=store))(tokens).logits
    assert torch.equal(actual, expected)
