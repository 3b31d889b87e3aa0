"""Files in the layout of the hub, which transformers renames and merges on load, are read as the model has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from neuron_port.checkpoint import WeightReader, load_model, resolve
from neuron_port.errors import CheckpointError
from neuron_port.store import Store

TEXT: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip
MIXTURE = TEXT | {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
LATENT: dict[str, Any] = {
    "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "q_lora_rank": 16, "kv_lora_rank": 16,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "first_k_dense_replace": 1,
}  # fmt: skip


def mixtral() -> PreTrainedModel:
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**TEXT, num_local_experts=3))


def qwen3_moe() -> PreTrainedModel:
    config = transformers.Qwen3MoeConfig(**MIXTURE, num_experts=4, head_dim=8)
    return transformers.Qwen3MoeForCausalLM(config)


def deepseek_v3() -> PreTrainedModel:
    return transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**MIXTURE, **LATENT))


def vit() -> PreTrainedModel:
    return transformers.ViTForImageClassification(transformers.ViTConfig(**VISION))


def clip() -> PreTrainedModel:
    text = {
        key: TEXT[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads")
    }
    sides = {"text_config": text | {"num_hidden_layers": 1}, "vision_config": VISION}
    return transformers.CLIPModel(transformers.CLIPConfig(**sides, projection_dim=16))


def bert() -> PreTrainedModel:
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return transformers.BertForMaskedLM(transformers.BertConfig(**{key: TEXT[key] for key in keys}))


def qwen2_5_vl() -> PreTrainedModel:
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "out_hidden_size": 32}
    rotary = {"rope_type": "default", "mrope_section": [1, 1, 2]}
    config = transformers.Qwen2_5_VLConfig(
        text_config=TEXT | {"rope_parameters": rotary}, vision_config=vision
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def gamma_and_beta(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """BERT as Google published it: norms have a gamma and a beta, and a head that nobody uses is there."""
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in tensors.items()
    }
    return renamed | {"cls.seq_relationship.weight": torch.ones(2, 32)}


def with_position_ids(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """CLIP as OpenAI published it: with buffers that the modules no longer store."""
    return tensors | {"text_model.embeddings.position_ids": torch.arange(77)[None]}


def as_they_are(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tensors


@pytest.fixture
def hub_folder(tmp_path: Path) -> Callable[..., Path]:
    """Save a model with weights that differ everywhere in the hub's layout, and return its folder.

    save_pretrained writes that layout: it undoes what was renamed and merged. Each test names a tensor of the real
    files, so that a transformers which no longer does is noticed.
    """

    def save(model: PreTrainedModel, edit: Callable[..., dict[str, torch.Tensor]] = as_they_are) -> Path:
        torch.manual_seed(1)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(tmp_path / "hub")
        file = tmp_path / "hub" / "model.safetensors"
        save_file(edit(load_file(file)), file, {"format": "pt"})
        return tmp_path / "hub"

    return save


@pytest.mark.parametrize(
    ("build", "edit", "in_files", "in_model"),
    [
        (
            mixtral,
            as_they_are,
            "model.layers.0.block_sparse_moe.experts.2.w1.weight",
            "model.layers.0.mlp.experts.gate_up_proj",
        ),
        (
            qwen3_moe,
            as_they_are,
            "model.layers.1.mlp.experts.3.down_proj.weight",
            "model.layers.1.mlp.experts.down_proj",
        ),
        (
            deepseek_v3,
            as_they_are,
            "model.layers.1.mlp.experts.0.up_proj.weight",
            "model.layers.1.mlp.experts.gate_up_proj",
        ),
        (
            vit,
            as_they_are,
            "vit.encoder.layer.0.attention.attention.query.weight",
            "vit.layers.0.attention.q_proj.weight",
        ),
        (clip, with_position_ids, "visual_projection.weight", None),
        (
            bert,
            gamma_and_beta,
            "bert.embeddings.LayerNorm.gamma",
            "bert.embeddings.LayerNorm.weight",
        ),
        (
            qwen2_5_vl,
            as_they_are,
            "visual.blocks.0.attn.qkv.weight",
            "model.visual.blocks.0.attn.qkv.weight",
        ),
    ],
)
def test_hub_layout(
    build: Callable[[], PreTrainedModel],
    edit: Callable[..., dict[str, torch.Tensor]],
    in_files: str,
    in_model: str | None,
    hub_folder: Callable[..., Path],
    store: Store,
) -> None:
    """Every tensor of transformers' own model is what the reader makes of the files, under the module's name."""
    folder = hub_folder(build(), edit)
    assert in_files in load_file(folder / "model.safetensors")
    checkpoint = resolve(str(folder), store=store)
    reader = WeightReader(checkpoint)
    loaded = load_model(checkpoint)
    assert set(reader.names()) == {reader.canonical(name) for name in loaded.state_dict()}
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(reader.get(name), tensor), name
        assert checkpoint.weights[reader.canonical(name)].shape == tuple(tensor.shape)
    if in_model is not None:
        assert in_files in checkpoint.converted[in_model].made_of
    else:
        assert not checkpoint.converted


def test_experts_are_merged_as_mixtral_means_it(hub_folder: Callable[..., Path], store: Store) -> None:
    """w1 is the gate and w3 what it multiplies: the two stand over each other, expert by expert; w2 leads back."""
    folder = hub_folder(mixtral())
    files = load_file(folder / "model.safetensors")
    reader = WeightReader(resolve(str(folder), store=store))
    for expert in range(3):
        own = f"model.layers.1.block_sparse_moe.experts.{expert}"
        both = torch.cat([files[f"{own}.w1.weight"], files[f"{own}.w3.weight"]])
        assert torch.equal(reader.get("model.layers.1.mlp.experts.gate_up_proj")[expert], both)
        assert torch.equal(
            reader.get("model.layers.1.mlp.experts.down_proj")[expert], files[f"{own}.w2.weight"]
        )


def test_logits_are_transformers_own(hub_folder: Callable[..., Path], store: Store) -> None:
    """A model filled tensor by tensor from the reader answers, bit for bit, as from_pretrained of the folder."""
    folder = hub_folder(mixtral())
    reader = WeightReader(resolve(str(folder), store=store))
    theirs = transformers.MixtralForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    ours = transformers.MixtralForCausalLM._from_config(theirs.config, attn_implementation="eager").eval()
    ours.load_state_dict({name: reader.get(name) for name in ours.state_dict()})
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(ours(tokens).logits, theirs(tokens).logits)


def test_first_experts_only(
    hub_folder: Callable[..., Path], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of merged experts only those that are asked for are read from the files."""
    reader = WeightReader(resolve(str(hub_folder(mixtral())), store=store))
    name = "model.layers.0.mlp.experts.gate_up_proj"
    whole = reader.get(name)
    from neuron_port.checkpoint import conversion

    read: list[str] = []
    original = conversion.read_stored

    def watched(name: str, *others: Any, **options: Any) -> torch.Tensor:
        read.append(name)
        return original(name, *others, **options)

    monkeypatch.setattr(conversion, "read_stored", watched)
    assert torch.equal(reader.get(name, first=2), whole[:2])
    assert len(read) == 4
    assert not any("experts.2." in item for item in read)


def test_merged_tensors_in_16_bit(hub_folder: Callable[..., Path], store: Store) -> None:
    """A dtype that is asked for is that of what is merged."""
    reader = WeightReader(resolve(str(hub_folder(mixtral())), store=store))
    name = "model.layers.0.mlp.experts.down_proj"
    assert torch.equal(reader.get(name, torch.bfloat16), reader.get(name).to(torch.bfloat16))


def test_missing_expert_is_refused(hub_folder: Callable[..., Path], store: Store) -> None:
    """A mixture of which one expert is missing in the files is refused, and the tensor is named."""

    def lose(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        del tensors["model.layers.1.block_sparse_moe.experts.1.w3.weight"]
        return tensors

    folder = hub_folder(mixtral(), lose)
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.experts\.gate_up_proj"):
        resolve(str(folder), store=store)


def test_one_expert_too_few_is_refused(hub_folder: Callable[..., Path], store: Store) -> None:
    """Files with fewer experts than config.json are refused with both numbers."""

    def lose(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in tensors.items() if "experts.2." not in name}

    folder = hub_folder(mixtral(), lose)
    with pytest.raises(
        CheckpointError, match=r"has shape \[2, 96, 32\], but config.json makes it \[3, 96, 32\]"
    ):
        resolve(str(folder), store=store)


def test_names_of_nothing_are_refused(hub_folder: Callable[..., Path], store: Store) -> None:
    """A tensor that nothing in transformers' table makes is missing, and another that nobody wants is named."""

    def misname(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors["vit.embeddings.class_thing"] = tensors.pop("vit.embeddings.cls_token")
        return tensors

    folder = hub_folder(vit(), misname)
    with pytest.raises(CheckpointError) as caught:
        resolve(str(folder), store=store)
    assert "the first is `vit.embeddings.cls_token`" in caught.value.message
    assert "such as `vit.embeddings.class_thing`" in caught.value.message
