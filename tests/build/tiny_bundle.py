"""A tiny model, its graphs as HLO bytes, and everything else that `write_bundle` wants."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tiny_graph import H, N, T, graph_bytes, kernel_source

from neuron_port.build import GraphFiles
from neuron_port.types import (
    CaseResult,
    Checkpoint,
    GraphInput,
    GraphOutput,
    GraphSpec,
    Kernel,
    Match,
    MatchPlan,
    ParityReport,
    TensorSpec,
    VerifiedKernel,
)

RECIPE_SOURCE = (
    'from neuron_port.recipe import Recipe\n\nRECIPE = Recipe(name="rms_norm", version="3", license="MIT")\n'
)

# The weights are read by the rules of a known architecture; the spaces tell a copy from what was written anew.
CONFIG = """{"model_type": "llama",   "architectures": ["LlamaForCausalLM"], "hidden_size": 4, "vocab_size": 8,
 "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
"""


def graph_spec(identity: str, phase: str) -> GraphSpec:
    def spec(*dimensions: int) -> TensorSpec:
        return TensorSpec(shape=dimensions, dtype="float32")

    return GraphSpec(
        id=identity, phase=phase, batch=1, sequence_length=T, cache_length=N,
        inputs=(
            GraphInput(name="x", role="input", spec=spec(T, H)),
            GraphInput(name="gamma", role="weight", spec=spec(H), source="derived:gamma_plus_one"),
            GraphInput(name="w", role="weight", spec=spec(H, N), source="proj.weight", transform="transpose"),
            GraphInput(name="cache", role="state", spec=spec(T, N)),
        ),
        outputs=(
            GraphOutput(name="y", role="output", spec=spec(T, N)),
            GraphOutput(name="cache_out", role="state", spec=spec(T, N), alias_of="cache"),
        ),
    )  # fmt: skip


def case(*, passed: bool = True, error: float = 1e-6, tier: str = "simulator") -> CaseResult:
    return CaseResult(
        name="ordinary", kind="ordinary", tier=tier, dtype="float32", shapes=((T, H),), seed=0,
        metrics={"relative_error": error}, limits={"relative_error": 1e-5}, passed=passed,
        detail="" if passed else "off",
    )  # fmt: skip


def report(subject: str, **options: Any) -> ParityReport:
    return ParityReport(subject=subject, oracle="transformers, cpu, float32", cases=(case(**options),))


def make_checkpoint(folder: Path, *, random_weights: bool = False) -> Checkpoint:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(CONFIG)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "notes.txt").write_text("private")
    weight = np.arange(N * H, dtype=np.float32).reshape(N, H) / 10
    if not random_weights:
        save_file({"proj.weight": weight}, folder / "model.safetensors")
    return Checkpoint(
        name="tiny", source=str(folder), revision="abc123", directory=str(folder),
        architecture="LlamaForCausalLM", config=json.loads(CONFIG),
        weights={"proj.weight": TensorSpec(shape=(N, H), dtype="float32")},
        random_weights=random_weights, license="apache-2.0",
    )  # fmt: skip


def make_recipe(folder: Path, name: str = "rms_norm") -> Path:
    folder.mkdir(parents=True)
    (folder / "recipe.py").write_text(RECIPE_SOURCE.replace("rms_norm", name))
    (folder / "kernel.py").write_text(kernel_source(name))
    for file in ("reference.py", "source.py", "README.md"):
        (folder / file).write_text(f"# {file}\n")
    return folder


def make_kernel(name: str) -> VerifiedKernel:
    kernel = Kernel(
        name=name, source=kernel_source(name), entry_point=name, origin="recipe", nki_version="0.6"
    )
    return VerifiedKernel(kernel=kernel, signature=f"s-{name}", report=report(name))


def make_arguments(
    folder: Path, *, kernels: tuple[str, ...] = ("rms_norm",), **changes: Any
) -> dict[str, Any]:
    """Keyword arguments of `write_bundle` for two graphs with these kernels, and one stored weight."""
    gamma = np.full(H, 2, np.float32)
    x_TH = np.linspace(-1, 1, T * H, dtype=np.float32).reshape(T, H)
    weight_NK = np.arange(N * H, dtype=np.float32).reshape(N, H) / 10
    y_TN = (x_TH * gamma ** len(kernels)) @ weight_NK.T
    golden = {"x": x_TH, "y": y_TN, "cache_out": np.ones((T, N), np.float32)}
    match = Match(
        signature="s1", layers=("norm.0", "norm.1"), decision="recipe", recipe="rms_norm", weights={},
        attributes={}, reason="numeric probe agreed", evidence={"1.0": 1e-7},
    )  # fmt: skip
    other = replace(
        match, signature="s2", layers=("proj",), decision="compiler", recipe=None, reason="no recipe"
    )
    ids = (("prefill_b1_s2", "prefill"), ("decode_b1_t3", "decode"))
    others = kernels[1:]
    arguments = {
        "checkpoint": make_checkpoint(folder / "checkpoint"),
        "plan": MatchPlan(checkpoint="abc123", target="trn2", matches=(match, other), unused_parameters=()),
        "graphs": [
            GraphFiles(
                spec=graph_spec(identity, phase), hlo=graph_bytes(kernel=kernels[0], others=others),
                reference_hlo=graph_bytes(kernel=None, others=others), lint={"opcodes": {"dot": 1}},
            )
            for identity, phase in ids
        ],
        "kernels": [make_kernel(name) for name in kernels],
        "recipe_folders": {name: make_recipe(folder / "recipes" / name, name) for name in kernels},
        "parity": {"kernels": [report("rms_norm")], "graphs": [report("prefill_b1_s2", tier="xla-cpu")]},
        "golden": {identity: golden for identity, _ in ids},
        "target": "trn2", "dtype": "float32", "weights": "copy",
        "derived_weights": {"gamma_plus_one": gamma},
        "stages": [{"name": "walk", "seconds": 0.5, "reused": False}],
    }  # fmt: skip
    return arguments | changes
