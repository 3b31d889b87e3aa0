"""Decoders that route each token to a few of many feed-forward networks."""

from __future__ import annotations

from typing import Any

from .entry import HEAD_SIZE, HEADS, INTERMEDIATE, Entry, prompt, text_settings

YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 64,
    "truncate": False,
}
LATENT_ATTENTION = {
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "num_key_value_heads": HEADS,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}
TWO_OF_FOUR = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def _mixture(name: str, architecture: str, **settings: Any) -> Entry:
    return Entry(
        name=name,
        family="mixture",
        model_type=name,
        architecture=architecture,
        settings=text_settings(**settings),
        inputs=prompt,
    )


ENTRIES = (
    _mixture("mixtral", "MixtralForCausalLM", num_local_experts=4, num_experts_per_tok=2),
    _mixture(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        **TWO_OF_FOUR,
        shared_expert_intermediate_size=64,
        decoder_sparse_step=1,
    ),
    _mixture("qwen3_moe", "Qwen3MoeForCausalLM", **TWO_OF_FOUR, head_dim=HEAD_SIZE, decoder_sparse_step=1),
    _mixture(
        "gpt_oss",
        "GptOssForCausalLM",
        head_dim=HEAD_SIZE,
        num_local_experts=4,
        num_experts_per_tok=2,
        intermediate_size=32,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters=YARN_ROPE,
    ),
    _mixture(
        "deepseek_v2",
        "DeepseekV2ForCausalLM",
        **LATENT_ATTENTION,
        n_group=1,
        topk_group=1,
        topk_method="greedy",
    ),
    _mixture("deepseek_v3", "DeepseekV3ForCausalLM", **LATENT_ATTENTION, n_group=2, topk_group=1),
    _mixture(
        "llama4_text",
        "Llama4ForCausalLM",
        head_dim=HEAD_SIZE,
        num_local_experts=4,
        num_experts_per_tok=1,
        intermediate_size_mlp=INTERMEDIATE,
        interleave_moe_layer_step=2,
        no_rope_layers=[1, 0],
        attention_chunk_size=8,
    ),
)
