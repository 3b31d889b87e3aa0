"""The recheck inside a small model tells right kernels from wrong ones by the logits."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from neuron_port.drafting.folder import write_draft
from neuron_port.drafting.in_graph import graph_recheck, recheck_in_graph, shallow_model
from neuron_port.errors import UsageError
from neuron_port.registry import Registry
from tests.drafting.layer_kernels import GAIN_BESIDE_ONE_NORM, LAYER_NORM, kernel
from tests.drafting.tiny_models import CONFIGS, drafted, provenance

NAME = "gpt2_layer_norm"
RIGHT = kernel(LAYER_NORM, NAME)


@pytest.fixture
def registry(tmp_path):
    write_draft(tmp_path, drafted("gpt2")["transformer.h.0.ln_1"].task, RIGHT, provenance())
    return Registry(tmp_path)


def test_a_right_kernel_passes_in_prefill_and_decode(registry):
    """Logits and caches of a prompt and three further tokens agree with transformers, tier simulator."""
    report = recheck_in_graph(CONFIGS["gpt2"], registry, [NAME])
    assert report.passed
    assert {case.tier for case in report.cases} == {"simulator"}
    assert [case.name.split(",")[0] for case in report.cases] == ["prefill"] * 3 + ["decode"] * 3
    assert "no Neuron device has run this kernel" in report.not_proven


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("value=1e-5", "value=1e-2"), "relative_max"),
        (("dst=out[first:last, :], src=result", "dst=out[first:first + 1, :], src=result[0:1, :]"), "elements written"),
        (("op=nl.rsqrt", "op=nl.rsqrtt"), "rsqrtt"),
    ],
    ids=["another epsilon", "tails left out", "does not run"],
)  # fmt: skip
def test_a_wrong_kernel_is_refused_with_what_went_wrong(change, problem):
    """One changed line, and the recheck says what is wrong; unchanged, it says nothing. The model is built once."""
    recheck = graph_recheck(drafted("gpt2")["transformer.h.0.ln_1"].task, CONFIGS["gpt2"])
    assert recheck(RIGHT) == ""
    assert change[0] in RIGHT
    assert problem in recheck(RIGHT.replace(*change))


def test_a_kernel_that_serves_nothing_in_the_model_is_refused(registry):
    """A draft for GPT-2 tried inside Gemma is a mistake of the caller's, named with the model."""
    with pytest.raises(UsageError, match=f"No layer of this Gemma2ForCausalLM is served by: `{NAME}`"):
        recheck_in_graph(CONFIGS["gemma2"], registry, [NAME])


def test_a_deep_model_is_tried_shallow():
    """Thirty layers become two, lists of layer types are cut with them, and no parameter is constant."""
    from transformers import Gemma2Config

    config = Gemma2Config(**(CONFIGS["gemma2"].to_dict() | {"num_hidden_layers": 30, "layer_types": None}))
    model = shallow_model(config)
    assert model.config.num_hidden_layers == 2
    assert len(model.config.layer_types) == 2
    assert config.num_hidden_layers == 30
    assert all(parameter.std() > 0 for parameter in model.parameters())


def test_norms_of_every_layer_are_replaced(tmp_path):
    """Gemma's norms, nine in two layers, all run through the draft."""
    made = drafted("gemma2")["model.layers.0.input_layernorm"].task
    source = kernel(GAIN_BESIDE_ONE_NORM, made.task.name)
    assert graph_recheck(made, CONFIGS["gemma2"])(source) == ""
    assert graph_recheck(made, CONFIGS["gemma2"])(source.replace("operand0=1.0", "operand0=0.0")) != ""


def recheck_alone(made, source, layers):
    """In a model that is exactly so deep."""
    with tempfile.TemporaryDirectory() as folder:
        write_draft(Path(folder), made, source, provenance())
        return recheck_in_graph(CONFIGS["gemma2"], Registry(Path(folder)), [made.task.name], layers=layers)


def test_the_model_is_as_deep_as_the_layer_stands():
    """Gemma 2's second kind of attention stands in layer 1: asked for one layer, the recheck builds two."""
    made = drafted("gemma2")["model.layers.1.self_attn#attention"].task
    source = f"import nki\n\n\n@nki.jit\ndef {made.task.name}(query, key, value):\n    return query\n"
    with pytest.raises(UsageError, match="No layer"):
        recheck_alone(made, source, layers=1)
    assert "logits" in graph_recheck(made, CONFIGS["gemma2"], layers=1)(source)
