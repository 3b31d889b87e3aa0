"""One-dimensional convolution, with stride, padding, dilation and groups; its weight may be weight-normed.

Matches modules called with one sequence [B, C, L] whose parameters are a `weight` [O, C / groups, K], or the two from
which weight normalisation makes it (a direction [O, C / groups, K] and a gain), and perhaps a `bias` [O]: the stem of
Whisper, the feature extractor and the positional convolution of Wav2Vec2. `bind` reads stride, padding, dilation and
groups from the module. Windows that do not overlap are for `patch_embed`, one input channel per group is for
`depthwise_conv`. Any size up to C / groups * K = 16384; float32 and bfloat16.
Sizes: B = sequences, C = channels, L = length, K = taps, O = output channels, Z = products of a sum.
"""

from __future__ import annotations

import math
from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size, Tolerance
from neuron_port.types import WeightSource

MOST_PRODUCTS = 16384  # of one output: weights of 128 output channels stay in SBUF
OUTPUTS_LAST = "permute:1,2,0"
# Names under which torch keeps (direction, gain) of a weight-normed `weight`, new and old.
WEIGHT_NORM = (
    ("parametrizations.weight.original1", "parametrizations.weight.original0"),
    ("weight_v", "weight_g"),
)


def bind(call: Any) -> Binding | None:
    """Accept a module with `weight` [O, C / groups, K], weight-normed or not, and an optional `bias` [O]."""
    module = call.module
    if call.operation != "module" or module is None or len(call.inputs) != 1:
        return None
    x = call.inputs[0]
    parameters = dict(module.named_parameters())
    weights = weight_sources(set(parameters) - {"bias"})
    if x.dtype not in RECIPE.dtypes or weights is None:
        return None
    weight = parameters[weights["weight"].name]
    if weight.ndim != 3:
        return None
    attributes = geometry(module, weight)
    if attributes is None or len(x.shape) != 3 or x.shape[1] != weight.shape[1] * attributes["groups"]:
        return None
    if "bias" in parameters:
        weights["bias"] = WeightSource(name="bias")
    return Binding(weights=weights, attributes=attributes)


def weight_sources(names: set[str]) -> dict[str, WeightSource] | None:
    """Which parameters make the weight; None if they are not those of a convolution."""
    if names == {"weight"}:
        return {"weight": WeightSource(name="weight", transform=OUTPUTS_LAST)}
    for direction, gain in WEIGHT_NORM:
        if names == {direction, gain}:
            return {
                "weight": WeightSource(name=direction, transform=OUTPUTS_LAST),
                "gain": WeightSource(name=gain, transform=OUTPUTS_LAST),
            }
    return None


def geometry(module: Any, weight: Any) -> dict[str, int] | None:
    """How the kernel meets the sequence, as the operator's attributes; None if another recipe, or none, serves it."""
    taps = weight.shape[2]
    if getattr(module, "kernel_size", None) != (taps,) or getattr(module, "transposed", True):
        return None
    (stride,), (dilation,), groups, padding = module.stride, module.dilation, module.groups, module.padding
    if padding in ("same", "valid"):
        reach = dilation * (taps - 1) if padding == "same" else 0
        if reach % 2:
            return None  # one zero more on one side
        padding = (reach // 2,)
    if module.padding_mode != "zeros" and padding != (0,):
        return None
    windows = stride == taps != 1 and padding == (0,) and dilation == 1 and groups == 1
    depthwise = groups == weight.shape[0] != 1
    if windows or depthwise or math.prod(weight.shape[1:]) > MOST_PRODUCTS:
        return None
    return {"stride": stride, "padding": padding[0], "dilation": dilation, "groups": groups}


def forward(operator: Any, weights: Any, attributes: Any, x: Any) -> Any:
    """Convolve [B, C, L]. A weight-normed weight [C / groups, K, O] is made from its direction and its gain."""
    weight = weights["weight"]
    gain = weights.get("gain")
    if gain is not None:
        direction = weight.float()
        others = [axis for axis, size in enumerate(gain.shape) if size == 1]
        norm = (direction * direction).sum(others, keepdim=True).sqrt()
        weight = (direction * (gain.float() / norm)).to(weight.dtype)
    return operator(x, weight, weights.get("bias"), **attributes)


def inputs(sizes: Any, draw: Any) -> tuple[Any, ...]:
    """x [B, C, L], weight [C / groups, K, O] and, if sizes say so, bias [O]."""
    x = draw.normal((sizes["B"], sizes["C"], sizes["L"]))
    taps = (sizes["C"] // sizes.get("groups", 1), sizes["K"])
    weight = draw.weight((math.prod(taps), sizes["O"])).reshape(*taps, sizes["O"])
    return (x, weight, draw.normal((sizes["O"],))) if sizes.get("bias") else (x, weight)


def flops(
    x: tuple[int, ...],
    weight: tuple[int, ...],
    bias: tuple[int, ...] | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> int:
    """Two per multiply-add, zeros outside the sequence included."""
    outputs = (x[2] + 2 * padding - dilation * (weight[1] - 1) - 1) // stride + 1
    return 2 * x[0] * outputs * math.prod(weight)


def _case(
    name: str,
    kind: Any,
    *sizes: int,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    bias: int = 1,
    scale: float = 1.0,
) -> Case:
    named = dict(zip("BCLKO", sizes, strict=True)) | {"bias": bias, "groups": groups}
    named["Z"] = named["C"] // groups * named["K"]
    attributes = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return Case(name=name, kind=kind, sizes=named, attributes=attributes, scale=scale)


RECIPE = Recipe(
    name="conv1d",
    summary="One-dimensional convolution with stride, padding, dilation and groups.",
    schema="(Tensor x, Tensor weight, Tensor? bias, int stride, int padding, int dilation, int groups) -> Tensor",
    operation="module",
    bind=bind,
    forward=forward,
    sequence_axes=(None,),
    inputs=inputs,
    flops=flops,
    tolerance=Tolerance(reduction_length="Z"),
    sizes={
        "B": Size(least=1, most=64),
        "L": Size(least=32, most=65536),
    },
    cases=(
        _case("stem of a speech encoder", "ordinary", 1, 80, 200, 3, 96, padding=1),
        _case("every other frame", "ordinary", 2, 160, 150, 3, 192, stride=2, padding=1),
        _case("a waveform", "ordinary", 1, 1, 1600, 10, 64, stride=5, bias=0),
        _case("positions, in groups", "ordinary", 2, 48, 40, 32, 48, padding=16, groups=3),
        _case("one tap", "tail", 3, 70, 50, 1, 33),
        _case("dilated", "tail", 1, 130, 101, 5, 131, padding=6, dilation=3),
        _case("stride beyond the taps", "tail", 1, 5, 97, 2, 7, stride=3, padding=1),
        _case("small values", "stress", 1, 32, 64, 3, 32, padding=1, scale=1e-3),
        _case("large values", "stress", 1, 48, 100, 3, 40, padding=1, scale=30.0),
        _case("several bands", "large", 1, 40, 2300, 3, 130, padding=1),
    ),
)
