"""The walker finds every layer of a model, under the same names in every phase, and leaves the model as it was."""

from __future__ import annotations

import torch
from transformers import LlamaForCausalLM

from neuron_port.walk.cutpoints import intercept
from neuron_port.walk.torch_calls import is_residual
from neuron_port.walk.walker import capture


def names(walk, operation):
    return [layer.name for layer in walk.graph.layers if layer.operation == operation]


def test_finds_every_kind_of_layer(tiny_walks):
    """Norms, projections, rope, attention, MLP, embedding, residual adds and head are all there, once a layer."""
    prefill, decode = tiny_walks
    assert names(prefill, "attention") == [
        "model.layers.0.self_attn#attention",
        "model.layers.1.self_attn#attention",
    ]
    assert names(decode, "attention_decode") == names(prefill, "attention")
    assert names(prefill, "rope") == ["model.layers.0.self_attn#rope", "model.layers.1.self_attn#rope"]
    assert names(prefill, "add") == [
        f"model.layers.{layer}#add.{number}" for layer in (0, 1) for number in (0, 1)
    ]
    modules = names(prefill, "module")
    for expected in (
        "model.embed_tokens",
        "model.layers.1.mlp",
        "model.layers.0.self_attn.q_proj",
        "lm_head",
    ):
        assert modules.count(expected) == 1


def test_equal_layers_share_a_signature(tiny_walks):
    """Both decoder layers, and all five norms, are one signature each; prefill and decode differ."""
    prefill, decode = tiny_walks
    by_name = {layer.name: layer for layer in prefill.graph.layers}
    assert by_name["model.layers.0.mlp"].signature == by_name["model.layers.1.mlp"].signature
    norms = {layer.signature for layer in prefill.graph.layers if layer.module_class == "LlamaRMSNorm"}
    assert len(norms) == 1
    assert norms.isdisjoint(layer.signature for layer in decode.graph.layers)


def test_counts_flops_of_composites_with_their_children(tiny_walks):
    """An MLP's FLOPs are those of its three projections: 2 T H I each."""
    layer = next(layer for layer in tiny_walks[0].graph.layers if layer.name == "model.layers.0.mlp")
    assert layer.flops == 3 * 2 * 16 * 48 * 80


def test_head_sees_one_token_in_prefill(tiny_walks):
    """The language-model head works on each row's last token alone."""
    head = next(layer for layer in tiny_walks[0].graph.layers if layer.name == "lm_head")
    assert head.inputs[0].shape == (1, 1, 48)


def test_interception_leaves_the_model_as_it_was(tiny_llama_folder):
    """After the block the model computes the same, through its own functions."""
    model = LlamaForCausalLM.from_pretrained(tiny_llama_folder).eval()
    ids = torch.arange(5)[None]
    with torch.no_grad():
        before = model(ids).logits
        implementation = model.config._attn_implementation
        with intercept(model, lambda call: call.run()):
            assert model.config._attn_implementation == "neuron_port"
        assert model.config._attn_implementation == implementation
        assert not any("forward" in vars(module) for module in model.modules())
        assert torch.equal(model(ids).logits, before)


def test_captures_real_inputs_of_both_phases(tiny_llama_folder):
    """A captured layer's own forward on the captured inputs is what the model computed."""
    model = LlamaForCausalLM.from_pretrained(tiny_llama_folder).eval()
    wanted = {"model.layers.1.mlp", "model.layers.0.self_attn#attention"}
    captured = capture(model, wanted, {"input_ids": torch.arange(7)[None]}, cache_length=16)
    assert set(captured) == {(phase, name) for phase in ("prefill", "decode") for name in wanted}
    prefill = captured["prefill", "model.layers.1.mlp"].args[0]
    assert prefill.shape == (1, 7, 48)
    assert captured["decode", "model.layers.1.mlp"].args[0].shape == (1, 1, 48)
    positions = captured["decode", "model.layers.0.self_attn#attention"].args[4]
    assert positions.tolist() == [7]


def test_a_residual_is_a_sum_of_equal_activations():
    """x + y of equal shape is a residual; a broadcast, a scalar or integers are not."""
    x = torch.zeros(1, 3, 4)
    assert is_residual((x, x), {})
    assert not is_residual((x, x[..., :1]), {})
    assert not is_residual((x, 1.0), {})
    assert not is_residual((x.long(), x.long()), {})
