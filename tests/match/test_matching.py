"""Matching is decided by numbers: a layer that only looks like a recipe is not taken for it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, Qwen2Config
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from neuron_port.checkpoint import build_skeleton
from neuron_port.errors import RecipeError
from neuron_port.match.matcher import match
from neuron_port.registry import Registry
from neuron_port.types import DIFFERENT
from neuron_port.walk.families import programs_of
from neuron_port.walk.program import GraphShapes
from neuron_port.walk.walker import walk
from tests.conftest import TINY_LLAMA


def decide(model, registry, **options):
    shapes = GraphShapes(batch=1, buckets=(8,), cache_length=16)
    walks = [walk(model, "tiny", program) for program in programs_of(model, shapes)]
    parameters = [name for name, _ in model.named_parameters()]
    options = {"target": "trn2", "generation": "gen3", "parameters": parameters} | options
    plan = match(walks, registry, **options)
    return plan, {**plan.by_layer(walks[1].graph), **plan.by_layer(walks[0].graph)}


def tiny(**changes):
    return build_skeleton(LlamaConfig(**(TINY_LLAMA | changes)), torch.float32)


def test_every_layer_of_llama_has_a_recipe(registry):
    """Nothing is left to the compiler, and every parameter is consumed."""
    plan, _ = decide(tiny(), registry)
    assert [item.layers[0] for item in plan.matches if item.decision == "compiler"] == []
    assert plan.unused_parameters == ()


def test_an_mlp_is_taken_whole(registry):
    """The gated MLP is one match; its projections are not matched again."""
    _, by_layer = decide(tiny(), registry)
    assert by_layer["model.layers.0.mlp"].recipe == "gated_mlp"
    assert "model.layers.0.mlp.gate_proj" not in by_layer
    roles = by_layer["model.layers.0.mlp"].weights
    assert {role: source.name for role, source in roles.items()} == {
        "gate": "gate_proj.weight",
        "up": "up_proj.weight",
        "down": "down_proj.weight",
    }


def test_a_norm_with_another_formula_is_refused_although_its_class_says_otherwise(registry, monkeypatch):
    """LlamaRMSNorm that secretly computes (1 + w) x is not an rms_norm."""
    original = LlamaRMSNorm.forward
    monkeypatch.setattr(LlamaRMSNorm, "forward", lambda self, x: original(self, x) + x * 1e-3)
    _, by_layer = decide(tiny(), registry)
    refused = by_layer["model.norm"]
    assert refused.decision == "compiler"
    assert "rms_norm computes something else" in refused.reason
    assert refused.refusals["rms_norm"].startswith(DIFFERENT)


def test_another_activation_is_refused(registry):
    """A gated MLP with an activation that the kernel lacks is refused; its projections are still linear."""
    _, by_layer = decide(tiny(hidden_act="tanh"), registry)
    assert "model.layers.0.mlp" not in by_layer
    assert by_layer["model.layers.0.mlp.gate_proj"].recipe == "linear"


def test_the_activation_is_found_by_numbers(registry):
    """A gated MLP with tanh-approximated gelu is bound with that activation and no other."""
    _, by_layer = decide(tiny(hidden_act="gelu_pytorch_tanh"), registry)
    assert by_layer["model.layers.0.mlp"].recipe == "gated_mlp"
    assert by_layer["model.layers.0.mlp"].attributes["activation"] == "gelu_tanh"


def test_biases_are_bound(registry):
    """Qwen2's biased projections are linear layers with a bias role, its output projection has none."""
    config = Qwen2Config(
        **{key: value for key, value in TINY_LLAMA.items() if key not in ("architectures", "model_type")}
    )
    _, by_layer = decide(build_skeleton(config, torch.float32), registry)
    assert set(by_layer["model.layers.0.self_attn.q_proj"].weights) == {"weight", "bias"}
    assert set(by_layer["model.layers.0.self_attn.o_proj"].weights) == {"weight"}


def test_a_sliding_window_is_bound_as_one(registry):
    """Attention that sees three tokens back is not taken for attention that sees all of them, in either phase."""
    from transformers import MistralConfig

    values = {key: value for key, value in TINY_LLAMA.items() if key not in ("architectures", "model_type")}
    config = MistralConfig(**values, sliding_window=4)
    _, by_layer = decide(build_skeleton(config, torch.float32), registry)
    shown = {**by_layer}["model.layers.0.self_attn#attention"]
    assert (shown.recipe, shown.attributes["window_before"]) == ("attention", 3)


def test_a_recipe_can_be_excluded(registry):
    """--compiler linear leaves projections to the compiler and says that the user did it."""
    _, by_layer = decide(tiny(), registry, refused=("linear",))
    assert by_layer["lm_head"].decision == "compiler"
    assert "excluded by the user" in by_layer["lm_head"].reason


def test_excluding_an_unknown_recipe_names_the_nearest(registry):
    """A misspelt --compiler is refused with a suggestion."""
    with pytest.raises(RecipeError) as raised:
        decide(tiny(), registry, refused=("linaer",))
    assert "linaer" in raised.value.message
    assert "`linear`" in str(raised.value.hint)


def test_the_probe_does_not_touch_the_model(registry):
    """Matching leaves the skeleton's parameters on the meta device and its modules unwrapped."""
    model = tiny()
    keys = set(vars(model.model.layers[0].mlp))
    decide(copy.copy(model), registry)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert set(vars(model.model.layers[0].mlp)) == keys


def olmo2():
    """A model that keeps its rotary tables in float32 beside bfloat16 queries."""
    from transformers import Olmo2Config

    values = {key: value for key, value in TINY_LLAMA.items() if key not in ("architectures", "model_type")}
    return build_skeleton(Olmo2Config(**values), torch.bfloat16)


def changed(registry, name, **changes):
    """The registry with one recipe's fields changed."""
    other = replace(registry[name], recipe=replace(registry[name].recipe, **changes))
    return Registry.of(*(other if found.name == name else found for found in registry.values()))


def test_inputs_of_two_dtypes_go_to_a_recipe_that_says_it_takes_them(registry):
    """The rope kernel reads tables of another dtype than the queries."""
    _, by_layer = decide(olmo2(), registry)
    assert by_layer["model.layers.0.self_attn#rope"].recipe == "rope"


def test_inputs_of_two_dtypes_go_to_the_compiler_otherwise(registry):
    """The same recipe without `mixed_dtypes` is not offered, and the reason names the dtypes."""
    _, by_layer = decide(olmo2(), changed(registry, "rope", mixed_dtypes=False))
    refused = by_layer["model.layers.0.self_attn#rope"]
    assert refused.decision == "compiler"
    assert "one dtype, these inputs are bfloat16 and float32" in refused.reason


def test_a_mistake_in_a_reference_is_not_taken_for_a_misfit(registry, monkeypatch):
    """A misspelt name in a recipe's reference stops the run; it does not quietly become a compiler layer."""

    def misspelt(*args, **kwargs):
        return torch.no_such_function(*args)

    monkeypatch.setitem(registry["rms_norm"].__dict__, "reference", misspelt)
    with pytest.raises(RecipeError, match=r"Recipe `rms_norm` fails on .*no_such_function"):
        decide(tiny(), registry)


def test_a_module_called_with_two_shapes_is_decided_twice(registry):
    """A norm that is called again with fewer rows, behind its own kernel, has a decision for either signature."""
    model = tiny()
    program = programs_of(model, GraphShapes(batch=1, buckets=(8,), cache_length=16))[0]
    norm, shared = model.model.norm, model.model.layers[0].input_layernorm
    whole = norm.forward
    norm.forward = lambda x: torch.cat((whole(x[:, :1]), shared(x[:, 1:])), dim=1)
    found = walk(model, "tiny", program)
    plan = match([found], registry, target="trn2", generation="gen3", parameters=[])
    calls = [layer for layer in found.graph.layers if layer.name == "model.layers.0.input_layernorm"]
    assert [layer.inputs[0].shape[1] for layer in calls] == [8, 7]
    assert {match.signature for match in plan.matches} >= {layer.signature for layer in calls}


def norm_bindings(registry, *eps_factors):
    """A `bind` for rms_norm that offers its own binding with these factors on epsilon, in order."""
    own = registry["rms_norm"].recipe.bindings

    def bind(call):
        found = own(call)
        return tuple(
            replace(found[0], attributes=found[0].attributes | {"eps": found[0].attributes["eps"] * factor})
            for factor in eps_factors
            if found
        )

    return bind


def test_bindings_are_tried_in_order(registry):
    """Of several bindings the first that the probe agrees with is taken, whatever stands before it."""
    _, by_layer = decide(tiny(), changed(registry, "rms_norm", bind=norm_bindings(registry, 1e4, 1, 1)))
    assert by_layer["model.norm"].recipe == "rms_norm"
    assert by_layer["model.norm"].attributes["eps"] == pytest.approx(TINY_LLAMA["rms_norm_eps"])


def test_bindings_that_are_all_wrong_are_refused(registry):
    """No binding agrees: the layer goes to the compiler, and the reason has the nearest one's difference."""
    _, by_layer = decide(tiny(), changed(registry, "rms_norm", bind=norm_bindings(registry, 1e4, 1e5)))
    refused = by_layer["model.norm"]
    assert refused.decision == "compiler"
    assert "rms_norm computes something else: relative difference" in refused.reason


def test_parameters_that_nothing_uses_are_reported(registry):
    """A parameter that no layer and no code reads is named; a tied one counts under each of its names."""
    from transformers import BertConfig

    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 1}
    config = BertConfig(vocab_size=64, **sizes)
    config.architectures = ["BertForMaskedLM"]
    model = build_skeleton(config, torch.float32)
    model.bert.encoder.forgotten = torch.nn.Linear(3, 3, device="meta")
    shapes = GraphShapes(batch=1, buckets=(8,), cache_length=16)
    walks = [walk(model, "tiny", program) for program in programs_of(model, shapes)]
    parameters = [name for name, _ in model.named_parameters()]
    plan = match(walks, registry, target="trn2", generation="gen3", parameters=parameters)
    assert plan.unused_parameters == ("bert.encoder.forgotten.bias", "bert.encoder.forgotten.weight")
