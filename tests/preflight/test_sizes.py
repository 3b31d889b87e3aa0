"""Parameters, states and shares of a core, against figures that were worked out by hand."""

from __future__ import annotations

import pytest

from neuron_port.errors import UsageError
from neuron_port.preflight.anatomy import part_of, stored_bytes
from neuron_port.preflight.blocks import meta_model, trim
from neuron_port.preflight.sizing import Sizes
from tests.preflight.models import config_of, make_sizes


def test_parameters_of_llama_70b(llama_70b: Sizes) -> None:
    """Llama-3.1-70B by hand: table and head, 80 blocks of four attention matrices and three of an MLP, 161 norms."""
    found = llama_70b.anatomy
    assert found.embedding == 2 * 128256 * 8192
    assert found.attention == 80 * (2 * 8192 * 8192 + 2 * 8192 * 1024)
    assert found.mlp == 80 * 3 * 8192 * 28672
    assert found.other == (2 * 80 + 1) * 8192
    assert found.total == 70_553_706_496
    assert found.active == found.total - 128256 * 8192  # the table of tokens is looked up
    assert (found.layers, found.positions, found.family) == (80, 131072, "causal")


def test_cache_of_llama_70b(llama_70b: Sizes) -> None:
    """A cached token takes 2 x 80 x 8 x 128 x 2 bytes; nothing is there that does not grow."""
    assert llama_70b.state_parts() == (2 * 80 * 8 * 128 * 2, 0)
    assert llama_70b.state_bytes() == 4096 * 327_680


def test_heads_that_ranks_share_are_kept_by_each(llama_70b: Sizes) -> None:
    """Eight key/value heads are one for each of 8 cores, and still one for each of 32."""
    assert llama_70b.state_parts(8) == (327_680 // 8, 0)
    assert llama_70b.state_parts(32) == (327_680 // 8, 0)


def test_share_of_one_core_of_eight(llama_70b: Sizes) -> None:
    """Of 8 cores each has an eighth of the blocks and of the head, and the whole table of tokens and norms."""
    share = llama_70b.share(8, (8,))
    table, norms = 128256 * 8192, (2 * 80 + 1) * 8192
    cut = llama_70b.anatomy.total - table - norms
    assert share.weight_bytes == 2 * (cut // 8 + table + norms)
    assert share.all_reduces == 160


def test_only_degrees_that_the_heads_allow(llama_70b: Sizes) -> None:
    """64 heads go on 8 cores; on the 12 and 24 that AWS's documents list for Inf2 they do not, and it is said why."""
    degrees = [share.degree for share in llama_70b.shares("inf2", 24)]
    assert degrees == [1, 2, 4, 8, 16]
    assert "64 attention heads, which 12 ranks cannot share evenly" in llama_70b.refusals[12]
    assert not next(share for share in llama_70b.shares("inf2", 24) if share.degree == 16).listed


def test_experts_of_mixtral(mixtral: Sizes) -> None:
    """46.7 billion parameters, of which a token multiplies with two experts of eight."""
    found = mixtral.anatomy
    assert found.experts == 32 * 8 * 3 * 4096 * 14336
    assert found.total == 46_702_792_704
    assert found.active == found.total - 32000 * 4096 - found.experts * 6 // 8
    assert (found.expert_count, found.experts_per_token) == (8, 2)


def test_latent_cache_of_deepseek() -> None:
    """Multi-head latent attention caches 512 + 64 numbers for each token and layer, not heads."""
    sizes = make_sizes(config_of("deepseek-v3"), "deepseek-v3")
    assert sizes.state_parts() == (61 * (512 + 64) * 2, 0)
    assert sizes.anatomy.total == pytest.approx(671.0e9, rel=1e-3)


def test_recurrent_states_do_not_grow() -> None:
    """Mamba2's states are those of its convolution and recurrence: the same at every length."""
    short = make_sizes(config_of("mamba2-2.7b"), "mamba2-2.7b", context=128)
    per_slot, fixed = short.state_parts()
    assert per_slot == 0
    assert fixed > 0
    assert short.state_bytes() == fixed


def test_cross_attention_is_fixed_and_self_attention_grows() -> None:
    """Whisper small: 12 layers x 2 x 768 x 2 bytes for a token of the text, and as much for 1,500 frames of sound."""
    sizes = make_sizes(config_of("whisper-small"), "whisper-small", context=448)
    assert sizes.state_parts() == (12 * 2 * 768 * 2, 1500 * 12 * 2 * 768 * 2)


def test_an_encoder_keeps_nothing_and_is_not_cut() -> None:
    """BERT has no state, and asking for two cores is refused in one sentence."""
    sizes = make_sizes(config_of("bert-base"), "bert-base", context=128)
    assert sizes.state_bytes() == 0
    with pytest.raises(UsageError, match="only causal language models are"):
        sizes.share(2, (2,))


@pytest.mark.parametrize(
    "preset", ["gemma-3-1b", "deepseek-v3", "qwen2.5-vl-7b", "whisper-small", "mamba2-1.3b"]
)
def test_a_trimmed_copy_stands_for_the_whole(preset: str) -> None:
    """One block of each kind, multiplied, has the parameters of the whole model."""
    config = config_of(preset)
    whole = meta_model(config)
    trimmed = trim(config, whole)
    small = meta_model(trimmed.config)
    assert sum(tensor.numel() for tensor in small.parameters()) < sum(
        tensor.numel() for tensor in whole.parameters()
    )
    assert trimmed.scaled(
        {name: tensor.numel() for name, tensor in small.named_parameters()}
    ) == pytest.approx(sum(tensor.numel() for tensor in whole.parameters()))


def test_kinds_of_layers_are_all_kept() -> None:
    """Gemma 3 repeats five sliding layers and a full one: the copy has all six, whisper's one of each stack."""
    config = config_of("gemma-3-1b")
    assert len(trim(config, meta_model(config)).repeats) == 6
    config = config_of("whisper-small")
    assert trim(config, meta_model(config)).repeats == {
        "model.encoder.layers.0": 12.0,
        "model.decoder.layers.0": 12.0,
    }


def test_flops_of_a_trimmed_walk_are_those_of_the_whole(llama_70b: Sizes) -> None:
    """A prompt of 512 tokens by hand: two for each weight of the blocks and token, attention, and the head once."""
    blocks = 2 * 512 * (llama_70b.anatomy.attention + llama_70b.anatomy.mlp)
    attention = 80 * 2 * 2 * 512 * 512 * 8192
    head = 2 * 128256 * 8192
    assert llama_70b.flops("prefill") == pytest.approx(blocks + attention + head, rel=1e-9)


def test_8_bit_weights_are_matrices_with_a_scale_for_each_row() -> None:
    """A [4, 6] matrix takes 24 bytes and 4 scales; a norm and a table stay in bfloat16."""
    assert stored_bytes((4, 6), "int8", is_table=False) == 24 + 4 * 4
    assert stored_bytes((6,), "int8", is_table=False) == 12
    assert stored_bytes((4, 6), "int8", is_table=True) == 48
    assert stored_bytes((4, 6), "float32", is_table=False) == 96


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("lm_head.weight", "embedding"),
        ("model.layers.0.self_attn.q_proj.weight", "attention"),
        ("model.layers.0.mlp.gate_proj.weight", "mlp"),
        ("model.layers.0.mlp.experts.gate_up_proj", "experts"),
        ("model.layers.0.input_layernorm.weight", "other"),
        ("model.layers.0.post_attention_layernorm.weight", "other"),
        ("backbone.layers.3.mixer.in_proj.weight", "attention"),
    ],
)
def test_parts_by_name(name: str, part: str) -> None:
    """A parameter's part is read off the words of its name."""
    assert part_of(name) == part
