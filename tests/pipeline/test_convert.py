"""`neuron-port convert` from a folder to a bundle, its variants, and the second run that does nothing again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from neuron_port.build.manifest import verify_files
from tests.pipeline.command import Finished, contents, convert, manifest, parity, partial_folders, run
from tests.pipeline.conftest import SMALL_LLAMA

PROVEN_HERE = {"checkpoint", "bundle"}  # stages that are not kept: reading headers, writing the bundle


def all_hold(bundle: Path) -> dict[str, list[Any]]:
    """The three sides of the proof, each run and each passed."""
    sides = parity(bundle)
    for side in ("kernels", "graphs", "model"):
        assert sides[side], f"{side} were not proven"
        for report in sides[side]:
            assert report["cases"], report["subject"]
            assert all(case["passed"] for case in report["cases"]), report["subject"]
    return sides


def greedy_cases(bundle: Path) -> list[dict[str, Any]]:
    greedy = [report for report in parity(bundle)["model"] if report["subject"] == "float32 greedy"]
    return [json.loads(case["detail"]) for case in greedy[0]["cases"]]


def test_the_bundle_has_its_documented_layout(bundle: Path) -> None:
    """A conversion leaves graphs, kernels, weights, proofs, build files, a report and a manifest in state portable."""
    found = manifest(bundle)
    assert found["state"] == "portable"
    assert [graph["id"] for graph in found["graphs"]] == ["prefill_b1_s16", "decode_b1_t32"]
    for name in (
        "config.json", "report.html", "graphs/prefill_b1_s16/graph.hlo.pb", "graphs/decode_b1_t32/io.json",
        "kernels/linear@1/kernel.py", "weights/model.safetensors", "weights/weights.lock.json",
        "parity/report.json", "parity/golden/decode_b1_t32.safetensors", "build/finish.py", "build/plan.json",
    ):  # fmt: skip
        assert (bundle / name).is_file(), name
    assert "small" in (bundle / "report.html").read_text()


def test_the_manifest_names_every_file_as_it_is(bundle: Path, tmp_path: Path) -> None:
    """Every digest of the manifest holds, and one changed byte is noticed by name."""
    assert verify_files(bundle) == []
    damaged = shutil.copytree(bundle, tmp_path / "damaged")
    (damaged / "config.json").write_text("{}")
    assert len(verify_files(damaged)) == 1
    assert "config.json" in verify_files(damaged)[0]


@pytest.mark.parametrize("name", ["bundle", "float32_bundle"])
def test_three_proofs_hold(name: str, request: pytest.FixtureRequest) -> None:
    """Kernels, graphs and the ported model all agree with transformers, and the greedy tokens are identical."""
    folder = request.getfixturevalue(name)
    sides = all_hold(folder)
    assert {case["tier"] for report in sides["graphs"] for case in report["cases"]} == {"xla-cpu"}
    assert {case["tier"] for report in sides["model"] for case in report["cases"]} == {"simulator"}
    answers = greedy_cases(folder)
    assert len(answers) == 3
    for answer in answers:
        assert len(answer["reference_tokens"]) == 4
        assert answer["ported_tokens"] == answer["reference_tokens"]


def test_the_second_run_does_nothing_again(
    home: Path, small_llama: Path, bundle: Path, tmp_path: Path
) -> None:
    """With unchanged inputs every stage comes from the store, and the bundle is the same byte for byte."""
    again = convert(small_llama, tmp_path / "again")
    stages = {
        stage["name"]: stage["reused"] for stage in manifest(tmp_path / "again")["provenance"]["stages"]
    }
    assert {name for name, reused in stages.items() if not reused} <= PROVEN_HERE
    assert again.skipped() == set(stages) - PROVEN_HERE
    assert len(again.skipped()) == 8
    assert contents(tmp_path / "again") == contents(bundle)
    assert not partial_folders(tmp_path)


def test_a_changed_option_is_not_answered_from_the_store(
    home: Path, small_llama: Path, float32_bundle: Path, tmp_path: Path
) -> None:
    """One more token runs the reference and the model's proof again, and nothing else."""
    finished = convert(small_llama, tmp_path / "longer", "--new-tokens", "5", "--dtype", "float32")
    assert finished.code == 0, finished.stderr
    assert {"plan", "kernels = layers (simulator)", "lower to HLO"} <= finished.skipped()
    assert "transformers reference" not in finished.skipped()
    assert len(greedy_cases(tmp_path / "longer")[0]["ported_tokens"]) == 5


def test_two_buckets_and_a_batch_for_inferentia(home: Path, small_llama: Path, tmp_path: Path) -> None:
    """A batch of two in two buckets for inf2 converts; every graph is proven and names its sizes."""
    finished = convert(
        small_llama,
        tmp_path / "b",
        "--target",
        "inf2",
        "--dtype",
        "float32",
        "--buckets",
        "16,8",
        "--batch",
        2,
    )
    assert finished.code == 0, finished.stderr
    found = manifest(tmp_path / "b")
    assert found["target"]["chip"] == "inf2"
    assert [graph["id"] for graph in found["graphs"]] == ["prefill_b1_s8", "prefill_b1_s16", "decode_b2_t32"]
    proven = {report["subject"] for report in all_hold(tmp_path / "b")["graphs"]}
    assert proven == {graph["id"] for graph in found["graphs"]}
    assert verify_files(tmp_path / "b") == []


@pytest.mark.parametrize("mode", ["link", "reference"])
def test_weights_need_not_be_copied(
    mode: str, home: Path, small_llama: Path, bundle: Path, tmp_path: Path
) -> None:
    """--weights link points at the checkpoint's file, --weights reference leaves only its digest."""
    finished = convert(small_llama, tmp_path / "b", "--weights", mode)
    assert finished.code == 0, finished.stderr
    shard = tmp_path / "b" / "weights" / "model.safetensors"
    lock = json.loads((tmp_path / "b" / "weights" / "weights.lock.json").read_text())
    assert lock["files"][0]["sha256"] == manifest(bundle)["files"]["weights/model.safetensors"]
    if mode == "link":
        assert shard.samefile(small_llama / "model.safetensors")
    else:
        assert not shard.exists()
    assert verify_files(tmp_path / "b") == []


def test_random_weights_need_only_a_configuration(home: Path, tmp_path: Path) -> None:
    """--random-weights converts a folder that holds a configuration alone, and ships no weights."""
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "config.json").write_text(json.dumps(SMALL_LLAMA))
    finished = convert(
        tmp_path / "only", tmp_path / "b", "--random-weights", "--dtype", "float32", "--proof", "kernels"
    )
    assert finished.code == 0, finished.stderr
    assert "whole-model proofs were skipped" in finished.stderr
    assert manifest(tmp_path / "b")["weights"]["random"] is True
    assert not list((tmp_path / "b" / "weights").glob("model*.safetensors"))
    assert set(manifest(tmp_path / "b")["parity"]["sides"]) == {"kernels"}
    assert verify_files(tmp_path / "b") == []


def decisions(finished: Finished, phase: int = 0) -> dict[str, dict[str, Any]]:
    return {row["module_class"]: row for row in finished.json["phases"][phase]["plan"]}


def test_excluded_recipes_go_to_the_compiler(
    home: Path, small_llama: Path, bundle: Path, tmp_path: Path
) -> None:
    """Without gated_mlp and linear the model still converts, and plan and manifest say who decided it."""
    excluded = ("--compiler", "gated_mlp", "--compiler", "linear")
    finished = convert(small_llama, tmp_path / "b", "--dtype", "float32", *excluded)
    assert finished.code == 0, finished.stderr
    left = [entry for entry in manifest(tmp_path / "b")["mapping"] if entry["decision"] == "compiler"]
    assert any("lm_head" in entry["module"] and "excluded by the user" in entry["reason"] for entry in left)
    assert not any(
        kernel["name"] in ("gated_mlp", "linear") for kernel in manifest(tmp_path / "b")["kernels"]
    )
    all_hold(tmp_path / "b")


def test_an_excluded_mlp_falls_apart_into_projections(home: Path, small_llama: Path) -> None:
    """Without gated_mlp the MLP is no layer any more: its projections and its activation are."""
    whole = run("plan", small_llama, "--buckets", 16, "--cache-length", 32, "--json")
    parts = run(
        "plan", small_llama, "--buckets", 16, "--cache-length", 32, "--json", "--compiler", "gated_mlp"
    )
    assert decisions(whole)["LlamaMLP"]["recipe"] == "gated_mlp"
    assert "LlamaMLP" not in decisions(parts)
    linear = [sum(row["count"] for row in plan.json["phases"][0]["plan"] if row["recipe"] == "linear")
              for plan in (whole, parts)]  # fmt: skip
    assert linear == [5, 8]
    assert "SiLUActivation" not in decisions(whole)
    assert decisions(parts)["SiLUActivation"]["recipe"] == "activation"
