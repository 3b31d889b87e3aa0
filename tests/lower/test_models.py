"""Tiny decoder models of many families: the emitted HLO equals transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

pytest.importorskip("jaxlib", reason="executing HLO needs neuron-port[verify]")

SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT = {"n_embd": 32, "n_head": 4, "n_layer": 1, "n_positions": 32}
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": LLAMA3_ROPE},
    "mistral": {"sliding_window": 4},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 4, "num_hidden_layers": 2},
    "gemma3_text": {
        "head_dim": 8,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
        "num_hidden_layers": 2,
    },
    "phi3": {},
    "granite": {},
    "olmo2": {},
    "smollm3": {},
    "stablelm": {},
    "gpt2": GPT,
    "gpt_neox": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"head_dim": 8, **EXPERTS},
}
MIXTURES = ("mixtral", "qwen3_moe")


class Logits(torch.nn.Module):
    """[B, S] ids -> [B, S, V] logits, without a cache."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=ids, use_cache=False).logits


def _model(family: str, attention: str = "eager") -> Logits:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, **MODELS[family]})
    config._attn_implementation = attention
    if family in MIXTURES:
        config._experts_implementation = "batched_mm"  # the other implementations have data-dependent shapes
    return Logits(AutoModelForCausalLM.from_config(config).eval())


IDS = torch.randint(3, 96, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", MODELS)
def test_model_equals_transformers(family: str, lower: Callable[..., Any]) -> None:
    """Logits of the emitted graph are within 1e-5 of transformers' own, in float32."""
    model = _model(family)
    with torch.no_grad():
        expected = model(IDS)
    (actual,) = lower(model, (IDS,)).run(IDS)
    assert (actual - expected).abs().max() <= 1e-5


def test_sdpa_model_equals_transformers(lower: Callable[..., Any]) -> None:
    """torch's fused attention is written out and gives the same logits."""
    model = _model("llama", "sdpa")
    with torch.no_grad():
        expected = model(IDS)
    (actual,) = lower(model, (IDS,)).run(IDS)
    assert (actual - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt", "mixtral"])
def test_bfloat16_model_is_as_exact_as_torch(family: str, lower: Callable[..., Any]) -> None:
    """In bfloat16 the graph's error against float32 is at most 1.2 times torch's own (R-ratio)."""
    model = _model(family)
    with torch.no_grad():
        exact = model(IDS)
        rounded = model.to(torch.bfloat16)(IDS).float()
    (actual,) = lower(model, (IDS,)).run(IDS)
    ratio = (actual.float() - exact).pow(2).mean().sqrt() / (rounded - exact).pow(2).mean().sqrt()
    assert ratio <= 1.2
