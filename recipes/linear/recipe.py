"""Linear layer with or without bias: projections of attention, language model heads, routers.

Matches modules whose parameters are a 2-D `weight` and perhaps a 1-D `bias`, called with a tensor of K features, of any
rank. The kernel wants the weight as [K, N]: one stored as [N, K] is transposed once, when it is loaded; one stored
as [K, N] (GPT-2) is taken as it is. A square weight may be either: both are tried, and the numeric probe decides.
Any size; float32 and bfloat16. Sizes: T = tokens, K = input features, N = output features.
"""

from __future__ import annotations

from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size, Tolerance
from neuron_port.types import WeightSource


def bind(call: Any) -> tuple[Binding, ...] | None:
    """Accept a module with a 2-D `weight` and an optional `bias` whose first input has the weight's K features."""
    module = call.module
    if call.operation != "module" or module is None or not call.inputs:
        return None
    x = call.inputs[0]
    parameters = dict(module.named_parameters())
    if x.dtype not in RECIPE.dtypes or not x.shape or set(parameters) not in ({"weight"}, {"weight", "bias"}):
        return None
    weight, bias = parameters["weight"], parameters.get("bias")
    if weight.ndim != 2:
        return None
    bindings = []
    for transform, features, columns in (("transpose", 1, 0), ("none", 0, 1)):
        fits = bias is None or tuple(bias.shape) == (weight.shape[columns],)
        if weight.shape[features] == x.shape[-1] and fits:
            weights = {"weight": WeightSource(name="weight", transform=transform)}
            if bias is not None:
                weights["bias"] = WeightSource(name="bias")
            bindings.append(Binding(weights=weights))
    return tuple(bindings) or None


def forward(operator: Any, weights: Any, attributes: Any, *args: Any, **options: Any) -> Any:
    """Project [..., K] to [..., N] through the operator on [T, K]; arguments after the first do not matter."""
    hidden = args[0] if args else next(iter(options.values()))
    rows = hidden.reshape(-1, hidden.shape[-1])
    result = operator(rows, weights["weight"], weights.get("bias"))
    return result.reshape(*hidden.shape[:-1], result.shape[-1])


def inputs(sizes: Any, draw: Any) -> tuple[Any, ...]:
    """x [T, K], weight [K, N] and, if sizes say so, bias [N]."""
    x = draw.normal((sizes["T"], sizes["K"]))
    weight = draw.weight((sizes["K"], sizes["N"]))
    return (x, weight, draw.normal((sizes["N"],))) if sizes.get("bias") else (x, weight)


def flops(x: tuple[int, ...], weight: tuple[int, ...], bias: tuple[int, ...] | None = None) -> int:
    """Two per multiply-add of the product."""
    return 2 * x[0] * weight[0] * weight[1]


RECIPE = Recipe(
    name="linear",
    summary="Matrix product with a weight, with or without bias.",
    schema="(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor",
    operation="module",
    bind=bind,
    forward=forward,
    sequence_axes=(-2,),
    inputs=inputs,
    flops=flops,
    tolerance=Tolerance(reduction_length="K"),
    sizes={
        "T": Size(least=1, most=32768),
        "K": Size(least=1, most=65536),
        "N": Size(least=1, most=262144),
    },
    cases=(
        Case(name="one token", kind="ordinary", sizes={"T": 1, "K": 576, "N": 1536}),
        Case(name="one token with bias", kind="ordinary", sizes={"T": 1, "K": 512, "N": 640, "bias": 1}),
        Case(name="four tokens", kind="ordinary", sizes={"T": 4, "K": 256, "N": 4608}),
        Case(name="a prompt with bias", kind="ordinary", sizes={"T": 128, "K": 576, "N": 192, "bias": 1}),
        Case(name="tails everywhere", kind="tail", sizes={"T": 130, "K": 577, "N": 515, "bias": 1}),
        Case(name="less than a chunk of features", kind="tail", sizes={"T": 3, "K": 65, "N": 7}),
        Case(name="one of each", kind="tail", sizes={"T": 1, "K": 1, "N": 1}),
        Case(name="small values", kind="stress", sizes={"T": 5, "K": 640, "N": 130}, scale=1e-3),
        Case(name="large values", kind="stress", sizes={"T": 20, "K": 640, "N": 130, "bias": 1}, scale=30.0),
        Case(name="two blocks of tokens", kind="large", sizes={"T": 1100, "K": 320, "N": 600}),
        Case(name="long sums", kind="large", sizes={"T": 16, "K": 4224, "N": 512}),
    ),
)
