"""Decoders with one feed-forward network a layer."""

from __future__ import annotations

from typing import Any

from .entry import (
    HEAD_SIZE,
    HEADS,
    HIDDEN,
    INTERMEDIATE,
    KEY_VALUE_HEADS,
    LAYERS,
    VOCABULARY,
    Entry,
    prompt,
    text_settings,
)

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
GEMMA = {"head_dim": HEAD_SIZE, "sliding_window": 8, "query_pre_attn_scalar": 16}
MULTIPLIERS = {
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.015625,
    "logits_scaling": 8.0,
}


def _decoder(name: str, architecture: str, settings: dict[str, Any]) -> Entry:
    return Entry(
        name=name,
        family="dense",
        model_type=name,
        architecture=architecture,
        settings=settings,
        inputs=prompt,
    )


ENTRIES = (
    _decoder("llama", "LlamaForCausalLM", text_settings(rope_parameters=LLAMA3_ROPE)),
    _decoder("mistral", "MistralForCausalLM", text_settings(sliding_window=8)),
    _decoder("ministral3", "Ministral3ForCausalLM", text_settings()),
    _decoder("qwen2", "Qwen2ForCausalLM", text_settings()),
    _decoder("qwen3", "Qwen3ForCausalLM", text_settings(head_dim=HEAD_SIZE)),
    _decoder("gemma", "GemmaForCausalLM", text_settings(head_dim=HEAD_SIZE)),
    _decoder("gemma2", "Gemma2ForCausalLM", text_settings(**GEMMA)),
    _decoder(
        "gemma3_text",
        "Gemma3ForCausalLM",
        text_settings(**GEMMA, layer_types=["sliding_attention", "full_attention"]),
    ),
    _decoder("phi", "PhiForCausalLM", text_settings(partial_rotary_factor=0.5)),
    _decoder("phi3", "Phi3ForCausalLM", text_settings(sliding_window=8)),
    _decoder(
        "gpt2",
        "GPT2LMHeadModel",
        {
            "vocab_size": VOCABULARY,
            "n_embd": HIDDEN,
            "n_layer": LAYERS,
            "n_head": HEADS,
            "n_positions": 256,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    _decoder("gpt_neox", "GPTNeoXForCausalLM", text_settings("num_key_value_heads", rotary_pct=0.25)),
    _decoder(
        "opt",
        "OPTForCausalLM",
        text_settings(
            "num_key_value_heads", "intermediate_size", ffn_dim=INTERMEDIATE, word_embed_proj_dim=HIDDEN
        ),
    ),
    _decoder(
        "bloom",
        "BloomForCausalLM",
        {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": HEADS},
    ),
    _decoder(
        "falcon",
        "FalconForCausalLM",
        text_settings(
            "num_key_value_heads",
            "intermediate_size",
            new_decoder_architecture=True,
            num_kv_heads=KEY_VALUE_HEADS,
            alibi=False,
        ),
    ),
    _decoder("starcoder2", "Starcoder2ForCausalLM", text_settings(sliding_window=8)),
    _decoder("stablelm", "StableLmForCausalLM", text_settings(partial_rotary_factor=0.25)),
    _decoder("olmo2", "Olmo2ForCausalLM", text_settings()),
    _decoder("granite", "GraniteForCausalLM", text_settings(**MULTIPLIERS)),
    _decoder("cohere", "CohereForCausalLM", text_settings()),
    _decoder(
        "smollm3",
        "SmolLM3ForCausalLM",
        text_settings(no_rope_layers=[1, 0], layer_types=["full_attention", "full_attention"]),
    ),
    _decoder("glm4", "Glm4ForCausalLM", text_settings(head_dim=HEAD_SIZE, partial_rotary_factor=0.5)),
)
