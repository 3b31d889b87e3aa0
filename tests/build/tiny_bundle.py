"""A tiny model, its graphs as HLO bytes, and everything else that `write_bundle` wants."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

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

# T = tokens, H = hidden, N = out features
T, H, N = 2, 4, 3
KERNEL_SOURCE = """import nki


@nki.jit
def rms_norm(x, gamma, bias=None, eps=1e-6):
    return x
"""
SHA256 = hashlib.sha256(KERNEL_SOURCE.encode()).hexdigest()
RECIPE_SOURCE = (
    'from neuron_port.recipe import Recipe\n\nRECIPE = Recipe(name="rms_norm", version="3", license="MIT")\n'
)
FLOAT32 = 11


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def text(field: int, value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | 2) + varint(len(data)) + data


def shape(*dimensions: int) -> bytes:
    return number(2, FLOAT32) + text(3, b"".join(map(varint, dimensions)))


def instruction(
    identity: int, name: str, opcode: str, of: bytes, operands: tuple[int, ...] = (), extra: bytes = b""
) -> bytes:
    return text(2, text(1, name) + text(2, opcode) + text(3, of) + number(35, identity)
                + text(36, b"".join(map(varint, operands))) + extra)  # fmt: skip


def graph_bytes(*, kernel: str | None, sha256: str = SHA256, first_id: int = 1, parameters: int = 4) -> bytes:
    """(x * gamma) @ w and cache + cache as HloModuleProto; `kernel` makes the product a placeholder."""
    names = [("x", (T, H)), ("gamma", (H,)), ("w", (H, N)), ("cache", (T, N))][:parameters]
    body = b""
    for index, (name, dimensions) in enumerate(names):
        body += instruction(first_id + index, name, "parameter", shape(*dimensions), extra=number(9, index))
    after = first_id + len(names)
    config = {"kernel": sha256, "entry": "rms_norm", "attributes": {"eps": 1e-5, "bias": None}}
    call = text(28, f"neuron_port.{kernel}") + text(43, json.dumps(config)) + number(77, 2)
    opcode, extra = ("custom-call", call) if kernel else ("multiply", b"")
    body += instruction(after, "normed", opcode, shape(T, H), (first_id, first_id + 1), extra)
    body += instruction(after + 1, "y", "dot", shape(T, N), (after, first_id + 2))
    body += instruction(after + 2, "cache_out", "add", shape(T, N), (first_id + 3, first_id + 3))
    pair = number(2, 13) + text(4, shape(T, N)) + text(4, shape(T, N))
    body += instruction(after + 3, "root", "tuple", pair, (after + 1, after + 2))
    computation = text(1, "main") + body + number(5, 7) + number(6, after + 3)
    return text(1, "tiny") + text(2, "main") + text(3, computation) + number(6, 7)


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
    (folder / "config.json").write_text('{"model_type": "tiny",   "hidden_size": 4}\n')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "notes.txt").write_text("private")
    weight = np.arange(N * H, dtype=np.float32).reshape(N, H) / 10
    if not random_weights:
        save_file({"proj.weight": weight}, folder / "model.safetensors")
    return Checkpoint(
        name="tiny", source=str(folder), revision="abc123", directory=str(folder),
        architecture="TinyForCausalLM", config={"model_type": "tiny"},
        weights={"proj.weight": TensorSpec(shape=(N, H), dtype="float32")},
        random_weights=random_weights, license="apache-2.0",
    )  # fmt: skip


def make_recipe(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "recipe.py").write_text(RECIPE_SOURCE)
    (folder / "kernel.py").write_text(KERNEL_SOURCE)
    for name in ("reference.py", "source.py", "README.md"):
        (folder / name).write_text(f"# {name}\n")
    return folder


def make_arguments(folder: Path, **changes: Any) -> dict[str, Any]:
    """Keyword arguments of `write_bundle` for two graphs, one kernel and one stored weight."""
    gamma = np.full(H, 2, np.float32)
    x_TH = np.linspace(-1, 1, T * H, dtype=np.float32).reshape(T, H)
    weight_NK = np.arange(N * H, dtype=np.float32).reshape(N, H) / 10
    golden = {"x": x_TH, "y": (x_TH * gamma) @ weight_NK.T, "cache_out": np.ones((T, N), np.float32)}
    kernel = Kernel(
        name="rms_norm", source=KERNEL_SOURCE, entry_point="rms_norm", origin="recipe", nki_version="0.6"
    )
    match = Match(
        signature="s1", layers=("norm.0", "norm.1"), decision="recipe", recipe="rms_norm", weights={},
        attributes={}, reason="numeric probe agreed", evidence={"1.0": 1e-7},
    )  # fmt: skip
    other = replace(
        match, signature="s2", layers=("proj",), decision="compiler", recipe=None, reason="no recipe"
    )
    ids = (("prefill_b1_s2", "prefill"), ("decode_b1_t3", "decode"))
    arguments = {
        "checkpoint": make_checkpoint(folder / "checkpoint"),
        "plan": MatchPlan(checkpoint="abc123", target="trn2", matches=(match, other), unused_parameters=()),
        "graphs": [
            GraphFiles(
                spec=graph_spec(identity, phase), hlo=graph_bytes(kernel="rms_norm"),
                reference_hlo=graph_bytes(kernel=None), lint={"opcodes": {"dot": 1}},
            )
            for identity, phase in ids
        ],
        "kernels": [VerifiedKernel(kernel=kernel, signature="s1", report=report("rms_norm"))],
        "recipe_folders": {"rms_norm": make_recipe(folder / "recipes" / "rms_norm")},
        "parity": {"kernels": [report("rms_norm")], "graphs": [report("prefill_b1_s2", tier="xla-cpu")]},
        "golden": {identity: golden for identity, _ in ids},
        "target": "trn2", "dtype": "float32", "weights": "copy",
        "derived_weights": {"gamma_plus_one": gamma},
        "stages": [{"name": "walk", "seconds": 0.5, "reused": False}],
    }  # fmt: skip
    return arguments | changes
