"""A kernel that computes something else is not shipped: one sentence, a report to look at, no bundle."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from neuron_port.registry import data_folder
from tests.pipeline.command import contents, convert, failed, partial_folders


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the recipes that conversions use, free to be changed."""
    folder = shutil.copytree(data_folder("recipes"), tmp_path / "recipes")
    monkeypatch.setattr("neuron_port.pipeline.workbench.recipe_folders", lambda *named: (folder, *named))
    return folder


def break_kernel(recipe: Path, right: str, wrong: str) -> None:
    source = (recipe / "kernel.py").read_text()
    assert source.count(right) == 1, f"{right!r} stands {source.count(right)} times in the kernel"
    (recipe / "kernel.py").write_text(source.replace(right, wrong))


def test_a_faulty_kernel_stops_the_conversion(
    home: Path, small_llama: Path, bundle: Path, recipes: Path, tmp_path: Path
) -> None:
    """A fault of one line in linear's kernel is named with kernel, layer and case; the earlier bundle stays."""
    output = tmp_path / "b"
    shutil.copytree(bundle, output)
    break_kernel(recipes / "linear", "op=nl.copy, data=finished", "op=nl.relu, data=finished")
    said = failed(convert(small_llama, output), 1)
    assert "linear · Linear" in said
    assert "case `" in said
    report = tmp_path / "b.failed.html"
    assert str(report) in said
    assert "linear" in report.read_text()
    assert contents(output) == contents(bundle)
    assert not partial_folders(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("op=nl.copy, data=finished[:, 0:1]", "the simulator refused the kernel: linear/kernel.py:"),
        ("op=nl.copy, data=vanished", "NameError"),
        ("op=nl.copy, data=(finished", "SyntaxError"),
    ],
)
def test_a_kernel_that_does_not_run_is_named(
    wrong: str, sentence: str, home: Path, small_llama: Path, recipes: Path, tmp_path: Path
) -> None:
    """A kernel that the simulator or Python itself refuses ends in one sentence that names the kernel's line."""
    break_kernel(recipes / "linear", "op=nl.copy, data=finished", wrong)
    said = failed(convert(small_llama, tmp_path / "b", "--dtype", "float32"), 1)
    assert sentence in said
    assert re.search(r"linear/kernel\.py:\d+", said)
    assert not (tmp_path / "b").exists()


def test_the_same_recipes_unbroken_convert(
    home: Path, small_llama: Path, bundle: Path, recipes: Path, tmp_path: Path
) -> None:
    """An unchanged copy of the recipes passes, gives the same bundle, and removes the report of the failure."""
    (tmp_path / "b.failed.html").write_text("an earlier failure")
    finished = convert(small_llama, tmp_path / "b")
    assert finished.code == 0, finished.stderr
    assert contents(tmp_path / "b") == contents(bundle)
    assert not (tmp_path / "b.failed.html").exists()
