"""Patch embedding: a 1-D, 2-D or 3-D convolution whose kernel equals its stride, so that patches do not overlap.

Matches modules whose parameters are a `weight` [O, C, R, S] (or [O, C, S], [O, C, D, R, S]) and perhaps a `bias` [O],
whose `kernel_size` equals their `stride`, without padding, dilation or groups: the first layer of ViT, CLIP, SigLIP,
DINOv2 and Qwen-VL, and the downsampling of ConvNext. The result is made in reading order of patches, features last,
which is what models turn it into next. A patch has up to 8192 elements; float32 and bfloat16.
Sizes: B = images, C = channels, V, U = rows and columns of patches, R, S = of one patch, O = output features.
"""

from __future__ import annotations

import math
from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size, Tolerance
from neuron_port.types import WeightSource

MOST_ROWS = 128  # of a patch, each on its own partition
MOST_COLUMNS = 256  # of a patch
MOST_PRODUCTS = 8192  # of a patch: the weights of 64 output features stay in SBUF
MOST_ROW_BYTES = 64 * 1024  # of one row of patches, in float32 on each partition
LAYOUTS = {3: "permute:1,2,0", 4: "permute:1,2,3,0", 5: "permute:1,2,3,4,0"}  # output features last


def bind(call: Any) -> Binding | None:
    """Accept a module with `weight` [O, C, *kernel], an optional `bias` [O], and patches that do not overlap."""
    module = call.module
    if call.operation != "module" or module is None or len(call.inputs) != 1:
        return None
    x = call.inputs[0]
    parameters = dict(module.named_parameters())
    if x.dtype not in RECIPE.dtypes or set(parameters) not in ({"weight"}, {"weight", "bias"}):
        return None
    weight = parameters["weight"]
    if weight.ndim not in LAYOUTS or len(x.shape) != weight.ndim or x.shape[1] != weight.shape[1]:
        return None
    kernel = tuple(weight.shape[2:])
    if not is_patchwise(module, kernel) or any(map(int.__lt__, x.shape[2:], kernel)):
        return None
    if not fits(x.shape, weight.shape):
        return None
    weights = {"weight": WeightSource(name="weight", transform=LAYOUTS[weight.ndim])}
    if "bias" in parameters:
        weights["bias"] = WeightSource(name="bias")
    return Binding(weights=weights)


def is_patchwise(module: Any, kernel: tuple[int, ...]) -> bool:
    """Whether the module steps from patch to patch: no overlap, padding, dilation or groups; more than one pixel."""
    nothing, ones = (0,) * len(kernel), (1,) * len(kernel)
    return (
        getattr(module, "kernel_size", None) == getattr(module, "stride", None) == kernel
        and getattr(module, "padding", None) in (nothing, "valid")
        and getattr(module, "dilation", None) == ones
        and getattr(module, "groups", None) == 1
        and not getattr(module, "transposed", True)
        and kernel != ones
        and (len(kernel) == 1 or kernel[-2] <= MOST_ROWS)
    )


def fits(x: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Whether weights [O, C, *kernel] and a row of patches fit SBUF; at least 64 partitions work."""
    products, columns = math.prod(weight[1:]), weight[-1]
    row_bytes = -(-products // columns // 64) * x[-1] * 4
    return products <= MOST_PRODUCTS and columns <= MOST_COLUMNS and row_bytes <= MOST_ROW_BYTES


def forward(operator: Any, weights: Any, attributes: Any, x: Any) -> Any:
    """Embed [B, C, S], [B, C, H, W] or [B, C, D, H, W]; the result has features second, as the layer's own."""
    weight = weights["weight"]
    images, channels = x.shape[:2]
    kernel = weight.shape[1:-1]
    counts = [size // patch for size, patch in zip(x.shape[2:], kernel, strict=True)]
    if len(kernel) == 1:
        x, weight = x.unsqueeze(2), weight.unsqueeze(1)
    elif len(kernel) == 3:  # the frames of a patch are channels of an image
        frames, depth = counts[0], kernel[0]
        whole = x[:, :, : frames * depth].reshape(images, channels, frames, depth, *x.shape[3:])
        x = whole.transpose(1, 2).reshape(images * frames, channels * depth, *x.shape[3:])
        weight = weight.reshape(channels * depth, *weight.shape[2:])
    out = operator(x, weight, weights.get("bias"))
    return out.reshape(images, *counts, weight.shape[-1]).movedim(-1, 1)


def inputs(sizes: Any, draw: Any) -> tuple[Any, ...]:
    """x [B, C, V * R, U * S] with `rest` more columns and rows, weight [C, R, S, O] and, if sizes say so, bias [O]."""
    height, width = sizes["V"] * sizes["R"], sizes["U"] * sizes["S"]
    rest = sizes.get("rest", 0)
    x = draw.normal((sizes["B"], sizes["C"], height + rest, width + rest))
    products = sizes["C"] * sizes["R"] * sizes["S"]
    weight = draw.weight((products, sizes["O"])).reshape(sizes["C"], sizes["R"], sizes["S"], sizes["O"])
    return (x, weight, draw.normal((sizes["O"],))) if sizes.get("bias") else (x, weight)


def flops(x: tuple[int, ...], weight: tuple[int, ...], bias: tuple[int, ...] | None = None) -> int:
    """Two per multiply-add of the product of patches and weights."""
    patches = x[0] * (x[2] // weight[1]) * (x[3] // weight[2])
    return 2 * patches * math.prod(weight)


def _case(name: str, kind: Any, *sizes: int, scale: float = 1.0, **more: int) -> Case:
    named = dict(zip("BCVURSO", sizes, strict=True)) | more
    return Case(name=name, kind=kind, sizes=named | {"K": named["C"] * named["R"] * named["S"]}, scale=scale)


RECIPE = Recipe(
    name="patch_embed",
    summary="Convolution over patches that do not overlap, with or without bias.",
    schema="(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor",
    operation="module",
    bind=bind,
    forward=forward,
    sequence_axes=(None,),
    inputs=inputs,
    flops=flops,
    tolerance=Tolerance(reduction_length="K"),
    sizes={
        "B": Size(least=1, most=256),
        "V": Size(least=1, most=64),
        "U": Size(least=1, most=256),
        "O": Size(least=1, most=4096),
    },
    cases=(
        _case("patches of 16 in colour", "ordinary", 1, 3, 5, 5, 16, 16, 192, bias=1),
        _case("patches of 14 without bias", "ordinary", 2, 3, 4, 4, 14, 14, 160),
        _case("patches that are rows", "ordinary", 140, 6, 1, 1, 14, 14, 96, bias=1),
        _case("a feature map in halves", "ordinary", 2, 96, 6, 6, 2, 2, 192, bias=1),
        _case("rows left over", "tail", 1, 3, 3, 13, 14, 14, 70, bias=1, rest=5),
        _case("a sequence", "tail", 3, 7, 1, 130, 1, 5, 33, bias=1),
        _case("one pixel high", "tail", 1, 1, 1, 1, 1, 2, 1),
        _case("small values", "stress", 1, 3, 3, 3, 8, 8, 130, scale=1e-3),
        _case("large values", "stress", 1, 3, 3, 3, 8, 8, 130, scale=30.0, bias=1),
        _case("more features than a pass", "large", 1, 3, 12, 12, 4, 4, 2100, bias=1),
    ),
)
