"""Depthwise convolution in one or two dimensions: every channel has a kernel of its own.

Matches modules whose parameters are a `weight` [C, 1, R, S] or [C, 1, S] and perhaps a `bias` [C], with as many groups
as channels: the 7 x 7 of ConvNext, the short convolution of RecurrentGemma, the convolution of Conformer blocks. `bind`
reads stride, padding and dilation from the module; a sequence is an image of one row. Up to 256 taps; float32 and
bfloat16.
Sizes: B = images, C = channels, H, W = image, R, S = kernel, K = taps.
"""

from __future__ import annotations

from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size, Tolerance
from neuron_port.types import WeightSource

MOST_TAPS = 256  # whose diagonal matrices stay in SBUF
ATTRIBUTES = ("stride_y", "stride_x", "padding_y", "padding_x", "dilation_y", "dilation_x")
OF_ONE_ROW = {"stride": 1, "padding": 0, "dilation": 1}  # along the axis that a sequence does not have


def bind(call: Any) -> Binding | None:
    """Accept a module with `weight` [C, 1, R, S] or [C, 1, S], an optional `bias` [C], and an input of C channels."""
    module = call.module
    if call.operation != "module" or module is None or len(call.inputs) != 1:
        return None
    x = call.inputs[0]
    parameters = dict(module.named_parameters())
    if x.dtype not in RECIPE.dtypes or set(parameters) not in ({"weight"}, {"weight", "bias"}):
        return None
    weight = parameters["weight"]
    if weight.ndim not in (3, 4) or len(x.shape) != weight.ndim or weight.shape[1] != 1:
        return None
    attributes = geometry(module, weight)
    if attributes is None or x.shape[1] != weight.shape[0]:
        return None
    weights = {"weight": WeightSource(name="weight")}
    if "bias" in parameters:
        weights["bias"] = WeightSource(name="bias")
    return Binding(weights=weights, attributes=attributes)


def geometry(module: Any, weight: Any) -> dict[str, int] | None:
    """How the kernel meets the image, as the operator's attributes; None if this recipe does not serve it."""
    kernel = tuple(weight.shape[2:])
    if getattr(module, "kernel_size", None) != kernel or getattr(module, "transposed", True):
        return None
    stride, padding, dilation = module.stride, module.padding, module.dilation
    if padding in ("same", "valid"):
        reach = [step * (taps - 1) for step, taps in zip(dilation, kernel, strict=True)]
        if padding == "same" and any(length % 2 for length in reach):
            return None  # one zero more on one side
        padding = tuple(length // 2 if padding == "same" else 0 for length in reach)
    if module.padding_mode != "zeros" and any(padding):
        return None
    if module.groups != weight.shape[0] or weight[0, 0].numel() > MOST_TAPS:
        return None
    if len(kernel) == 1:
        stride, padding, dilation = (1, *stride), (0, *padding), (1, *dilation)
    return dict(zip(ATTRIBUTES, (*stride, *padding, *dilation), strict=True))


def forward(operator: Any, weights: Any, attributes: Any, x: Any) -> Any:
    """Convolve [B, C, H, W], or [B, C, W] as an image of one row."""
    weight = weights["weight"].squeeze(1)
    if x.ndim == 4:
        return operator(x, weight, weights.get("bias"), **attributes)
    return operator(x.unsqueeze(2), weight.unsqueeze(1), weights.get("bias"), **attributes).squeeze(2)


def inputs(sizes: Any, draw: Any) -> tuple[Any, ...]:
    """x [B, C, H, W], weight [C, R, S] and, if sizes say so, bias [C]."""
    x = draw.normal((sizes["B"], sizes["C"], sizes["H"], sizes["W"]))
    taps = draw.weight((sizes["R"] * sizes["S"], sizes["C"])).T.copy()
    weight = taps.reshape(sizes["C"], sizes["R"], sizes["S"])
    return (x, weight, draw.normal((sizes["C"],))) if sizes.get("bias") else (x, weight)


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
) -> int:
    """Two per multiply-add, zeros outside the image included."""
    rows = (x[2] + 2 * padding_y - dilation_y * (weight[1] - 1) - 1) // stride_y + 1
    columns = (x[3] + 2 * padding_x - dilation_x * (weight[2] - 1) - 1) // stride_x + 1
    return 2 * x[0] * x[1] * rows * columns * weight[1] * weight[2]


def _case(
    name: str,
    kind: Any,
    *sizes: int,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    bias: int = 1,
    scale: float = 1.0,
) -> Case:
    named = dict(zip("BCHWRS", sizes, strict=True)) | {"bias": bias, "K": sizes[4] * sizes[5]}
    one_row = named["H"] == named["R"] == 1
    values = []
    for name_, value in (("stride", stride), ("padding", padding), ("dilation", dilation)):
        values += [OF_ONE_ROW[name_] if one_row else value, value]
    return Case(
        name=name, kind=kind, sizes=named, attributes=dict(zip(ATTRIBUTES, values, strict=True)), scale=scale
    )


RECIPE = Recipe(
    name="depthwise_conv",
    summary="Convolution in one or two dimensions with a kernel for each channel.",
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
        "C": Size(least=1, most=4096),
        "W": Size(least=7, most=4096),
    },
    cases=(
        _case("seven by seven", "ordinary", 1, 96, 14, 14, 7, 7, padding=3),
        _case("three by three, stride 2", "ordinary", 2, 64, 15, 14, 3, 3, stride=2, padding=1, bias=0),
        _case("short convolution of a sequence", "ordinary", 2, 160, 1, 60, 1, 4, padding=3),
        _case("channels left over", "tail", 3, 131, 7, 7, 3, 3, padding=1),
        _case("dilated", "tail", 1, 20, 11, 19, 3, 5, padding=2, dilation=2),
        _case("a wide row", "tail", 1, 4, 2, 530, 3, 3, padding=1),
        _case("small values", "stress", 1, 32, 9, 9, 3, 3, padding=1, scale=1e-3),
        _case("large values", "stress", 1, 32, 9, 9, 3, 3, padding=1, scale=30.0),
        _case("several bands", "large", 1, 20, 120, 90, 3, 3, padding=1),
    ),
)
