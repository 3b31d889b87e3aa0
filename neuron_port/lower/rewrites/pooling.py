"""Pooling as arithmetic on strided slices, one for each element of the window, and adaptive pooling as products.

N-dimensional throughout: the pooled axes are the last ones, as many as the window has sizes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch

from neuron_port.lower.rewrites.table import limits, rewrites

aten = torch.ops.aten


def _sizes(value: int | Sequence[int], rank: int, default: Sequence[int] = ()) -> list[int]:
    given = [value] if isinstance(value, int) else list(value)
    given = given or list(default)
    return given * rank if len(given) == 1 else given


class _Windows:
    """How windows lie over the last axes of a tensor of the given shape."""

    def __init__(
        self,
        shape: Sequence[int],
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        ceil_mode: bool,
    ) -> None:
        self.kernel, self.stride, self.padding, self.dilation = kernel, stride, padding, dilation
        self.sizes = list(shape[-len(kernel) :])
        self.counts = [self._count(axis, ceil_mode) for axis in range(len(kernel))]

    def _count(self, axis: int, ceil_mode: bool) -> int:
        """Windows along an axis; with `ceil_mode` the last may reach out, but must begin inside or in the padding."""
        size, padding, stride = self.sizes[axis], self.padding[axis], self.stride[axis]
        room = size + 2 * padding - self.dilation[axis] * (self.kernel[axis] - 1) - 1
        count = (math.ceil(room / stride) if ceil_mode else room // stride) + 1
        return count - 1 if ceil_mode and (count - 1) * stride >= size + padding else count

    def padded(self, x: torch.Tensor, fill: float) -> torch.Tensor:
        """x with room for every window at both ends of every axis."""
        edges: list[int] = []
        for axis in reversed(range(len(self.kernel))):
            last = (
                (self.counts[axis] - 1) * self.stride[axis]
                + self.dilation[axis] * (self.kernel[axis] - 1)
                + 1
            )
            edges += [self.padding[axis], max(0, last - self.sizes[axis] - self.padding[axis])]
        return torch.nn.functional.pad(x, edges, value=fill) if any(edges) else x

    def offsets(self) -> list[tuple[int, ...]]:
        return list(itertools.product(*(range(size) for size in self.kernel)))

    def slices(self, padded: torch.Tensor, offset: Sequence[int]) -> torch.Tensor:
        """The element at `offset` of every window: [.., counts]."""
        for axis, place in enumerate(offset):
            start = place * self.dilation[axis]
            stop = start + (self.counts[axis] - 1) * self.stride[axis] + 1
            dim = axis - len(self.kernel)
            padded = aten.slice.Tensor(padded, dim, start, stop, self.stride[axis])
        return padded

    def positions(self, offset: Sequence[int], device: torch.device) -> torch.Tensor:
        """The index in the flattened plane of the element at `offset` of every window: int64 [counts]."""
        total = torch.zeros((), dtype=torch.int64, device=device)
        for axis, place in enumerate(offset):
            steps = torch.arange(self.counts[axis], device=device) * self.stride[axis]
            index = steps + (place * self.dilation[axis] - self.padding[axis])
            inner = math.prod(self.sizes[axis + 1 :])
            total = total + (index * inner).reshape(-1, *[1] * (len(self.kernel) - axis - 1))
        return total

    def divisor(self, axis: int, include_padding: bool) -> list[int]:
        """How many elements of the axis each window averages over."""
        found = []
        for number in range(self.counts[axis]):
            start = number * self.stride[axis] - self.padding[axis]
            end = min(start + self.kernel[axis], self.sizes[axis] + self.padding[axis])
            if not include_padding:
                start, end = max(start, 0), min(end, self.sizes[axis])
            found.append(end - start)
        return found


@rewrites(aten.max_pool2d_with_indices.default, aten.max_pool3d_with_indices.default)
def max_pool(
    x: torch.Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(the largest element of each window, where it stands in the plane); of equals the first."""
    rank = 2 if len(x.shape) == 3 or len(_sizes(kernel_size, 1)) == 2 else len(_sizes(kernel_size, 1))
    kernel = _sizes(kernel_size, rank)
    windows = _Windows(
        x.shape,
        kernel,
        _sizes(stride, rank, kernel),
        _sizes(padding, rank),
        _sizes(dilation, rank),
        ceil_mode,
    )
    padded = windows.padded(x, limits(x.dtype).min)
    best, places = None, None
    for offset in windows.offsets():
        candidate, position = windows.slices(padded, offset), windows.positions(offset, x.device)
        if best is None or places is None:
            best, places = candidate, position.expand(candidate.shape)
        else:
            larger = candidate > best
            best, places = torch.maximum(best, candidate), torch.where(larger, position, places)
    assert best is not None
    assert places is not None
    return best, places


@rewrites(aten.avg_pool2d.default, aten.avg_pool3d.default)
def avg_pool(
    x: torch.Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> torch.Tensor:
    """The mean of each window, summed in float32."""
    rank = len(_sizes(kernel_size, 1)) if len(_sizes(kernel_size, 1)) > 1 else x.dim() - 2
    kernel = _sizes(kernel_size, rank)
    windows = _Windows(
        x.shape, kernel, _sizes(stride, rank, kernel), _sizes(padding, rank), [1] * rank, ceil_mode
    )
    padded = windows.padded(x.to(torch.float32), 0.0)
    total = sum(windows.slices(padded, offset) for offset in windows.offsets())
    assert isinstance(total, torch.Tensor)
    if divisor_override is not None:
        return (total / divisor_override).to(x.dtype)
    for axis in range(rank):
        total = _divided(total, axis - rank, windows.divisor(axis, count_include_pad))
    return total.to(x.dtype)


def _divided(x: torch.Tensor, dim: int, divisors: Sequence[int]) -> torch.Tensor:
    """x over a divisor for each element of an axis; those in the middle of the axis are usually equal."""
    if len(set(divisors)) == 1:
        return x / divisors[0]
    parts, start = [], 0
    for divisor, run in itertools.groupby(divisors):
        length = len(list(run))
        parts.append(x.narrow(dim, start, length) / divisor)
        start += length
    return torch.cat(parts, dim)


@rewrites(aten._adaptive_avg_pool2d.default, aten._adaptive_avg_pool3d.default)
def adaptive_avg_pool(x: torch.Tensor, output_size: Sequence[int]) -> torch.Tensor:
    """Means over windows that share an axis out evenly; where they overlap, by a product with their weights."""
    result = x.to(torch.float32)
    for axis, count in enumerate(output_size):
        dim = axis - len(output_size)
        size = x.shape[dim]
        if size % count == 0:
            result = result.unflatten(dim, (count, size // count)).mean(dim)
        else:
            result = (result.movedim(dim, -1) @ _shares(size, count, x.device)).movedim(-1, dim)
    return result.to(x.dtype)


def _shares(size: int, count: int, device: torch.device) -> torch.Tensor:
    """[size, count]: what each element contributes to each mean."""
    numbers = torch.arange(count, device=device)
    starts = torch.div(numbers * size, count, rounding_mode="floor")
    ends = torch.div((numbers + 1) * size + count - 1, count, rounding_mode="floor")
    places = torch.arange(size, device=device)[:, None]
    inside = (places >= starts) & (places < ends)
    return torch.where(inside, 1.0 / (ends - starts), 0.0)
