"""Models of several architectures convert; layers that no recipe serves go to the compiler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.command import convert, manifest, parity
from tests.pipeline.conftest import SMALL_LLAMA, save

LLAMA_LIKE = {key: value for key, value in SMALL_LLAMA.items() if key not in ("architectures", "model_type")}


def gpt2(**changes: Any) -> Any:
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=96, n_embd=32, n_layer=1, n_head=4, n_positions=64, initializer_range=0.2,
        bos_token_id=1, eos_token_id=2, **changes,
    )  # fmt: skip


def gpt2_with_a_rare_activation() -> Any:
    return gpt2(activation_function="laplace")


def qwen2() -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(**LLAMA_LIKE)


def gemma() -> Any:
    from transformers import GemmaConfig

    return GemmaConfig(**LLAMA_LIKE | {"hidden_act": "gelu_pytorch_tanh"})


@pytest.mark.parametrize(
    ("config", "left", "served"),
    [
        (
            gpt2_with_a_rare_activation,
            {"LaplaceActivation"},
            {"embedding", "attention", "layer_norm", "linear"},
        ),
        (gemma, set(), {"embedding", "rms_norm", "linear", "attention", "rope", "rope_table", "gated_mlp"}),
        pytest.param(gpt2, set(), {"layer_norm", "linear", "mlp", "residual_add"}, marks=pytest.mark.long),
        pytest.param(qwen2, set(), {"linear", "rms_norm", "gated_mlp"}, marks=pytest.mark.long),
    ],
)
def test_what_no_recipe_computes_goes_to_the_compiler(
    config: Any, left: set[str], served: set[str], home: Path, tmp_path: Path
) -> None:
    """What no recipe computes, and nothing else, is left to the compiler with a reason; all the proofs hold."""
    model = save(config(), tmp_path / "model")
    finished = convert(model, tmp_path / "b", "--dtype", "float32", "--json")
    assert finished.code == 0, finished.stderr
    rows = [row for phase in finished.json["phases"] for row in phase["plan"]]
    compiled = {row["module_class"]: row["reason"] for row in rows if row["decision"] == "compiler"}
    assert set(compiled) == left
    assert all(compiled.values())
    assert served <= {row["recipe"] for row in rows if row["decision"] == "recipe"}
    assert manifest(tmp_path / "b")["state"] == "portable"
    for side in ("kernels", "graphs", "model"):
        assert parity(tmp_path / "b")[side]
        assert all(case["passed"] for report in parity(tmp_path / "b")[side] for case in report["cases"])
