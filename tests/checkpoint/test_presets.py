"""Presets are data: complete, consistent, and never skipped when broken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from neuron_port.checkpoint import Preset, find_preset, list_presets
from neuron_port.errors import CheckpointError

GOOD = 'description = "d"\n[source]\nkind = "config"\n[config]\nmodel_type = "llama"\n'


def test_shipped_presets() -> None:
    """The presets that ship, by name."""
    assert [preset.name for preset in list_presets()] == ["llama-3.1-8b", "llama-3.2-1b", "smollm2-135m"]


@pytest.mark.parametrize("preset", list_presets(), ids=lambda preset: preset.name)
def test_preset_is_complete(preset: Preset) -> None:
    """Each preset has conversion defaults that agree with each other, prompts, and a configuration."""
    assert preset.license
    assert set(preset.convert) == {"target", "dtype", "buckets", "cache_length", "batch"}
    assert max(preset.convert["buckets"]) <= preset.convert["cache_length"]
    assert len({prompt.text for prompt in preset.prompts}) >= 3
    assert preset.config is not None
    assert preset.config["architectures"] == ["LlamaForCausalLM"]


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
