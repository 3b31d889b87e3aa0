"""Presets are data: complete, consistent, and never skipped when broken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

from neuron_port.checkpoint import Preset, find_preset, list_presets
from neuron_port.errors import CheckpointError

GOOD = 'description = "d"\n[source]\nkind = "config"\n[config]\nmodel_type = "llama"\n'
WHEEL = (
    'description = "d"\n[source]\nkind = "wheel"\npackage = "p"\nversion = "1"\nsha256 = "0"\norigin = "o"\n'
)
# Parameters as published, in millions, tied ones once. A config with a wrong width or depth does not give them.
MILLIONS = {
    "all-minilm-l6-v2": 22.7, "bert-base": 109.5, "clip-vit-b32": 151.3, "deepseek-v3": 671026, "gemma-2-9b": 9242,
    "gemma-3-1b": 1000, "gemma-3-4b": 3880, "gpt-oss-20b": 20915, "llama-3.1-70b": 70554, "llama-3.1-8b": 8030,
    "llama-3.2-1b": 1236, "llama-3.2-3b": 3213, "llama-3.3-70b": 70554, "mamba2-1.3b": 1344, "mamba2-2.7b": 2703,
    "mistral-7b": 7248, "mixtral-8x7b": 46703, "phi-3-mini": 3821, "qwen2.5-7b": 7616, "qwen2.5-vl-7b": 8292,
    "qwen3-30b-a3b": 30532, "qwen3-8b": 8191, "smollm2-135m": 134.5, "vit-base": 86.6, "whisper-large-v3": 1543,
    "whisper-small": 241.7,
}  # fmt: skip
PRESETS = pytest.mark.parametrize("preset", list_presets(), ids=lambda preset: preset.name)
TRN2_CORE_BYTES, INF2_CORE_BYTES = (
    12 * 2**30,
    16 * 2**30,
)  # HBM of a chip over its cores (simulator/target.py)


def test_shipped_presets() -> None:
    """The presets that ship, by name."""
    assert [preset.name for preset in list_presets()] == sorted(MILLIONS)


@PRESETS
def test_preset_is_complete(preset: Preset) -> None:
    """Each preset has conversion defaults that agree with each other, and a configuration."""
    assert preset.license
    convert, config = preset.convert, preset.config
    assert {"target", "dtype", "batch", "tensor_parallel"} <= set(convert)
    if "cache_length" in convert:
        assert max(convert["buckets"]) <= convert["cache_length"]
    assert config is not None
    assert len(config["architectures"]) == 1
    reads_text = config["model_type"] not in ("vit", "whisper")
    assert (len({prompt.text for prompt in preset.prompts}) >= 3) == reads_text


@PRESETS
def test_the_configuration_is_the_models_own(preset: Preset) -> None:
    """transformers builds the model from each configuration alone, and it has as many parameters as published."""
    model = meta_model(preset)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert millions == pytest.approx(MILLIONS[preset.name], rel=2e-3)


@PRESETS
def test_a_cores_share_of_the_weights_fits(preset: Preset) -> None:
    """Over `tensor_parallel` cores, the weights leave a tenth of a core's HBM free; the degree divides the heads."""
    degree = preset.convert["tensor_parallel"]
    core_bytes = TRN2_CORE_BYTES if preset.convert["target"] == "trn2" else INF2_CORE_BYTES
    assert 2 * MILLIONS[preset.name] * 1e6 / degree <= 0.9 * core_bytes
    assert preset.config is not None
    heads = preset.config.get("text_config", preset.config).get("num_attention_heads", degree)
    assert heads % degree == 0


def meta_model(preset: Preset) -> PreTrainedModel:
    """The model of a preset's configuration, with shapes and no memory."""
    assert preset.config is not None
    config = AutoConfig.for_model(**preset.config)
    with torch.device("meta"):
        model: PreTrainedModel = getattr(transformers, preset.config["architectures"][0])(config)
    model.tie_weights()
    return model


def test_find_preset(tmp_path: Path) -> None:
    """A preset is found by its name; other names, and names that are paths, find none."""
    (tmp_path / "one.toml").write_text(GOOD)
    (tmp_path / "folder").mkdir()
    assert find_preset("one", tmp_path) is not None
    assert find_preset("two", tmp_path) is None
    assert find_preset("../one", tmp_path / "folder") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("description =", "is not valid TOML"),
        (GOOD.replace('description = "d"\n', ""), "has no `description`"),
        (GOOD.replace('"config"', '"ftp"'), "kind `ftp`, which is none of"),
        (GOOD.replace('"config"', '"hub"'), "has no `id` in \\[source\\]"),
        (GOOD.replace("[config]", "[konfig]"), "unknown key `konfig`"),
        (GOOD.split("[config]")[0], "but no \\[config\\]"),
        (GOOD + '[[prompts]]\ntxt = "a"\n', "prompt with keys other than"),
        (GOOD + "[convert]\nbucket = [1]\n", "unknown key `bucket` in \\[convert\\]"),
        (GOOD + "[convert]\ntensor_parallel = 0\n", "tensor_parallel `0`, which must be 1 or more"),
        (WHEEL, "must have either `file` \\(a GGUF\\) or `folder`"),
        (WHEEL + 'file = "a"\nfolder = "b"\n', "must have either `file` \\(a GGUF\\) or `folder`"),
    ],
)
def test_broken_preset_is_named(tmp_path: Path, text: str, words: str) -> None:
    """A broken preset stops the listing with its file and what is wrong."""
    (tmp_path / "one.toml").write_text(GOOD)
    assert len(list_presets(tmp_path)) == 1
    (tmp_path / "two.toml").write_text(text)
    with pytest.raises(CheckpointError, match=f"two.toml .*{words}"):
        list_presets(tmp_path)


def test_listing_is_light() -> None:
    """Listing presets imports neither torch nor transformers."""
    code = (
        "import sys; from neuron_port.checkpoint import list_presets; list_presets(); "
        "sys.exit(', '.join({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)) or None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
