"""Cutting a skeleton over ranks: which parts, where they are joined, and what is refused by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    Llama4TextConfig,
    LlamaConfig,
    MixtralConfig,
    Olmo2Config,
    PreTrainedConfig,
    PreTrainedModel,
    Starcoder2Config,
)

from neuron_port.checkpoint import build_skeleton
from neuron_port.errors import LoweringError, UsageError
from neuron_port.types import Shard
from neuron_port.walk.cutpoints import intercept
from neuron_port.walk.families import programs_of
from neuron_port.walk.program import GraphShapes
from neuron_port.walk.sharding import Sharding, check_joined, joined, part_of, shard

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def skeleton(config: PreTrainedConfig, architecture: str) -> PreTrainedModel:
    config.architectures = [architecture]
    return build_skeleton(config, torch.float32)


def llama(**changed: Any) -> PreTrainedModel:
    return skeleton(LlamaConfig(**(SIZES | changed)), "LlamaForCausalLM")


def program_graph(model: PreTrainedModel) -> torch.fx.Graph:
    """The exported prefill step, nothing replaced."""
    step = programs_of(model, GraphShapes(batch=1, buckets=(8,), cache_length=16))[0]
    with torch.no_grad(), intercept(model, lambda call: call.run()):
        return torch.export.export(step.step, step.arguments, strict=False).graph


@pytest.mark.parametrize(
    "cut",
    [
        Shard(ranks=4, axis=0, units=4),
        Shard(ranks=4, axis=1, units=4),
        Shard(ranks=4, axis=0, units=2),  # two key/value heads for four ranks
        Shard(ranks=2, axis=0, blocks=2, units=2),  # gate and up in one tensor
    ],
)
def test_the_parts_of_all_ranks_are_the_whole(cut: Shard) -> None:
    """Every element is in the parts, in every block of them, as often as ranks share a part."""
    whole = torch.arange(8 * 12).reshape(8, 12)
    parts = [part_of(whole, cut, rank) for rank in range(cut.ranks)]
    assert {tuple(part.shape) for part in parts} == {cut.local_shape((8, 12))}
    counts = torch.bincount(torch.cat([part.flatten() for part in parts]))
    assert counts.tolist() == [cut.copies] * 96
    if cut.blocks == 1:
        assert torch.equal(joined(parts, cut), whole)


def test_a_rank_has_its_share_of_each_block() -> None:
    """Of a fused projection rank 1 of 2 has the second half of gate and the second half of up."""
    gate_and_up = torch.arange(8)[:, None]
    part = part_of(gate_and_up, Shard(ranks=2, axis=0, blocks=2, units=2), 1)
    assert part.flatten().tolist() == [2, 3, 6, 7]


def test_what_is_added_to_a_sum_is_added_once() -> None:
    """Rank 0 has the bias of a row-sharded layer, the others zeros."""
    once = Shard(ranks=3, axis=None)
    bias = torch.arange(1.0, 5.0)
    assert torch.equal(sum(part_of(bias, once, rank) for rank in range(3)), bias)


def test_layers_get_one_ranks_shapes() -> None:
    """Columns of q, k, v, gate, up and head, rows of o and down; norms and embeddings stay whole."""
    model = llama()
    made = shard(model, 2)
    layer = model.model.layers[0]
    assert tuple(layer.self_attn.q_proj.weight.shape) == (16, 32)
    assert tuple(layer.self_attn.k_proj.weight.shape) == (8, 32)
    assert tuple(layer.self_attn.o_proj.weight.shape) == (32, 16)
    assert tuple(layer.mlp.down_proj.weight.shape) == (32, 24)
    assert layer.mlp.down_proj.in_features == 24
    assert tuple(model.lm_head.weight.shape) == (48, 32)
    assert "model.embed_tokens.weight" not in made.tensors
    assert "model.layers.0.input_layernorm.weight" not in made.tensors


def test_ranks_join_where_the_output_leaves_the_layer() -> None:
    """The sum stands behind the outermost module that gives the row-sharded output: a kernel may take the whole MLP."""
    made = shard(llama(), 2)
    assert made.sums["model.layers.1.mlp.down_proj"] == ("model.layers.1.mlp", None)
    assert made.sums["model.layers.1.self_attn.o_proj"] == ("model.layers.1.self_attn", 0)
    assert made.gathers == ("lm_head",)


def test_few_key_value_heads_are_held_by_several_ranks() -> None:
    """Four ranks of two key/value heads: two ranks each hold the same one, and it serves their one query head."""
    model = llama()
    made = shard(model, 4)
    assert made.tensors["model.layers.0.self_attn.k_proj.weight"].copies == 2
    assert model.model.layers[0].self_attn.num_key_value_groups == 1
    assert made.states["key_cache.0"] == Shard(ranks=4, axis=1, units=2)


def test_experts_are_cut_inside() -> None:
    """Every rank has all experts, of each a share of its columns; their outputs are added up behind the block."""
    model = skeleton(MixtralConfig(**SIZES, num_local_experts=4), "MixtralForCausalLM")
    made = shard(model, 2)
    experts = model.model.layers[0].mlp.experts
    assert tuple(experts.gate_up_proj.shape) == (4, 48, 32)
    assert tuple(experts.down_proj.shape) == (4, 32, 24)
    assert made.tensors["model.layers.0.mlp.experts.gate_up_proj"].blocks == 2
    assert made.sums["model.layers.0.mlp.experts"] == ("model.layers.0.mlp", None)


def test_parts_are_added_up_before_something_is_added_in_place() -> None:
    """Llama 4 adds its routed experts into the shared one's output: the same tensor, and no longer that layer's own."""
    config = Llama4TextConfig(**SIZES, intermediate_size_mlp=48, num_local_experts=4, head_dim=8)
    made = shard(skeleton(config, "Llama4ForCausalLM"), 2)
    shared = "model.layers.1.feed_forward.shared_expert"
    assert made.sums[f"{shared}.down_proj"] == (shared, None)


def test_biases_behind_rows_are_the_first_ranks() -> None:
    """A row-sharded layer's bias belongs to rank 0, a column-sharded one's is cut."""
    model = skeleton(Starcoder2Config(**SIZES, use_bias=True), "Starcoder2ForCausalLM")
    made = shard(model, 2)
    assert made.tensors["model.layers.0.self_attn.o_proj.bias"].axis is None
    assert made.tensors["model.layers.0.self_attn.q_proj.bias"].axis == 0


def test_a_vocabulary_that_does_not_divide_stays_whole() -> None:
    """The head is then held by every rank, which is said."""
    model = llama(vocab_size=97)
    made = shard(model, 2)
    assert made.gathers == ()
    assert "lm_head.weight" not in made.tensors
    assert "`lm_head` is whole on every rank" in made.notes[0]


@pytest.mark.parametrize(
    ("model", "ranks", "reason"),
    [
        (lambda: llama(), 3, "4 attention heads, which 3 ranks cannot share evenly"),
        (lambda: llama(hidden_size=48, num_attention_heads=6, head_dim=8), 3, "2 key/value heads"),
        (lambda: llama(intermediate_size=50), 4, "50 rows"),
        (lambda: skeleton(GPT2Config(n_layer=1, n_embd=32, n_head=4), "GPT2LMHeadModel"), 2, "no tensor-parallel plan"),
        (lambda: skeleton(Olmo2Config(**SIZES), "Olmo2ForCausalLM"), 2, "`rowwise_split_input`"),
    ],
)  # fmt: skip
def test_what_cannot_be_shared_is_refused(model: Any, ranks: int, reason: str) -> None:
    """Numbers that do not divide, models without a plan and styles without a lowering, each by name."""
    with pytest.raises(UsageError, match=reason):
        shard(model(), ranks)


def test_a_program_with_all_sums_is_taken() -> None:
    """Every layer of which ranks have parts is joined once in the exported step."""
    model = llama()
    check_joined(shard(model, 2), program_graph(model), "prefill")


def test_a_missing_sum_is_refused_by_the_layers_name() -> None:
    """One hook less, and the program would add nothing up behind that layer."""
    made = shard(llama(), 2)
    left_out = "model.layers.1.mlp.down_proj"
    model = llama()
    fewer: Sharding = replace(
        made, sums={name: place for name, place in made.sums.items() if name != left_out}
    )
    shard(model, 2, known=fewer)
    with pytest.raises(LoweringError, match=left_out):
        check_joined(made, program_graph(model), "prefill")


def test_a_rank_alone_has_nobody_to_ask() -> None:
    """A collective outside of several ranks is an error, not the sum of one part."""
    with pytest.raises(RuntimeError, match=r"`down_proj` joins the parts of 2 ranks, and runs on one alone"):
        torch.ops.neuron_port.all_reduce(torch.ones(2), 2, "down_proj")
