"""Pooling of images or sequences: the maximum or the mean of windows, or of everything.

Matches modules without parameters that say how a window moves (`kernel_size`, `stride`, `padding`), or into how many
outputs an input is divided (`output_size`, where it divides evenly); whether they take the maximum or the mean is for
the probe to find out. Windows may be cut off at the edges, with or without counting padding. A sequence [B, C, W] is an
image of one row. The rows of a window must fit SBUF (96 KiB); float32 and bfloat16.
Sizes: B = images, C = channels, H, W = image, K = elements of a window.
"""

from __future__ import annotations

from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size, Tolerance

MOST_BYTES = 96 * 1024  # of the rows of a window, in SBUF
ATTRIBUTES = (
    "window_y", "window_x", "stride_y", "stride_x", "padding_y", "padding_x", "ceil", "count_padding",
)  # fmt: skip


def bind(call: Any) -> tuple[Binding, ...] | None:
    """Accept a module without parameters that says how windows lie on its only input; both reductions are tried."""
    module = call.module
    if call.operation != "module" or module is None or len(call.inputs) != 1 or len(call.args) != 1:
        return None
    x = call.inputs[0]
    if x.dtype not in RECIPE.dtypes or len(x.shape) not in (3, 4) or any(True for _ in module.parameters()):
        return None
    sizes = x.shape[2:] if len(x.shape) == 4 else (1, x.shape[2])
    attributes = adaptive_windows(module, x.shape[2:]) or moving_windows(module, len(x.shape) - 2)
    if attributes is None or min(attributes["window_y"], sizes[0]) * sizes[1] * 4 > MOST_BYTES:
        return None
    return tuple(Binding(attributes={"maximum": maximum, **attributes}) for maximum in (False, True))


def adaptive_windows(module: Any, sizes: tuple[int, ...]) -> dict[str, Any] | None:
    """The windows of a module that divides its input evenly into `output_size` parts."""
    counts = getattr(module, "output_size", None)
    if counts is None:
        return None
    counts = per_axis(counts, len(sizes))
    if counts is None or any(size % count for size, count in zip(sizes, counts, strict=True)):
        return None
    window = tuple(size // count for size, count in zip(sizes, counts, strict=True))
    return _attributes(window, window, (0,) * len(sizes), ceil=False, count_padding=True)


def moving_windows(module: Any, rank: int) -> dict[str, Any] | None:
    """The windows of a module with `kernel_size`, `stride` and `padding`."""
    window = per_axis(getattr(module, "kernel_size", None), rank)
    stride = per_axis(getattr(module, "stride", None), rank)
    padding = per_axis(getattr(module, "padding", None), rank)
    dilation = per_axis(getattr(module, "dilation", 1), rank)
    if window is None or stride is None or padding is None or dilation != (1,) * rank:
        return None
    if getattr(module, "return_indices", False) or getattr(module, "divisor_override", None) is not None:
        return None
    ceil, count_padding = getattr(module, "ceil_mode", False), getattr(module, "count_include_pad", True)
    return _attributes(window, stride, padding, ceil=bool(ceil), count_padding=bool(count_padding))


def per_axis(value: Any, rank: int) -> tuple[int, ...] | None:
    """One integer per axis, from one for all or a tuple; None if that is not what it is."""
    values = (value,) * rank if isinstance(value, int) else value
    if (
        not isinstance(values, tuple)
        or len(values) != rank
        or not all(isinstance(item, int) for item in values)
    ):
        return None
    return values


def _attributes(
    window: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    *,
    ceil: bool,
    count_padding: bool,
) -> dict[str, Any]:
    if len(window) == 1:
        window, stride, padding = (1, *window), (1, *stride), (0, *padding)
    return dict(zip(ATTRIBUTES, (*window, *stride, *padding, ceil, count_padding), strict=True))


def forward(operator: Any, weights: Any, attributes: Any, x: Any) -> Any:
    """Pool [B, C, H, W], or [B, C, W] as an image of one row."""
    return operator(x, **attributes) if x.ndim == 4 else operator(x.unsqueeze(2), **attributes).squeeze(2)


def inputs(sizes: Any, draw: Any) -> tuple[Any, ...]:
    """x [B, C, H, W]."""
    return (draw.normal((sizes["B"], sizes["C"], sizes["H"], sizes["W"])),)


def flops(x: tuple[int, ...], **attributes: Any) -> int:
    """None: TensorE has no part in it."""
    return 0


def _case(
    name: str,
    kind: Any,
    *image: int,
    window: tuple[int, int],
    stride: int = 1,
    padding: int = 0,
    maximum: bool = False,
    ceil: bool = False,
    count_padding: bool = True,
    scale: float = 1.0,
) -> Case:
    sizes = dict(zip("BCHW", image, strict=True)) | {"K": window[0] * window[1]}
    attributes = _attributes(
        window, (stride, stride), (padding, padding), ceil=ceil, count_padding=count_padding
    )
    return Case(name=name, kind=kind, sizes=sizes, attributes={"maximum": maximum, **attributes}, scale=scale)


RECIPE = Recipe(
    name="pool2d",
    summary="Maximum or mean of windows of an image, or of the whole.",
    schema="(Tensor x, bool maximum, int window_y, int window_x, int stride_y, int stride_x, int padding_y, "
    "int padding_x, bool ceil, bool count_padding) -> Tensor",
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
    },
    cases=(
        _case(
            "maximum of three by three",
            "ordinary",
            1,
            64,
            20,
            20,
            window=(3, 3),
            stride=2,
            padding=1,
            maximum=True,
        ),
        _case("mean of everything", "ordinary", 3, 150, 7, 7, window=(7, 7)),
        _case("mean of quarters", "ordinary", 2, 70, 16, 16, window=(4, 4), stride=4),
        _case(
            "mean that ignores padding", "tail", 1, 130, 9, 7, window=(3, 3), padding=1, count_padding=False
        ),
        _case("windows cut off", "tail", 1, 20, 8, 9, window=(2, 2), stride=2, ceil=True),
        _case(
            "maximum of windows cut off",
            "tail",
            3,
            5,
            8,
            11,
            window=(3, 2),
            stride=3,
            ceil=True,
            maximum=True,
        ),
        _case("padding that counts", "tail", 1, 1, 5, 6, window=(3, 4), stride=2, padding=1, ceil=True),
        _case("small values", "stress", 1, 32, 10, 10, window=(2, 2), stride=2, scale=1e-3),
        _case(
            "large values",
            "stress",
            1,
            32,
            10,
            10,
            window=(3, 3),
            stride=2,
            padding=1,
            maximum=True,
            scale=30.0,
        ),
        _case("several bands", "large", 1, 12, 150, 96, window=(3, 3), stride=2, padding=1, maximum=True),
    ),
)
