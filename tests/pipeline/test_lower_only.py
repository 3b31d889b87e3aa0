"""`neuron-port lower`: graphs without proofs and without weights, written whole, and nothing else written over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from neuron_port.pipeline import lower_only
from tests.pipeline.command import failed, run


def lower(model: Path, output: Path, *arguments: object) -> Any:
    finished = run("lower", model, "--cache-length", 32, "--output", output, "--json", *arguments)
    assert finished.code == 0, finished.stderr
    return finished.json


def test_graphs_are_those_of_a_conversion_and_none_is_left_over(
    home: Path, small_llama: Path, float32_bundle: Path, tmp_path: Path
) -> None:
    """The same bytes as in a bundle; lowered again with other buckets, the folder holds the new graphs alone."""
    output = tmp_path / "lowered"
    lower(small_llama, output, "--buckets", 8, "--dtype", "float32")
    summary = lower(small_llama, output, "--buckets", 16, "--dtype", "float32")
    assert summary == json.loads((output / lower_only.SUMMARY).read_text())
    assert summary["proven"] is False
    assert sorted(path.name for path in (output / "graphs").iterdir()) == ["decode_b1_t32", "prefill_b1_s16"]
    for file in ("graph.hlo.pb", "graph.ref.hlo.pb", "io.json"):
        for graph in (output / "graphs").iterdir():
            assert (graph / file).read_bytes() == (float32_bundle / "graphs" / graph.name / file).read_bytes()


def test_no_weight_is_read(home: Path, small_llama: Path, tmp_path: Path) -> None:
    """With --random-weights a folder that holds a configuration alone is lowered, for several ranks too."""
    folder = tmp_path / "configuration"
    folder.mkdir()
    (folder / "config.json").write_bytes((small_llama / "config.json").read_bytes())
    summary = lower(folder, tmp_path / "lowered", "--buckets", 8, "--random-weights", "--tp", 2)
    assert [graph["all_reduces"] for graph in summary["graphs"]] == [2, 2]


@pytest.mark.parametrize("what", ["a file", "another folder"])
def test_what_is_no_lowered_model_is_not_replaced(
    what: str, home: Path, small_llama: Path, tmp_path: Path
) -> None:
    """A place that is taken is refused in one sentence before any work, and stays as it was."""
    output = tmp_path / "taken"
    if what == "another folder":
        output.mkdir()
    kept = output / "notes.txt" if what == "another folder" else output
    kept.write_text("mine")
    finished = run("lower", small_llama, "--buckets", 8, "--output", output)
    assert "lowered model" in failed(finished, 2)
    assert kept.read_text() == "mine"
