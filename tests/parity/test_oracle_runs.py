"""What transformers does with a prompt: the same whether a model keeps a cache or takes and returns its state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from neuron_port.parity.model import run_oracle

SIZES: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
MODELS: dict[str, dict[str, Any]] = {
    "rwkv": {"context_length": 64},
    "llama": {"num_attention_heads": 4, "intermediate_size": 48},
    "mamba": {"state_size": 4},
}


@pytest.mark.parametrize("kind", MODELS)
def test_each_token_follows_from_the_whole_of_what_came_before(kind: str) -> None:
    """Logits token by token, over whatever the model carries along, are those of the whole sequence at once."""
    torch.manual_seed(3)
    config = AutoConfig.for_model(kind, **SIZES, **MODELS[kind])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    prompt = torch.tensor([[5, 9, 31, 7]])
    forced = [11, 3, 40, 8]
    run = run_oracle(model, {"input_ids": prompt}, 4, forced=forced, cached_tokens=2)
    assert run.tokens == tuple(forced)
    whole = torch.cat([prompt, torch.tensor([forced[:-1]])], 1)
    with torch.no_grad():
        expected = model(whole, use_cache=False).logits[0, 3:]
    torch.testing.assert_close(run.logits, expected, rtol=1e-4, atol=1e-5)
    assert len(run.prompt_caches) == (2 if kind == "llama" else 0)
