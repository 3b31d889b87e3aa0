"""`convert --weight-format`: proofs of the quantised model, and beside them what quantising costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neuron_port.build.finishing.weights import Weights
from neuron_port.checkpoint import WeightReader, quantized, resolve
from neuron_port.store import Store
from tests.pipeline.command import convert, failed, manifest, parity

BYTES = {"int8": "int8", "fp8": "uint8"}


@pytest.fixture(scope="module")
def bundles(small_llama: Path, _session_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`bundles(format, dtype)` -> (bundle, the summary as JSON), each converted once."""
    made: dict[tuple[str, str], tuple[Path, Any]] = {}

    def bundle(form: str, dtype: str) -> tuple[Path, Any]:
        if (form, dtype) not in made:
            folder = tmp_path_factory.mktemp("quantised") / f"{form}-{dtype}"
            finished = convert(small_llama, folder, "--dtype", dtype, "--weight-format", form, "--json")
            assert finished.code == 0, finished.stderr
            made[form, dtype] = folder, finished.json
        return made[form, dtype]

    return bundle


FORMS = [
    ("int8", "float32"),
    pytest.param("fp8", "float32", marks=pytest.mark.long),
    pytest.param("int8", "bfloat16", marks=pytest.mark.long),
    pytest.param("fp8", "bfloat16", marks=pytest.mark.long),
]


@pytest.mark.parametrize(("form", "dtype"), FORMS)
def test_proofs_are_of_the_quantised_model(form: str, dtype: str, bundles: Any) -> None:
    """Every projection is in the format's kernel, all three proofs hold, and nothing is left to the compiler."""
    bundle, summary = bundles(form, dtype)
    rows = [row for phase in summary["phases"] for row in phase["plan"]]
    served = {row["recipe"] for row in rows if row["module_class"] == f"{form.capitalize()}Linear"}
    assert served == {f"linear_{form}"}
    assert all(row["decision"] != "compiler" for row in rows)
    for side in ("kernels", "graphs", "model"):
        assert parity(bundle)[side]
        assert all(case["passed"] for report in parity(bundle)[side] for case in report["cases"])


@pytest.mark.parametrize(("form", "dtype"), FORMS)
def test_bundle_streams_one_byte_a_weight(
    form: str, dtype: str, bundles: Any, small_llama: Path, tmp_path: Path
) -> None:
    """Graphs read derived bytes and scales, which the bundle holds as the reader makes them; the originals stay away."""
    bundle, _ = bundles(form, dtype)
    reader = WeightReader(quantized(resolve(str(small_llama), store=Store(tmp_path)), form))
    weights = Weights(sorted((bundle / "weights").glob("*.safetensors")))
    for io in bundle.glob("graphs/*/io.json"):
        inputs = {
            entry["source"]: entry
            for entry in json.loads(io.read_text())["inputs"]
            if entry["role"] == "weight"
        }
        stored = {name: entry for name, entry in inputs.items() if name.endswith(f"weight_{form}")}
        assert len(stored) == 7
        assert {entry["dtype"] for entry in stored.values()} == {BYTES[form]}
        assert all(name.startswith("derived:") for name in stored)
        for name in stored:
            scale = name.replace(f"weight_{form}", "weight_scale")
            assert inputs[scale]["dtype"] == "float32"
            for tensor in (name, scale):
                expected = reader.get(tensor, torch.float32).numpy()
                assert np.array_equal(weights.raw(tensor.removeprefix("derived:"))[0], expected)
    assert not any(name.endswith("q_proj.weight") for name in weights.names())
    lock = json.loads((bundle / "weights" / "weights.lock.json").read_text())
    name = "model.layers.0.mlp.up_proj"
    assert lock["quantized"]["made_of"][f"{name}.weight_{form}"] == f"{name}.weight"


def test_the_cost_is_told(bundles: Any) -> None:
    """The cost stands in the manifest, both reports and the summary: by prompt, with what was saved."""
    bundle, summary = bundles("int8", "float32")
    found = manifest(bundle)
    assert found["model"]["weight_format"] == "int8"
    cost = found["parity"]["quantization_cost"]
    assert cost == summary["quantization_cost"]
    assert len(cost["prompts"]) == 3
    for prompt in cost["prompts"]:
        metrics = prompt["metrics"]
        assert 0 < metrics["kl_mean"] <= metrics["kl_max"]
        assert 0 <= metrics["top1_agreement"] <= 1
        assert metrics["perplexity"] != metrics["perplexity_quantized"]
        assert metrics["greedy_tokens"] == 4
    assert cost["bytes_after"] < cost["bytes_before"]
    assert "## What int8 weights cost" in (bundle / "parity" / "report.md").read_text()
    assert "What int8 weights cost" in (bundle / "report.html").read_text()


@pytest.mark.long
def test_fp8_costs_more_than_int8(bundles: Any) -> None:
    """With three bits of mantissa weights are further off than with seven bits and one scale for each row."""
    costs = [bundles(form, "float32")[1]["quantization_cost"]["means"]["kl_mean"] for form in ("int8", "fp8")]
    assert costs[0] < costs[1]


def test_unquantised_bundle_names_its_format(float32_bundle: Path) -> None:
    """Without the option the weight format is the dtype, and no cost is told."""
    assert manifest(float32_bundle)["model"]["weight_format"] == "float32"
    assert manifest(float32_bundle)["parity"]["quantization_cost"] is None


@pytest.mark.parametrize("value", ["int4", "INT8", ""])
def test_unknown_format_is_refused(value: str, small_llama: Path, home: Path, tmp_path: Path) -> None:
    """Another value of the option is refused in a sentence that names it and those that there are."""
    sentence = failed(convert(small_llama, tmp_path / "b", "--weight-format", value), 2)
    assert f"Unknown weight format: `{value}`" in sentence
    assert "int8, fp8" in sentence
