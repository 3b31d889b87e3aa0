"""Linear layer with int8 weights and one scale for each output feature: x @ weight * scale (+ bias).

Matches modules with a 2-D int8 tensor [N, K] (parameter or buffer), one floating tensor of N elements whose name
speaks of a scale, perhaps a `bias` [N], and nothing else, called with a tensor of K features. The scale multiplies as
it is (torchao), or after division by 127 (bitsandbytes keeps the largest magnitude): both are tried.
Activations stay in their dtype. Any size; float32 and bfloat16. Sizes: T = tokens, K = input features, N = output
features.
"""

from __future__ import annotations

import math
from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size, Tolerance
from neuron_port.types import WeightSource

DIVISORS = (1.0, 127.0)
SCALE_NAMES = ("scale", "scb")


def bind(call: Any) -> tuple[Binding, ...] | None:
    """Accept a module with an int8 weight [N, K], a scale of N elements and perhaps a bias."""
    module = call.module
    if call.operation != "module" or module is None or not call.inputs or not call.inputs[0].shape:
        return None
    x = call.inputs[0]
    weights = roles({**dict(module.named_parameters()), **dict(module.named_buffers())}, x.shape[-1])
    if x.dtype not in RECIPE.dtypes or weights is None:
        return None
    return tuple(Binding(weights=weights, attributes={"divisor": divisor}) for divisor in DIVISORS)


def roles(tensors: dict[str, Any], features: int) -> dict[str, WeightSource] | None:
    """Which tensor is weight, scale and bias, if that is all there is."""
    stored = [name for name, tensor in tensors.items() if tensor.ndim == 2 and is_int8(tensor)]
    if len(stored) != 1 or tensors[stored[0]].shape[1] != features:
        return None
    columns = tensors[stored[0]].shape[0]
    weights = {"weight": WeightSource(name=stored[0], transform="transpose")}
    for name, tensor in tensors.items():
        if name == stored[0]:
            continue
        is_scale = any(part in name.lower() for part in SCALE_NAMES)
        role = "scale" if is_scale else "bias" if name.endswith("bias") else None
        if role is None or role in weights or math.prod(tensor.shape) != columns:
            return None
        weights[role] = WeightSource(name=name)
    return weights if "scale" in weights else None


def is_int8(tensor: Any) -> bool:
    """Whether a torch tensor holds int8; this file imports no torch."""
    return str(tensor.dtype) == "torch.int8"


def forward(operator: Any, weights: Any, attributes: Any, *args: Any, **options: Any) -> Any:
    """Project [..., K] to [..., N] through the operator on [T, K]; arguments after the first do not matter."""
    hidden = args[0] if args else next(iter(options.values()))
    rows = hidden.reshape(-1, hidden.shape[-1])
    scale = weights["scale"].reshape(-1) / attributes["divisor"]
    result = operator(rows, weights["weight"], scale, weights.get("bias"))
    return result.reshape(*hidden.shape[:-1], result.shape[-1])


def inputs(sizes: Any, draw: Any) -> tuple[Any, ...]:
    """x [T, K], weight [K, N] in int8, scale [N] and, if sizes say so, bias [N]."""
    features, columns = sizes["K"], sizes["N"]
    x = draw.normal((sizes["T"], features))
    weight = draw.integers(-127, 128, (features, columns)).astype("int8")
    scale = draw.weight((columns,)) * (columns / features) ** 0.5 / 73  # 73: root mean square of the weights
    return (x, weight, scale, draw.normal((columns,))) if sizes.get("bias") else (x, weight, scale)


def flops(x: tuple[int, ...], weight: tuple[int, ...], *others: Any) -> int:
    """Two per multiply-add of the product."""
    return 2 * x[0] * weight[0] * weight[1]


RECIPE = Recipe(
    name="linear_int8",
    summary="Matrix product with int8 weights that have a scale for each output feature.",
    schema="(Tensor x, Tensor weight, Tensor scale, Tensor? bias=None) -> Tensor",
    operation="module",
    bind=bind,
    forward=forward,
    mixed_dtypes=True,  # the scale, in float32 beside 16-bit activations
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
        Case(name="four tokens with bias", kind="ordinary", sizes={"T": 4, "K": 256, "N": 2304, "bias": 1}),
        Case(name="a prompt with bias", kind="ordinary", sizes={"T": 128, "K": 576, "N": 192, "bias": 1}),
        Case(name="tails everywhere", kind="tail", sizes={"T": 130, "K": 577, "N": 515, "bias": 1}),
        Case(name="less than a chunk of features", kind="tail", sizes={"T": 3, "K": 65, "N": 7}),
        Case(name="one of each", kind="tail", sizes={"T": 1, "K": 1, "N": 1}),
        Case(name="small values", kind="stress", sizes={"T": 5, "K": 640, "N": 130}, scale=1e-3),
        Case(name="large values", kind="stress", sizes={"T": 20, "K": 640, "N": 130, "bias": 1}, scale=30.0),
        Case(name="two blocks of tokens", kind="large", sizes={"T": 600, "K": 256, "N": 300}),
        Case(name="long sums", kind="large", sizes={"T": 16, "K": 2112, "N": 256}),
    ),
)
