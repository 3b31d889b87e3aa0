"""Resizing of images as one matrix product an axis, and windows cut out of an axis.

Linear and cubic interpolation, with and without antialiasing, are linear and act on each axis by itself. The matrix
[out, in] is made in the graph from counting tensors; nothing is gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from neuron_port.lower.rewrites.table import REWRITES, rewrites

aten = torch.ops.aten
Weights = Callable[[int, int, float, torch.device], torch.Tensor]


def _centres(count: int, scale: float, device: torch.device) -> torch.Tensor:
    """Where the middle of each result lies among the sources: float32 [count]."""
    return (torch.arange(count, dtype=torch.float32, device=device) + 0.5) * scale - 0.5


def _linear(size: int, count: int, scale: float, device: torch.device) -> torch.Tensor:
    places = _centres(count, scale, device).clamp(0.0, size - 1.0)
    return _tent(places[:, None] - torch.arange(size, dtype=torch.float32, device=device))


def _linear_aligned(size: int, count: int, scale: float, device: torch.device) -> torch.Tensor:
    places = torch.arange(count, dtype=torch.float32, device=device) * scale
    return _tent(places[:, None] - torch.arange(size, dtype=torch.float32, device=device))


def _tent(distance: torch.Tensor) -> torch.Tensor:
    return (1.0 - distance.abs()).clamp(min=0.0)


def _cubic(distance: torch.Tensor, sharpness: float = -0.5) -> torch.Tensor:
    """Keys' kernel; torch uses -0.5 when it antialiases, as PIL does."""
    x = distance.abs()
    near = ((sharpness + 2) * x - (sharpness + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * sharpness - 4 * sharpness
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _antialiased(kernel: Callable[[torch.Tensor], torch.Tensor], reach: float) -> Weights:
    """A kernel as wide as the results lie apart, cut off at the image's edge and brought to a sum of one."""

    def weights(size: int, count: int, scale: float, device: torch.device) -> torch.Tensor:
        width = max(scale, 1.0)
        centres = (torch.arange(count, dtype=torch.float32, device=device) + 0.5)[:, None] * scale
        places = torch.arange(size, dtype=torch.float32, device=device)
        first = torch.floor(centres - reach * width + 0.5).clamp(min=0.0)
        last = torch.floor(centres + reach * width + 0.5).clamp(max=float(size))
        raw = torch.where((places >= first) & (places < last), kernel((places - centres + 0.5) / width), 0.0)
        return raw / raw.sum(-1, keepdim=True)

    return weights


def _resized(
    x: torch.Tensor,
    output: Sequence[int],
    scales: Sequence[float | None],
    weights: Weights,
    aligned: bool = False,
) -> torch.Tensor:
    result = x.to(torch.float32)
    for axis, (count, factor) in enumerate(zip(output, scales, strict=True)):
        dim = axis - len(output)
        size = x.shape[dim]
        if aligned:
            scale = (size - 1) / (count - 1) if count > 1 else 0.0
        else:
            scale = 1.0 / factor if factor else size / count
        matrix = weights(size, count, scale, x.device)
        result = (result.movedim(dim, -1) @ matrix.transpose(0, 1)).movedim(-1, dim)
    return result.to(x.dtype)


@rewrites(aten.upsample_linear1d.default)
def upsample_linear1d(x: torch.Tensor, size: Sequence[int], aligned: bool, scale: float | None = None) -> Any:
    return _resized(x, size, [scale], _linear_aligned if aligned else _linear, aligned)


@rewrites(aten.upsample_bilinear2d.default)
def upsample_bilinear2d(
    x: torch.Tensor, size: Sequence[int], aligned: bool, high: float | None = None, wide: float | None = None
) -> torch.Tensor:
    return _resized(x, size, [high, wide], _linear_aligned if aligned else _linear, aligned)


@rewrites(aten.upsample_trilinear3d.default)
def upsample_trilinear3d(
    x: torch.Tensor,
    size: Sequence[int],
    aligned: bool,
    deep: float | None = None,
    high: float | None = None,
    wide: float | None = None,
) -> torch.Tensor:
    return _resized(x, size, [deep, high, wide], _linear_aligned if aligned else _linear, aligned)


@rewrites(aten._upsample_bilinear2d_aa.default)
def upsample_bilinear2d_antialiased(
    x: torch.Tensor, size: Sequence[int], aligned: bool, high: float | None = None, wide: float | None = None
) -> Any:
    if aligned:
        return NotImplemented
    return _resized(x, size, [high, wide], _antialiased(_tent, 1.0))


@rewrites(aten._upsample_bicubic2d_aa.default)
def upsample_bicubic2d_antialiased(
    x: torch.Tensor, size: Sequence[int], aligned: bool, high: float | None = None, wide: float | None = None
) -> Any:
    if aligned:
        return NotImplemented
    return _resized(x, size, [high, wide], _antialiased(_cubic, 2.0))


@rewrites(aten.upsample_nearest1d.default, aten.upsample_nearest2d.default, aten.upsample_nearest3d.default)
def upsample_nearest(x: torch.Tensor, size: Sequence[int], *factors: float | None) -> torch.Tensor:
    """Whole factors repeat elements in place; others take them at their positions."""
    scales = factors or (None,) * len(size)
    for axis, (count, factor) in enumerate(zip(size, scales, strict=True)):
        dim = axis - len(size)
        length = x.shape[dim]
        if count % length == 0 and factor in (None, count / length):
            x = _repeated(x, dim, count // length)
        else:
            scale = 1.0 / factor if factor else length / count
            places = (torch.arange(count, dtype=torch.float32, device=x.device) * scale).to(torch.int64)
            x = x.index_select(x.dim() + dim, places.clamp(max=length - 1))
    return x


def _repeated(x: torch.Tensor, dim: int, times: int) -> torch.Tensor:
    """Every element of an axis `times` times in a row."""
    axis = x.dim() + dim
    shape = list(x.shape)
    widened = x.unsqueeze(axis + 1).expand(*shape[: axis + 1], times, *shape[axis + 1 :])
    shape[axis] *= times
    return widened.reshape(shape)


def _sized(function: Callable[..., Any], rank: int, with_alignment: bool) -> Callable[..., Any]:
    """The `.vec` form, which is given the size or the factors, of the form that is given both."""

    def vec(x: torch.Tensor, size: Sequence[int] | None, *rest: Any) -> torch.Tensor:
        factors = rest[-1]
        shape = x.shape[2:]
        sizes = list(size) if size else [int(n * factor) for n, factor in zip(shape, factors, strict=True)]
        scales = list(factors) if factors else [None] * rank
        return function(x, sizes, *(rest[:1] if with_alignment else ()), *scales)

    return vec


REWRITES.update(
    {
        aten.upsample_nearest1d.vec: _sized(upsample_nearest, 1, False),
        aten.upsample_nearest2d.vec: _sized(upsample_nearest, 2, False),
        aten.upsample_nearest3d.vec: _sized(upsample_nearest, 3, False),
        aten.upsample_linear1d.vec: _sized(upsample_linear1d, 1, True),
        aten.upsample_bilinear2d.vec: _sized(upsample_bilinear2d, 2, True),
        aten.upsample_trilinear3d.vec: _sized(upsample_trilinear3d, 3, True),
        aten._upsample_bilinear2d_aa.vec: _sized(upsample_bilinear2d_antialiased, 2, True),
        aten._upsample_bicubic2d_aa.vec: _sized(upsample_bicubic2d_antialiased, 2, True),
    }
)


@rewrites(aten.unfold.default)
def unfold(x: torch.Tensor, dimension: int, size: int, step: int) -> torch.Tensor:
    """Windows of an axis: [.., n, ..] -> [.., windows, .., size]. As many slices as the shorter of both is long."""
    if not x.dim():
        return x.reshape(1)
    dim = dimension % x.dim()
    windows = (x.shape[dim] - size) // step + 1
    moved = x.movedim(dim, -1)
    if windows <= size:
        cut = [moved[..., number * step : number * step + size] for number in range(windows)]
        return torch.stack(cut, -2).movedim(-2, dim)
    every = [moved[..., place : place + (windows - 1) * step + 1 : step] for place in range(size)]
    return torch.stack(every, -1).movedim(-2, dim)
