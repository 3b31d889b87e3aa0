"""Which layers the norm, activation and softmax recipes take: decided by numbers, on the model's own modules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from neuron_port.match.probe import RELATIVE_LIMIT, probe
from neuron_port.recipe import Binding
from neuron_port.registry import data_folder, load_recipe
from neuron_port.simulator import load_kernel_source, run_kernel
from neuron_port.walk.calls import Call, plain_attributes

SBUF_LIMIT_BYTES = (192 - 16) * 1024  # gen2, per partition, less what the compiler keeps
NAMES = (
    "rms_norm", "layer_norm", "gated_rms_norm", "group_norm", "batch_norm", "activation", "layer_scale", "rope_table",
    "rope", "softmax",
)  # fmt: skip
RECIPES = {name: load_recipe(data_folder("recipes") / name) for name in NAMES}


def call_of(module: torch.nn.Module, *args: Any) -> Call:
    """What a walk hands to `bind`: the module without data, and its arguments on the meta device."""
    return Call(
        name="layer",
        operation="module",
        module=module.to("meta") if next(module.parameters(), None) is not None else module,
        owner=type(module).__name__,
        function=module,
        args=tuple(item.to("meta") if torch.is_tensor(item) else item for item in args),
        kwargs={},
        attributes=plain_attributes(module),
    )


def decide(call: Call) -> tuple[str, Binding] | None:
    """The first recipe and binding whose reference agrees with the layer."""
    for name, found in RECIPES.items():
        if found.recipe.operation != call.operation:
            continue
        for binding in found.recipe.bindings(call):
            try:
                evidence = probe(call, found.recipe, found.reference, binding)
            except (RuntimeError, ValueError, IndexError, TypeError):
                continue
            if max(evidence.values()) <= RELATIVE_LIMIT:
                return name, binding
    return None


def model_class(family: str, name: str) -> Any:
    return getattr(pytest.importorskip(f"transformers.models.{family}.modeling_{family}"), name)


class Slope(torch.nn.Module):
    """No activation that anybody knows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, x, 0.3 * x)


class HalfGain(torch.nn.Module):
    """A norm by its looks, with a gain that no recipe has."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(16))
        self.eps = 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * (0.5 + self.weight)


@pytest.mark.parametrize(
    ("family", "name", "recipe", "attributes"),
    [
        ("llama", "LlamaRMSNorm", "rms_norm", {}),
        ("gemma3", "Gemma3RMSNorm", "rms_norm", {"offset": 1.0}),
        ("qwen3_next", "Qwen3NextRMSNorm", "rms_norm", {"offset": 1.0}),
        ("t5", "T5LayerNorm", "rms_norm", {}),
        ("cohere", "CohereLayerNorm", "layer_norm", {}),
        ("nemotron", "NemotronLayerNorm1P", "layer_norm", {"offset": 1.0}),
    ],
)
def test_norms_are_told_by_what_they_compute(
    family: str, name: str, recipe: str, attributes: Mapping[str, Any]
) -> None:
    """A norm that is called layer norm may be a root mean square, and a gain may be 1 + w."""
    found = decide(call_of(model_class(family, name)(16), torch.zeros(2, 5, 16)))
    assert found is not None
    assert (found[0], {key: found[1].attributes[key] for key in attributes}) == (recipe, attributes)
    assert "offset" in attributes or "offset" not in found[1].attributes


def test_norm_without_parameters_is_taken() -> None:
    """Llama 4's norm of queries and keys has no gain; a layer norm may have none either."""
    assert (
        decide(call_of(model_class("llama4", "Llama4TextL2Norm")(), torch.zeros(2, 5, 4, 16)))[0]
        == "rms_norm"
    )
    plain = torch.nn.LayerNorm(16, elementwise_affine=False)
    assert decide(call_of(plain, torch.zeros(2, 5, 16)))[0] == "layer_norm"


def test_unknown_gain_is_refused() -> None:
    """A gain of 0.5 + w fits every hint, and no recipe takes it."""
    call = call_of(HalfGain(), torch.zeros(2, 5, 16))
    assert RECIPES["rms_norm"].recipe.bindings(call)
    assert decide(call) is None


def test_channels_first_norm_is_taken() -> None:
    """ConvNeXt normalises [N, C, height, width] over C, also when the width has the same size."""
    norm = model_class("convnext", "ConvNextLayerNorm")
    for shape in ((2, 16, 8, 4), (2, 16, 8, 16)):
        found = decide(call_of(norm(16, data_format="channels_first"), torch.zeros(shape)))
        assert found is not None
        assert found[1].attributes.get("axis") == 1


@pytest.mark.parametrize(
    ("family", "name", "arguments", "gate_first"),
    [
        ("mamba2", "MambaRMSNormGated", {"hidden_size": 32, "group_size": 32}, True),
        ("granitemoehybrid", "GraniteMoeHybridRMSNormGated", {"hidden_size": 32, "group_size": 8}, True),
        ("qwen3_next", "Qwen3NextRMSNormGated", {"hidden_size": 32}, False),
    ],
)
def test_gated_norms_are_told_apart(
    family: str, name: str, arguments: Mapping[str, int], gate_first: bool
) -> None:
    """Whether the gate comes before or after the norm shows in numbers alone; groups are read."""
    module = model_class(family, name)(**arguments)
    found = decide(call_of(module, torch.zeros(3, 5, 32), torch.zeros(3, 5, 32)))
    assert found is not None
    assert found[1].attributes["gate_first"] is gate_first
    assert found[1].attributes["groups"] == 32 // arguments.get("group_size", 32)


@pytest.mark.parametrize(
    ("module", "recipe"),
    [
        (torch.nn.GroupNorm(4, 16), "group_norm"),
        (torch.nn.GroupNorm(16, 16, affine=False), "group_norm"),
        (torch.nn.BatchNorm2d(16), "batch_norm"),
        (torch.nn.BatchNorm2d(16, affine=False), "batch_norm"),
    ],
)
def test_norms_of_images_are_taken(module: torch.nn.Module, recipe: str) -> None:
    """Group, instance and batch normalisation, with and without parameters."""
    assert decide(call_of(module.eval(), torch.zeros(2, 16, 5, 3)))[0] == recipe


@pytest.mark.parametrize(
    ("module", "function"),
    [
        (torch.nn.GELU(), "gelu"),
        (torch.nn.GELU(approximate="tanh"), "gelu_tanh"),
        (torch.nn.Hardswish(), "hard_swish"),
        (torch.nn.ReLU6(), "relu6"),
        (torch.nn.Softplus(), "softplus"),
        (torch.nn.Mish(), "mish"),
        (torch.nn.Sigmoid(), "sigmoid"),
    ],
)
def test_activations_are_told_by_what_they_compute(module: torch.nn.Module, function: str) -> None:
    """The right function is found among thirteen, three kinds of gelu included."""
    found = decide(call_of(module, torch.zeros(2, 5, 8)))
    assert found is not None
    assert found[1].attributes == {"function": function}


@pytest.mark.parametrize("module", [Slope(), torch.nn.Identity(), torch.nn.Flatten(), torch.nn.MaxPool1d(2)])
def test_what_is_no_known_activation_is_refused(module: torch.nn.Module) -> None:
    """A slope of 0.3, and modules that only move data, are no activation."""
    assert decide(call_of(module, torch.zeros(2, 5, 8))) is None


@pytest.mark.parametrize(
    ("function", "args", "attributes", "taken"),
    [
        (torch.softmax, (-1,), {}, True),
        (torch.nn.functional.softmax, (), {"dim": 2}, True),
        (torch.softmax, (1,), {}, False),
    ],
)
def test_softmax_is_taken_over_the_last_axis_only(
    function: Any, args: tuple[int, ...], attributes: Mapping[str, int], taken: bool
) -> None:
    """Minus one and the last axis are the same; another axis is not bound."""
    x = torch.zeros(2, 3, 4, device="meta")
    call = Call(
        name="a#softmax", operation="softmax", module=None, owner="A", function=function, args=(x, *args),
        kwargs=dict(attributes), attributes=attributes,
    )  # fmt: skip
    found = decide(call)
    assert (found is not None) is taken


def kernel(name: str) -> Any:
    return load_kernel_source(RECIPES[name].kernel.source, name, f"{name}/kernel.py")


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize(
    ("name", "shapes", "attributes"),
    [
        ("layer_norm", ((130, 8192), (8192,), (8192,)), {"eps": 1e-5, "offset": 1.0}),
        ("rms_norm", ((130, 16384), (16384,)), {"eps": 1e-5, "offset": 1.0}),
        ("gated_rms_norm", ((130, 8192), (130, 8192), (8192,)), {"eps": 1e-5, "gate_first": False}),
        ("softmax", ((130, 16384),), {}),
        ("layer_scale", ((130, 16384), (16384,)), {}),
        ("group_norm", ((1, 200, 16381), (200,), (200,)), {"groups": 2, "eps": 1e-5}),
    ],
)
def test_memory_stays_bounded(
    name: str, shapes: tuple[tuple[int, ...], ...], attributes: Mapping[str, Any], dtype: Any
) -> None:
    """The widest rows that a recipe takes fit SBUF of gen2, in either dtype."""
    arrays = [np.ones(shape, dtype=dtype) for shape in shapes]
    assert run_kernel(kernel(name), *arrays, target="inf2", **attributes).peak_sbuf_bytes <= SBUF_LIMIT_BYTES


@pytest.mark.parametrize("tokens", [1, 257])
def test_layer_norm_of_rows_far_from_zero_keeps_its_digits(tokens: int) -> None:
    """A mean of a thousand deviations does not cancel the variance, as one pass over the squares would."""
    x = np.random.default_rng(0).standard_normal((tokens, 256)).astype(np.float32) + np.float32(1000)
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(1, keepdims=True)) / np.sqrt(exact.var(1, keepdims=True) + 1e-5)
    out = run_kernel(kernel("layer_norm"), x, None, None, eps=1e-5).outputs[0]
    np.testing.assert_allclose(out, exact, rtol=0, atol=2e-4)


def test_sine_is_right_at_every_turn() -> None:
    """Around all multiples of half a turn up to position 131072 the tables are those of the float32 angle."""
    turns = np.arange(0, 131072 / math.pi, 7).astype(np.float64)
    positions = np.unique(np.clip(np.round(turns * math.pi), 0, 131072)).astype(np.int32)[None]
    frequencies = np.array([[1.0, 0.99999, 0.731, 1e-4]], dtype=np.float32)
    cos, sin = run_kernel(
        kernel("rope_table"), positions, frequencies, scaling=1.0, layout="once", target="inf2"
    ).outputs
    angles = (positions[0].astype(np.float32)[:, None] * frequencies).astype(np.float64)
    np.testing.assert_allclose(sin, np.sin(angles), rtol=0, atol=3e-7)
    np.testing.assert_allclose(cos, np.cos(angles), rtol=0, atol=3e-7)


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("keeps", [False, True])
def test_rotary_tables_keep_the_dtype_of_the_model(keeps, device):
    """OLMo 2's tables stay in float32 beside bfloat16 activations; Llama's are cast: seen on the call itself.

    In a walk the frequencies may have values although the activations have none.
    """

    class Tables(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("inv_freq", 1.0 / 10_000 ** (torch.arange(0, 16, 2) / 16))

        def forward(self, x, position_ids):
            angles = position_ids[..., None].float() * self.inv_freq
            angles = torch.cat((angles, angles), -1)
            tables = angles.cos(), angles.sin()
            return tables if keeps else tuple(table.to(x.dtype) for table in tables)

    x, positions = torch.zeros(1, 4, 16, dtype=torch.bfloat16), torch.arange(4)[None]
    bindings = RECIPES["rope_table"].recipe.bindings(call_of(Tables().to(device), x, positions))
    assert bindings
    assert all(binding.attributes["keeps_float32"] is keeps for binding in bindings)
