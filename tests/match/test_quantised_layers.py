"""Quantised layers of a whole model go to the recipes of their format; a scale on the wrong axis is refused by name."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig

from neuron_port.checkpoint import build_skeleton
from neuron_port.checkpoint.quantization import CLASSES, Int8Linear, linear_layers, replacement
from neuron_port.types import DIFFERENT
from tests.conftest import TINY_LLAMA
from tests.match.test_matching import decide

Q_PROJ = "model.layers.0.self_attn.q_proj"  # square: shapes cannot tell one axis from the other


class ScaledInputs(Int8Linear):
    """The scale on the wrong axis: it multiplies input features, not outputs."""

    def forward(self, x):
        return torch.nn.functional.linear(x * self.weight_scale, self.values(x.dtype)).to(x.dtype)


def quantised(form, dtype, q_proj=None):
    model = build_skeleton(LlamaConfig(**TINY_LLAMA), dtype)
    for name, module in linear_layers(model).items():
        model.set_submodule(name, replacement(module, form))
    if q_proj is not None:
        size = model.config.hidden_size
        model.set_submodule(Q_PROJ, q_proj(size, size, None))
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", CLASSES)
def test_every_quantised_layer_has_a_recipe(form, dtype, registry):
    """All projections go to the format's recipe, scales in float32 beside either dtype; no parameter is left over."""
    plan, by_layer = decide(quantised(form, dtype), registry)
    projections = [name for name in by_layer if name.endswith("_proj")]
    assert len(projections) == 7 * TINY_LLAMA["num_hidden_layers"]
    assert {by_layer[name].recipe for name in projections} == {f"linear_{form}"}
    assert plan.unused_parameters == ()


@pytest.mark.parametrize(("q_proj", "recipe"), [(Int8Linear, "linear_int8"), (ScaledInputs, None)])
def test_a_wrong_scale_axis_is_refused_by_name(q_proj, recipe, registry):
    """The same layer with its scale on the outputs is taken; with it on the inputs it computes something else."""
    _, by_layer = decide(quantised("int8", torch.float32, q_proj), registry)
    decided = by_layer[Q_PROJ]
    assert decided.recipe == recipe
    if recipe is None:
        assert decided.decision == "compiler"
        assert decided.refusals["linear_int8"].startswith(DIFFERENT)
