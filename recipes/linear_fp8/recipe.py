"""Linear layer with float8 weights and one scale for each output feature: x @ weight * scale (+ bias).

The kernel takes the bits of float8, as uint8: e5m2, or e4m3 of magnitude at most 240. NeuronCores before v4 have the
e4m3 with infinities, whose bits are those of torch's float8_e4m3fn up to 240; above, where e4m3fn goes on to 448, they
mean infinity. What a checkpoint's e4m3fn weights reach is data, so a layer that holds them is not bound. Bound are a 2-D
tensor [N, K] (parameter or buffer) of float8_e5m2, or of bytes in a module whose `float8_form` says what their bits mean
and promises for e4m3 that they stay within 240 (`convert --weight-format fp8` makes such layers: scale = max |w| / 240);
beside it one floating tensor of N elements whose name speaks of a scale, perhaps a `bias` [N], and nothing else.
Activations stay in their dtype. Any size; float32 and bfloat16. Sizes: T = tokens, K = input features, N = output
features.
"""

from __future__ import annotations

import math
from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size, Tolerance
from neuron_port.types import WeightSource

E4M3_CODES, E5M2_CODES = 0x78, 0x50  # of magnitudes that `inputs` draws: up to 240, and up to 28


def bind(call: Any) -> Binding | None:
    """Accept a module with a float8 weight [N, K], or its bits, a scale of N elements and perhaps a bias."""
    module = call.module
    if call.operation != "module" or module is None or not call.inputs or not call.inputs[0].shape:
        return None
    x = call.inputs[0]
    form = getattr(module, "float8_form", "e5m2")
    stored_dtype = "uint8" if hasattr(module, "float8_form") else "float8_e5m2"
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    weights = roles(tensors, x.shape[-1], f"torch.{stored_dtype}")
    if x.dtype not in RECIPE.dtypes or weights is None or form not in ("e4m3", "e5m2"):
        return None
    return Binding(weights=weights, attributes={"form": form})


def roles(tensors: dict[str, Any], features: int, stored_dtype: str) -> dict[str, WeightSource] | None:
    """Which tensor is weight, scale and bias, if that is all there is. This file imports no torch: dtypes are names."""
    stored = [
        name for name, tensor in tensors.items() if tensor.ndim == 2 and str(tensor.dtype) == stored_dtype
    ]
    if len(stored) != 1 or tensors[stored[0]].shape[1] != features:
        return None
    columns = tensors[stored[0]].shape[0]
    weights = {"weight": WeightSource(name=stored[0], transform="transpose")}
    for name, tensor in tensors.items():
        if name == stored[0]:
            continue
        role = "scale" if "scale" in name.lower() else "bias" if name.endswith("bias") else None
        if role is None or role in weights or math.prod(tensor.shape) != columns:
            return None
        weights[role] = WeightSource(name=name)
    return weights if "scale" in weights else None


def forward(operator: Any, weights: Any, attributes: Any, *args: Any, **options: Any) -> Any:
    """Project [..., K] to [..., N] through the operator on [T, K]; arguments after the first do not matter."""
    hidden = args[0] if args else next(iter(options.values()))
    rows = hidden.reshape(-1, hidden.shape[-1])
    import torch  # a view by dtype has no other name

    bits = weights["weight"]
    if bits.dtype is not torch.uint8:
        bits = bits.to(torch.float8_e5m2).view(torch.uint8)  # the probe draws weights in float32
    result = operator(rows, bits, weights["scale"].reshape(-1), weights.get("bias"), **attributes)
    return result.reshape(*hidden.shape[:-1], result.shape[-1])


def inputs(sizes: Any, draw: Any) -> tuple[Any, ...]:
    """x [T, K], weight [K, N] as bits of float8, scale [N] and, if sizes say so, bias [N]."""
    features, columns = sizes["K"], sizes["N"]
    x = draw.normal((sizes["T"], features))
    codes = E5M2_CODES if sizes.get("e5m2") else E4M3_CODES
    magnitude = draw.integers(0, codes, (features, columns))
    weight = (magnitude + 128 * draw.integers(0, 2, (features, columns))).astype("uint8")
    root_mean_square = 4.2 if sizes.get("e5m2") else 63
    scale = draw.weight((columns,)) * (columns / features) ** 0.5 / root_mean_square
    return (x, weight, scale, draw.normal((columns,))) if sizes.get("bias") else (x, weight, scale)


def flops(x: tuple[int, ...], weight: tuple[int, ...], *others: Any) -> int:
    """Two per multiply-add of the product."""
    return 2 * x[0] * weight[0] * weight[1]


RECIPE = Recipe(
    name="linear_fp8",
    summary="Matrix product with float8 weights that have a scale for each output feature.",
    schema="(Tensor x, Tensor weight, Tensor scale, Tensor? bias=None, str form='e4m3') -> Tensor",
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
        Case(name="one token", kind="ordinary", sizes={"T": 1, "K": 384, "N": 1024}),
        Case(name="four tokens with bias", kind="ordinary", sizes={"T": 4, "K": 256, "N": 1152, "bias": 1}),
        Case(name="a prompt with bias", kind="ordinary", sizes={"T": 128, "K": 576, "N": 192, "bias": 1}),
        Case(
            name="e5m2, one token",
            kind="ordinary",
            sizes={"T": 1, "K": 256, "N": 640, "e5m2": 1},
            attributes={"form": "e5m2"},
        ),
        Case(
            name="e5m2, tails everywhere",
            kind="tail",
            sizes={"T": 70, "K": 193, "N": 131, "e5m2": 1, "bias": 1},
            attributes={"form": "e5m2"},
        ),
        Case(name="tails everywhere", kind="tail", sizes={"T": 130, "K": 577, "N": 515, "bias": 1}),
        Case(name="less than a chunk of features", kind="tail", sizes={"T": 3, "K": 65, "N": 7}),
        Case(name="one of each", kind="tail", sizes={"T": 1, "K": 1, "N": 1}),
        Case(name="small values", kind="stress", sizes={"T": 5, "K": 640, "N": 130}, scale=1e-3),
        Case(name="large values", kind="stress", sizes={"T": 20, "K": 640, "N": 130, "bias": 1}, scale=30.0),
        Case(name="two blocks of tokens", kind="large", sizes={"T": 600, "K": 256, "N": 300}),
        Case(name="long sums", kind="large", sizes={"T": 16, "K": 2112, "N": 256}),
    ),
)
