"""Decoders whose layers carry a state instead of, or beside, keys and values."""

from __future__ import annotations

from typing import Any

from .entry import HEAD_SIZE, HIDDEN, LAYERS, VOCABULARY, Entry, prompt, text_settings

STATE_SPACE = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "state_size": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LINEAR_ATTENTION = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
TWO_OF_FOUR = {"num_experts": 4, "num_experts_per_tok": 2}


def _decoder(name: str, architecture: str, settings: dict[str, Any]) -> Entry:
    return Entry(
        name=name,
        family="recurrent",
        model_type=name,
        architecture=architecture,
        settings=settings,
        inputs=prompt,
    )


ENTRIES = (
    _decoder("mamba", "MambaForCausalLM", STATE_SPACE),
    _decoder(
        "mamba2",
        "Mamba2ForCausalLM",
        {**STATE_SPACE, "num_heads": 8, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
    ),
    _decoder(
        "jamba",
        "JambaForCausalLM",
        text_settings(
            **TWO_OF_FOUR,
            num_hidden_layers=4,
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=2,
            expert_layer_offset=1,
            mamba_d_state=8,
            use_mamba_kernels=False,
        ),
    ),
    _decoder(
        "qwen3_next",
        "Qwen3NextForCausalLM",
        text_settings(
            **LINEAR_ATTENTION,
            **TWO_OF_FOUR,
            head_dim=HEAD_SIZE,
            moe_intermediate_size=32,
            shared_expert_intermediate_size=32,
        ),
    ),
    _decoder("qwen3_5_text", "Qwen3_5ForCausalLM", text_settings(**LINEAR_ATTENTION, head_dim=HEAD_SIZE)),
    _decoder(
        "granitemoehybrid",
        "GraniteMoeHybridForCausalLM",
        text_settings(
            num_local_experts=4,
            num_experts_per_tok=2,
            layer_types=["mamba", "attention"],
            mamba_n_heads=8,
            mamba_d_head=16,
            mamba_n_groups=1,
            mamba_d_state=8,
            mamba_chunk_size=8,
            shared_intermediate_size=32,
        ),
    ),
    _decoder(
        "recurrent_gemma",
        "RecurrentGemmaForCausalLM",
        text_settings(num_hidden_layers=3, lru_width=HIDDEN, attention_window_size=8, head_dim=HEAD_SIZE),
    ),
    _decoder(
        "rwkv",
        "RwkvForCausalLM",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "num_hidden_layers": LAYERS,
            "context_length": 256,
        },
    ),
)
