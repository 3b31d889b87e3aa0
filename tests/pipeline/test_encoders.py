"""Encoders convert in one graph for each bucket: texts padded, pictures, both; embeddings are proven by direction too."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from neuron_port.registry import data_folder
from neuron_port.walk.pooling import Pooling
from tests.pipeline.command import Finished, convert, failed, manifest, parity

TEXT = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 32, "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
PICTURE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 8, "initializer_range": 0.2,
}  # fmt: skip


def save(kind: str, config: Any, folder: Path) -> Path:
    """A model with weights that differ everywhere, in Hugging Face layout."""
    import transformers

    torch.manual_seed(3)
    model = getattr(transformers, kind)(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:  # norms of one and biases of zero would hide a forgotten weight
            torch.nn.init.normal_(parameter, mean=float("weight" in name), std=0.2)
    model.save_pretrained(folder, save_original_format=False)
    return folder


@pytest.fixture(scope="session")
def sentence_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A one-layer BERT whose checkpoint asks for the normalised mean of its tokens."""
    from transformers import BertConfig

    folder = save("BertModel", BertConfig(**TEXT), tmp_path_factory.mktemp("encoders") / "bert")
    modules = [
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return folder


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the recipes that conversions use, free to be changed."""
    folder = shutil.copytree(data_folder("recipes"), tmp_path / "recipes")
    monkeypatch.setattr("neuron_port.pipeline.workbench.recipe_folders", lambda *named: (folder, *named))
    return folder


def all_hold(finished: Finished, bundle: Path) -> dict[str, list[Any]]:
    """The bundle's reports by side, after looking that the three proofs were made and hold."""
    assert finished.code == 0, finished.stderr
    assert manifest(bundle)["state"] == "portable"
    reports = parity(bundle)
    for side in ("kernels", "graphs", "model"):
        cases = [case for report in reports[side] for case in report["cases"]]
        assert cases
        assert all(case["passed"] for case in cases)
    return reports


def kinds_of(reports: list[Any], dtype: str) -> set[str]:
    """What was judged in the dtype: the names of the cases without the sample."""
    cases = [case for report in reports for case in report["cases"] if case["dtype"] == dtype]
    return {case["name"].partition(" · ")[2] for case in cases}


def test_a_sentence_encoder_is_proven_with_its_embedding(
    home: Path, sentence_encoder: Path, tmp_path: Path
) -> None:
    """Texts shorter than the bucket: the bundle pools them, and directions and their order hold on both sides."""
    reports = all_hold(convert(sentence_encoder, tmp_path / "b"), tmp_path / "b")
    for side in ("graphs", "model"):
        for dtype in ("float32", "bfloat16"):
            wanted = {"last_hidden_state", "sentence_embedding · cosine", "sentence_embedding · ranking"}
            assert wanted <= kinds_of(reports[side], dtype)
    page = re.sub(r"(?s)<style>.*?</style>|<[^>]*>", " ", (tmp_path / "b" / "report.html").read_text())
    assert "all keep their order" in page
    for word in ("greedy", "prompt"):  # what is generated is told of models that generate
        assert word not in page


def test_the_embedding_is_that_of_the_text_alone(home: Path, sentence_encoder: Path, tmp_path: Path) -> None:
    """The golden answer for a padded text is what the formula gives for transformers' answer without padding."""
    from transformers import AutoModel

    bundle = tmp_path / "b"
    all_hold(convert(sentence_encoder, bundle, "--dtype", "float32"), bundle)
    (place,) = (bundle / "parity" / "golden").iterdir()
    golden = load_file(place)
    length = int(golden["attention_mask"][0].sum())
    assert 0 < length < golden["input_ids"].shape[1]
    model = AutoModel.from_pretrained(sentence_encoder)
    with torch.no_grad():
        hidden = model(golden["input_ids"][:, :length].long()).last_hidden_state
    expected = hidden.mean(1) / hidden.mean(1).norm(dim=-1, keepdim=True)
    torch.testing.assert_close(golden["sentence_embedding"], expected, rtol=1e-4, atol=1e-5)


def test_pooling_that_counts_padding_is_refused(
    sentence_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mean over the whole bucket agrees with itself everywhere, and differs from the text alone: it is named."""
    right = Pooling.__call__
    monkeypatch.setattr(
        Pooling, "__call__", lambda self, hidden, mask: right(self, hidden, torch.ones_like(mask))
    )
    monkeypatch.setenv("NEURON_PORT_HOME", str(tmp_path / "home"))  # what it makes is wrong
    said = failed(convert(sentence_encoder, tmp_path / "b", "--dtype", "float32"), 1)
    assert "· sentence_embedding · cosine" in said
    assert not (tmp_path / "b").exists()


def test_a_broken_kernel_of_an_encoder_is_refused(
    home: Path, sentence_encoder: Path, recipes: Path, tmp_path: Path
) -> None:
    """A fault of one line in layer_norm's kernel is named with the kernel, and nothing is shipped."""
    kernel = recipes / "layer_norm" / "kernel.py"
    source, right = kernel.read_text(), "bias=eps_sbuf, scale=1.0 / hidden"
    assert source.count(right) == 1
    kernel.write_text(source.replace(right, "bias=eps_sbuf, scale=0.96 / hidden"))
    said = failed(convert(sentence_encoder, tmp_path / "b", "--dtype", "float32"), 1)
    assert "layer_norm · LayerNorm" in said
    assert not (tmp_path / "b").exists()


def test_a_picture_encoder_has_one_graph(home: Path, tmp_path: Path) -> None:
    """A vision transformer's pictures have one size, so several buckets give one graph; its proofs hold."""
    from transformers import ViTConfig

    model = save("ViTModel", ViTConfig(**PICTURE), tmp_path / "vit")
    bundle = tmp_path / "b"
    reports = all_hold(convert(model, bundle, "--buckets", "8,16", "--dtype", "float32"), bundle)
    assert len(reports["graphs"]) == 1
    assert "pooler_output · cosine" in kinds_of(reports["model"], "float32")


@pytest.mark.slow
def test_two_towers_have_both_embeddings(home: Path, tmp_path: Path) -> None:
    """CLIP takes a text and a picture in one call; the direction of both embeddings is judged."""
    from transformers import CLIPConfig

    config = CLIPConfig(text_config=TEXT, vision_config=PICTURE, projection_dim=32)
    model = save("CLIPModel", config, tmp_path / "clip")
    bundle = tmp_path / "b"
    reports = all_hold(convert(model, bundle, "--dtype", "float32"), bundle)
    assert {"text_embeds · cosine", "image_embeds · cosine"} <= kinds_of(reports["model"], "float32")


def test_a_layer_behind_the_pooling_is_not_forgotten(
    home: Path, sentence_encoder: Path, tmp_path: Path
) -> None:
    """A checkpoint that puts a dense layer behind its pooling is refused by name: its embedding would be another."""
    model = shutil.copytree(sentence_encoder, tmp_path / "bert")
    modules = json.loads((model / "modules.json").read_text())
    modules.append({"path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (model / "modules.json").write_text(json.dumps(modules))
    assert "`Dense`" in failed(convert(model, tmp_path / "b"), 1)
