"""Experts of a mixture: each token is projected up, activated and projected down by the experts that a router chose.

Matches modules called with (tokens [T, H], index [T, C], scores [T, C]) whose parameters are two stacks of matrices,
[E, M, H] and [E, H, I] or both transposed, with or without biases [E, M] and [E, H]: gated (M = 2 I; gates and ups
one after the other, or in turns) or not (M = I), and with the bounds of gpt-oss. Shapes narrow; the probe decides on the
activation and on the order of gate and up. Any T; float32 and bfloat16.
Sizes: T = tokens, C = choices per token, E = experts, H = hidden, I = intermediate.
"""

from __future__ import annotations

from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size, Tolerance
from neuron_port.types import WeightSource

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu_squared", "relu")
# What classes of activations say in their names, most telling first. It orders the attempts and decides nothing.
ACTIVATION_HINTS = (
    ("silu", "silu"), ("swish", "silu"), ("relusquared", "relu_squared"), ("relu2", "relu_squared"),
    ("gelutanh", "gelu_tanh"), ("newgelu", "gelu_tanh"), ("fastgelu", "gelu_tanh"), ("gelu", "gelu"), ("relu", "relu"),
)  # fmt: skip
PLAIN = {"alpha": 1.0, "limit": 0.0, "up_offset": 0.0}


def bind(call: Any) -> tuple[Binding, ...]:
    """Accept (tokens [T, H], integers [T, C], scores [T, C]) and two stacks of matrices whose shapes fit."""
    module = call.module
    if call.operation != "module" or module is None or len(call.inputs) != 3:
        return ()
    x, index, scores = call.inputs
    if x.dtype not in RECIPE.dtypes or not index.dtype.startswith("int") or len(x.shape) != 2:
        return ()
    if index.shape != scores.shape or index.shape[:-1] != x.shape[:-1]:
        return ()
    shapes = {name: tuple(tensor.shape) for name, tensor in module.named_parameters()}
    variants = _variants(call)
    return tuple(
        Binding(weights=weights, attributes=PLAIN | {"gating": gating} | variant)
        for weights, gated in _roles(shapes, x.shape[-1])
        for gating in (_orders(call) if gated else ("none",))
        for variant in variants
    )


def _roles(shapes: dict[str, tuple[int, ...]], hidden: int) -> list[tuple[dict[str, WeightSource], bool]]:
    """Every way in which the parameters can be up and down projections: (sources by role, whether there is a gate)."""
    stacks = [name for name, shape in shapes.items() if len(shape) == 3]
    biases = [name for name, shape in shapes.items() if len(shape) == 2]
    if len(stacks) != 2 or len(biases) not in (0, 2) or len(stacks) + len(biases) != len(shapes):
        return []
    found = []
    for up, down in (stacks, stacks[::-1]):
        for transform in ("transpose", "none"):
            experts, features, columns = _laid_out(shapes[up], transform)
            intermediate = _laid_out(shapes[down], transform)[1]
            gated = columns == 2 * intermediate
            if features != hidden or not (gated or columns == intermediate):
                continue
            if _laid_out(shapes[down], transform) != (experts, intermediate, hidden):
                continue
            sources = {
                "up": WeightSource(name=up, transform=transform),
                "down": WeightSource(name=down, transform=transform),
            }
            if biases:
                up_bias, down_bias = biases if (up, down) == tuple(stacks) else biases[::-1]
                if shapes[up_bias] != (experts, columns) or shapes[down_bias] != (experts, hidden):
                    continue
                sources["up_bias"] = WeightSource(name=up_bias)
                sources["down_bias"] = WeightSource(name=down_bias)
            found.append((sources, gated))
    return found


def _laid_out(shape: tuple[int, ...], transform: str) -> tuple[int, ...]:
    return (shape[0], shape[2], shape[1]) if transform == "transpose" else shape


def _orders(call: Any) -> tuple[str, ...]:
    """How gate and up may share a stack, the likelier first."""
    orders = ("concatenated", "interleaved")
    return orders if call.attributes.get("is_concatenated", True) else orders[::-1]


def _variants(call: Any) -> list[dict[str, Any]]:
    """Activations, and the bounds that the module's own numbers suggest, the likelier first."""
    bounds = [
        value for name, value in call.attributes.items() if name.endswith("limit") and _is_positive(value)
    ]
    alphas = [
        value for name, value in call.attributes.items() if name.endswith("alpha") and _is_positive(value)
    ]
    variants: list[dict[str, Any]] = []
    for limit in bounds[:1]:
        bounded = {"activation": "silu", "limit": float(limit)}
        variants += [bounded | {"alpha": float(alpha), "up_offset": 1.0} for alpha in alphas[:1]]
        variants.append(bounded)
    variants += [{"activation": name} for name in _likely_activations(call.module)]
    return variants


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _likely_activations(module: Any) -> list[str]:
    """All activations; those that a child's class names come first."""
    names = [type(child).__name__.lower().replace("_", "") for child in module.children()]
    hinted = [kind for part, kind in ACTIVATION_HINTS for name in names if part in name]
    return sorted(ACTIVATIONS, key=lambda kind: hinted.index(kind) if kind in hinted else len(hinted))


def forward(operator: Any, weights: Any, attributes: Any, hidden: Any, index: Any, scores: Any) -> Any:
    """The weighted sum of the chosen experts, [T, H]."""
    return operator(
        hidden,
        index.int(),
        scores,
        weights["up"],
        weights["down"],
        weights.get("up_bias"),
        weights.get("down_bias"),
        **attributes,
    )


def inputs(sizes: Any, draw: Any) -> tuple[Any, ...]:
    """x [T, H], index [T, C] without repetition, scores [T, C], up [E, H, M], down [E, I, H], and perhaps biases."""
    tokens, experts, hidden, intermediate = sizes["T"], sizes["E"], sizes["H"], sizes["I"]
    columns = 2 * intermediate if sizes.get("gated", 1) else intermediate
    order = draw.weight((tokens, experts)).argsort(axis=-1)
    bias = sizes.get("bias", 0)
    return (
        draw.normal((tokens, hidden)),
        order[:, : sizes["C"]].astype("int32"),
        draw.weight((tokens, sizes["C"])),
        draw.weight((hidden, experts, columns)).transpose(1, 0, 2).copy(),
        draw.weight((intermediate, experts, hidden)).transpose(1, 0, 2).copy(),
        draw.normal((experts, columns)) if bias else None,
        draw.normal((experts, hidden)) if bias else None,
    )


def flops(*shapes: tuple[int, ...]) -> int:
    """Two per multiply-add of the chosen experts' products; those that are not chosen are no useful work."""
    index, up, down = shapes[1], shapes[3], shapes[4]
    return 2 * index[0] * index[1] * (up[1] * up[2] + down[1] * down[2])


SWIGLU = {"activation": "silu", "gating": "concatenated"} | PLAIN
GPT_OSS = {"activation": "silu", "gating": "interleaved", "alpha": 1.702, "limit": 7.0, "up_offset": 1.0}
UNGATED = {"activation": "relu_squared", "gating": "none"} | PLAIN


def _case(name: str, kind: Any, attributes: dict[str, Any], scale: float = 1.0, **sizes: int) -> Case:
    flags = {"gated": int(attributes["gating"] != "none")}
    return Case(name=name, kind=kind, sizes=sizes | flags, attributes=attributes, scale=scale)


RECIPE = Recipe(
    name="moe_experts",
    summary="Mixture of experts: the chosen experts' MLPs of each token, summed with the router's scores.",
    schema="(Tensor x, Tensor index, Tensor scores, Tensor up, Tensor down, Tensor? up_bias, Tensor? down_bias, "
    "str activation, str gating, float alpha, float limit, float up_offset) -> Tensor",
    operation="module",
    bind=bind,
    forward=forward,
    sequence_axes=(0, 0, 0),
    domains={1: "distinct"},
    mixed_dtypes=True,  # routers often give float32 scores
    inputs=inputs,
    flops=flops,
    tolerance=Tolerance(reduction_length="I"),
    # C and E go together (C at most E): they stay as the cases have them.
    sizes={
        "T": Size(least=1, most=8192),
        "H": Size(least=1, most=8192),
        "I": Size(least=1, most=32768),
    },
    cases=(
        _case("one token, two of eight", "ordinary", SWIGLU, T=1, C=2, E=8, H=256, I=384),
        _case("a prompt", "ordinary", SWIGLU, T=64, C=2, E=4, H=256, I=128),
        _case("bounded, interleaved, with bias", "ordinary", GPT_OSS, T=5, C=2, E=12, H=192, I=160, bias=1),
        _case("not gated", "ordinary", UNGATED, T=20, C=2, E=4, H=128, I=192),
        _case("gelu", "ordinary", SWIGLU | {"activation": "gelu"}, T=9, C=1, E=3, H=128, I=64),
        _case("gelu_tanh", "ordinary", SWIGLU | {"activation": "gelu_tanh"}, T=2, C=1, E=3, H=128, I=64),
        _case("tails everywhere", "tail", GPT_OSS, T=130, C=3, E=5, H=193, I=131, bias=1),
        _case("tails of chosen experts", "tail", SWIGLU, T=3, C=2, E=7, H=130, I=259),
        _case("all experts chosen", "tail", SWIGLU, T=1, C=3, E=3, H=65, I=33),
        _case("one of each", "tail", SWIGLU, T=1, C=1, E=1, H=1, I=1),
        _case("small values", "stress", SWIGLU, scale=1e-3, T=6, C=2, E=4, H=128, I=96),
        _case("large values", "stress", GPT_OSS, scale=30.0, T=6, C=2, E=16, H=128, I=96, bias=1),
        _case("two blocks of tokens", "large", SWIGLU, T=600, C=2, E=3, H=128, I=256),
    ),
)
