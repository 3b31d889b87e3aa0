"""Two-dimensional convolution, with stride, padding, dilation and groups.

Matches modules whose parameters are a `weight` [O, C / groups, R, S] and perhaps a `bias` [O], called with one image
[B, C, H, W]. `bind` reads stride, padding, dilation and groups from the module; zeros outside, the same number of them
on opposite sides. Patches that do not overlap are for `patch_embed`, one input channel per group is for
`depthwise_conv`. Any size up to C / groups * R * S = 16384; float32 and bfloat16.
Sizes: B = images, C = channels, H, W = image, R, S = kernel, O = output channels, K = products of a sum.
"""

from __future__ import annotations

import math
from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size, Tolerance
from neuron_port.types import WeightSource

MOST_PRODUCTS = 16384  # of one output: weights of 128 output channels stay in SBUF
ATTRIBUTES = ("stride_y", "stride_x", "padding_y", "padding_x", "dilation_y", "dilation_x", "groups")


def bind(call: Any) -> Binding | None:
    """Accept a module with `weight` [O, C / groups, R, S] and an optional `bias` [O]."""
    module = call.module
    if call.operation != "module" or module is None or len(call.inputs) != 1:
        return None
    x = call.inputs[0]
    parameters = dict(module.named_parameters())
    if x.dtype not in RECIPE.dtypes or set(parameters) not in ({"weight"}, {"weight", "bias"}):
        return None
    weight = parameters["weight"]
    attributes = geometry(module, weight)
    if attributes is None or len(x.shape) != 4 or x.shape[1] != weight.shape[1] * attributes["groups"]:
        return None
    weights = {"weight": WeightSource(name="weight", transform="permute:1,2,3,0")}
    if "bias" in parameters:
        weights["bias"] = WeightSource(name="bias")
    return Binding(weights=weights, attributes=attributes)


def geometry(module: Any, weight: Any) -> dict[str, int] | None:
    """How the kernel meets the image, as the operator's attributes; None if another recipe, or none, serves it."""
    kernel = tuple(weight.shape[2:])
    if (
        weight.ndim != 4
        or getattr(module, "kernel_size", None) != kernel
        or getattr(module, "transposed", True)
    ):
        return None
    stride, padding, dilation, groups = module.stride, module.padding, module.dilation, module.groups
    if padding in ("same", "valid"):
        reach = [step * (taps - 1) for step, taps in zip(dilation, kernel, strict=True)]
        if padding == "same" and any(length % 2 for length in reach):
            return None  # one zero more on one side
        padding = tuple(length // 2 for length in reach) if padding == "same" else (0, 0)
    if module.padding_mode != "zeros" and padding != (0, 0):
        return None
    patches = stride == kernel != (1, 1) and padding == (0, 0) and dilation == (1, 1) and groups == 1
    depthwise = groups == weight.shape[0] != 1
    if patches or depthwise or math.prod(weight.shape[1:]) > MOST_PRODUCTS:
        return None
    values = (*stride, *padding, *dilation, groups)
    return dict(zip(ATTRIBUTES, values, strict=True))


def forward(operator: Any, weights: Any, attributes: Any, x: Any) -> Any:
    """Convolve [B, C, H, W]."""
    return operator(x, weights["weight"], weights.get("bias"), **attributes)


def inputs(sizes: Any, draw: Any) -> tuple[Any, ...]:
    """x [B, C, H, W], weight [C / groups, R, S, O] and, if sizes say so, bias [O]."""
    x = draw.normal((sizes["B"], sizes["C"], sizes["H"], sizes["W"]))
    taps = (sizes["C"] // sizes.get("groups", 1), sizes["R"], sizes["S"])
    weight = draw.weight((math.prod(taps), sizes["O"])).reshape(*taps, sizes["O"])
    return (x, weight, draw.normal((sizes["O"],))) if sizes.get("bias") else (x, weight)


def flops(
    x: tuple[int, ...],
    weight: tuple[int, ...],
    bias: tuple[int, ...] | None = None,
    *,
    stride_y: int = 1,
    stride_x: int = 1,
    padding_y: int = 0,
    padding_x: int = 0,
    dilation_y: int = 1,
    dilation_x: int = 1,
    groups: int = 1,
) -> int:
    """Two per multiply-add, zeros outside the image included."""
    rows = (x[2] + 2 * padding_y - dilation_y * (weight[1] - 1) - 1) // stride_y + 1
    columns = (x[3] + 2 * padding_x - dilation_x * (weight[2] - 1) - 1) // stride_x + 1
    return 2 * x[0] * rows * columns * math.prod(weight)


def _case(
    name: str,
    kind: Any,
    *image: int,
    kernel: tuple[int, int, int],
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    bias: int = 0,
    scale: float = 1.0,
) -> Case:
    sizes = dict(zip("BCHW", image, strict=True)) | dict(zip("RSO", kernel, strict=True))
    sizes |= {"K": sizes["C"] // groups * sizes["R"] * sizes["S"], "bias": bias, "groups": groups}
    values = (stride, stride, padding, padding, dilation, dilation, groups)
    attributes = dict(zip(ATTRIBUTES, values, strict=True))
    return Case(name=name, kind=kind, sizes=sizes, attributes=attributes, scale=scale)


RECIPE = Recipe(
    name="conv2d",
    summary="Two-dimensional convolution with stride, padding, dilation and groups.",
    schema=f"(Tensor x, Tensor weight, Tensor? bias, {', '.join(f'int {name}' for name in ATTRIBUTES)}) -> Tensor",
    operation="module",
    bind=bind,
    forward=forward,
    sequence_axes=(None,),
    inputs=inputs,
    flops=flops,
    tolerance=Tolerance(reduction_length="K"),
    sizes={
        "B": Size(least=1, most=64),
        "H": Size(least=3, most=1024),
        "W": Size(least=3, most=1024),
    },
    cases=(
        _case("stem of a residual network", "ordinary", 1, 3, 40, 40, kernel=(7, 7, 64), stride=2, padding=3),
        _case("three by three", "ordinary", 2, 64, 14, 14, kernel=(3, 3, 96), padding=1, bias=1),
        _case("one by one", "ordinary", 1, 160, 16, 16, kernel=(1, 1, 144), bias=1),
        _case("one by one, every other pixel", "ordinary", 3, 64, 14, 14, kernel=(1, 1, 128), stride=2),
        _case(
            "three by three, stride 2",
            "tail",
            3,
            130,
            15,
            13,
            kernel=(3, 3, 130),
            stride=2,
            padding=1,
            bias=1,
        ),
        _case("dilated, few channels", "tail", 1, 5, 33, 29, kernel=(3, 5, 7), padding=4, dilation=2, bias=1),
        _case("groups of four", "tail", 1, 16, 9, 9, kernel=(3, 3, 24), padding=1, groups=4),
        _case("a wide row", "tail", 1, 2, 3, 530, kernel=(2, 3, 3), padding=1, bias=1),
        _case("small values", "stress", 1, 32, 12, 12, kernel=(3, 3, 32), padding=1, scale=1e-3),
        _case("large values", "stress", 1, 32, 12, 12, kernel=(3, 3, 32), padding=1, scale=30.0, bias=1),
        _case("several bands", "large", 1, 140, 40, 60, kernel=(3, 3, 130), padding=1, bias=1),
    ),
)
