"""Operators that are written out before they are lowered, against torch on XLA-CPU at odd sizes; none upsets the lint.

A family is one graph, exported and compiled once; each case is one output of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import transformers.integrations.moe  # noqa: F401 (defines grouped_mm_fallback)
from torch.nn import functional as F  # noqa: N812 (torch's own spelling)

from neuron_port.lower import lint

pytest.importorskip("jaxlib", reason="executing HLO needs neuron-port[verify]")

aten = torch.ops.aten
# Inputs of every family: x, y [3, 5, 7] in -2..2, no two elements of x equal; positive [3, 5, 7]; image [2, 6, 7, 9];
# sound [2, 4, 11]; integers [3, 5, 7] in -7..7; places [3, 5, 7] in 0..4; mask bool [3, 5, 7]; weight [6, 2, 3, 4];
# kernel [4, 6, 3]; channels [6] positive; rows [10, 7]; experts [3, 7, 4]; ends int32 [3].
NAMES = (
    "x", "y", "positive", "image", "sound", "integers", "places", "mask", "weight", "kernel", "channels", "rows",
    "experts", "ends",
)  # fmt: skip


def _inputs() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [
        (torch.randperm(105).reshape(3, 5, 7) - 52) / 26,
        torch.rand(3, 5, 7) * 4 - 2,
        torch.rand(3, 5, 7) + 0.1,
        torch.randn(2, 6, 7, 9),
        torch.randn(2, 4, 11),
        torch.randint(-7, 8, (3, 5, 7)),
        torch.randint(0, 5, (3, 5, 7)),
        torch.rand(3, 5, 7) > 0.5,
        torch.randn(6, 2, 3, 4),
        torch.randn(4, 6, 3),
        torch.rand(6) + 0.5,
        torch.randn(10, 7),
        torch.randn(3, 7, 4),
        torch.tensor([3, 3, 9], dtype=torch.int32),
    ]


class Inputs:
    """The inputs of a case, by name."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        self.__dict__.update(zip(NAMES, tensors, strict=True))


def _written_in_place(a: Any) -> torch.Tensor:
    x = a.x.clone()
    x[:, 1:4, ::2] = a.y[:, :3, :4]
    x[0, 0] += 1
    x[:, :, 1] = a.y[:, :, 1]
    x[a.mask] = 0.25
    return x


def _rotated(a: Any) -> torch.Tensor:
    """Rotary embedding as DeepSeek writes it."""
    pairs = torch.view_as_complex(a.x[..., :6].reshape(3, 5, 3, 2).contiguous())
    turns = torch.polar(torch.ones_like(a.y[..., :3]), a.y[..., :3]) * 1.5
    return torch.view_as_real(pairs * turns).flatten(2)


POOLING: dict[str, Callable[..., Any]] = {
    "max": lambda a: F.max_pool2d(a.image, 3, 2, 1),
    "max_index": lambda a: F.max_pool2d(a.image, (2, 3), return_indices=True)[1],
    "max_index_padded": lambda a: F.max_pool2d(a.image, 3, 2, 1, return_indices=True)[1],
    "max_dilated": lambda a: F.max_pool2d(a.image, 2, 1, 0, 2, ceil_mode=True),
    "max_1d": lambda a: F.max_pool1d(a.sound, 3, 2, 1),
    "max_3d": lambda a: F.max_pool3d(a.image[None], 2),
    "mean": lambda a: F.avg_pool2d(a.image, 3, 2, 1),
    "mean_inside": lambda a: F.avg_pool2d(
        a.image, (2, 3), padding=1, ceil_mode=True, count_include_pad=False
    ),
    "mean_ceil": lambda a: F.avg_pool2d(a.image, 3, 2, ceil_mode=True),
    "mean_divisor": lambda a: F.avg_pool2d(a.image, 2, divisor_override=3),
    "mean_1d": lambda a: F.avg_pool1d(a.sound, 3, 2),
    "mean_3d": lambda a: F.avg_pool3d(a.image[None], 2),
    "adaptive": lambda a: F.adaptive_avg_pool2d(a.image, (3, 4)),
    "adaptive_even": lambda a: F.adaptive_avg_pool2d(a.image, (7, 3)),
    "adaptive_one": lambda a: F.adaptive_avg_pool2d(a.image, 1),
    "adaptive_1d": lambda a: F.adaptive_avg_pool1d(a.sound, 3),
}
RESAMPLING: dict[str, Callable[..., Any]] = {
    "nearest_twice": lambda a: F.interpolate(a.image, scale_factor=2),
    "nearest": lambda a: F.interpolate(a.image, size=(5, 13)),
    "nearest_factor": lambda a: F.interpolate(a.image, scale_factor=1.5),
    "linear": lambda a: F.interpolate(a.sound, size=17, mode="linear"),
    "bilinear": lambda a: F.interpolate(a.image, size=(10, 5), mode="bilinear"),
    "bilinear_factor": lambda a: F.interpolate(a.image, scale_factor=1.7, mode="bilinear"),
    "bilinear_aligned": lambda a: F.interpolate(a.image, size=(10, 13), mode="bilinear", align_corners=True),
    "bilinear_antialiased": lambda a: F.interpolate(a.image, size=(4, 5), mode="bilinear", antialias=True),
    "bicubic": lambda a: F.interpolate(a.image, size=(10, 13), mode="bicubic"),
    "bicubic_antialiased": lambda a: F.interpolate(a.image, size=(4, 12), mode="bicubic", antialias=True),
    "trilinear": lambda a: F.interpolate(a.image[None], size=(3, 4, 5), mode="trilinear"),
    "grid_sample": lambda a: F.grid_sample(a.image, a.image[:, :4, :5, :2].tanh(), align_corners=False),
    "windows": lambda a: a.x.unfold(2, 3, 2),
    "windows_wide": lambda a: a.x.unfold(1, 4, 1),
    "columns": lambda a: F.unfold(a.image, 3, 1, 1, 2),
    "columns_back": lambda a: F.fold(F.unfold(a.image, 3, 1, 1, 2), (7, 9), 3, 1, 1, 2),
    "reflected": lambda a: F.pad(a.sound, (2, 1), mode="reflect"),
    "replicated": lambda a: F.pad(a.image, (2, 1, 1, 0), mode="replicate"),
    "pixel_shuffle": lambda a: F.pixel_shuffle(a.image.repeat(1, 2, 1, 1), 2),
}
LAYERS: dict[str, Callable[..., Any]] = {
    "batch_norm": lambda a: F.batch_norm(a.image, a.channels - 1, a.channels, a.channels, -a.channels),
    "batch_norm_plain": lambda a: F.batch_norm(a.image, a.channels - 1, a.channels),
    "instance_norm": lambda a: F.instance_norm(a.image, weight=a.channels, bias=-a.channels),
    "group_norm": lambda a: F.group_norm(a.image, 3, a.channels, -a.channels),
    "group_norm_transposed": lambda a: F.group_norm(a.x.transpose(1, 2), 7),
    "convolution_strided": lambda a: F.conv2d(a.image[:, :2], a.weight, a.channels, (2, 3), (1, 2), (2, 1)),
    "convolution_grouped": lambda a: F.conv2d(a.image, a.weight, groups=3),
    "convolution_same": lambda a: F.conv2d(a.image[:, :2], a.weight[..., :3], padding="same"),
    "convolution_one": lambda a: F.conv1d(a.sound[0], a.kernel.transpose(0, 1), a.channels, padding=1),
    "transposed": lambda a: F.conv_transpose2d(a.image, a.weight, None, (2, 3), 1, 1),
    "transposed_grouped": lambda a: F.conv_transpose2d(a.image, a.weight, groups=3, dilation=(1, 2)),
    "transposed_1d": lambda a: F.conv_transpose1d(a.sound, a.kernel, a.channels, 3, 1),
    "experts": lambda a: torch.ops.transformers.grouped_mm_fallback(a.rows, a.experts, a.ends),
    "histogram": lambda a: torch.histc(a.x, 8, -1, 1.5),
    "distances": lambda a: torch.cdist(a.x, a.y),
    "bilinear": lambda a: F.bilinear(a.rows, a.rows + 1, a.experts.permute(2, 1, 0).repeat(1, 1, 3)[..., :7]),
}
COMPLEX: dict[str, Callable[..., Any]] = {
    "rotary": _rotated,
    "product": lambda a: torch.view_as_real(torch.complex(a.x, a.y) * torch.polar(a.positive, a.x)),
    "quotient": lambda a: torch.view_as_real(2.5 * torch.complex(a.x, a.y) / torch.complex(a.positive, a.x)),
    "magnitude": lambda a: torch.complex(a.x, a.y).abs(),
    "angle": lambda a: torch.complex(a.x, a.y).angle(),
    "conjugate": lambda a: (torch.complex(a.x, a.y).conj() * torch.complex(a.y, a.positive)).real,
    "exponential": lambda a: torch.exp(torch.complex(a.x, a.y)).imag,
    "real_factor": lambda a: torch.view_as_real(torch.complex(a.x, a.y) * a.positive - a.y + 1),
    "imaginary_unit": lambda a: torch.view_as_real((torch.complex(a.x, a.y) + 1j * a.x).sum(1)),
    "moved": lambda a: torch.view_as_real(
        torch.cat([torch.complex(a.x, a.y), torch.complex(a.y, a.x)[:, 1:]], 1)[:, None].transpose(1, 2)[..., ::2]
    ),
}  # fmt: skip
PLACING: dict[str, Callable[..., Any]] = {
    "masked_scatter": lambda a: a.x.masked_scatter(a.mask, a.y),
    "masked_scatter_rows": lambda a: a.x.masked_scatter(a.mask[..., :1].expand(3, 5, 7), a.y.reshape(15, 7)),
    "masked_put_number": lambda a: aten.index_put(a.x, [a.mask], torch.tensor(2.0)),
    "masked_put_rows": lambda a: aten.index_put(a.x, [a.mask[..., 0]], a.y[0, :1]),
    "put_in_the_middle": lambda a: aten.index_put(a.x, [None, torch.tensor([3, 1])], a.y[:, :2]),
    "put_integers": lambda a: aten.index_put(torch.zeros(9, dtype=torch.int64), [a.places[0, 0]], a.integers[0, 0, 0]),
    "permutation_back": lambda a: aten.index_put(a.integers[0, 0] * 0, [a.x[0, 0].argsort()], torch.arange(7)),
    "in_place": _written_in_place,
    "index_copy": lambda a: a.x.index_copy(1, torch.tensor([3, 1]), a.y[:, :2]),
    "index_fill": lambda a: a.x.index_fill(1, torch.tensor([3, 1]), 2.0),
    "index_add": lambda a: a.x.index_add(2, torch.tensor([3, 1, 3]), a.y[:, :, :3], alpha=2),
    "by_steps": lambda a: torch.slice_scatter(a.x, a.y[:, :, :2], 2, 1, 6, 3),
    "scatter_integers": lambda a: torch.zeros(3, 8, 7, dtype=torch.int64).scatter(1, a.x.argsort(1), a.integers),
    "scatter_bool": lambda a: torch.zeros(3, 8, 7, dtype=torch.bool).scatter(1, a.places, True),
    "count": lambda a: torch.zeros(3, 5, 7, dtype=torch.int64).scatter_add(1, a.places, a.places * 0 + 1),
    "reduce_sum": lambda a: a.x.scatter_reduce(1, a.places, a.y, "sum"),
    "reduce_max": lambda a: a.x.scatter_reduce(1, a.places, a.y, "amax"),
    "reduce_min_alone": lambda a: a.x.scatter_reduce(1, a.places, a.y, "amin", include_self=False),
    "reduce_mean": lambda a: a.x.scatter_reduce(1, a.places, a.y, "mean"),
    "reduce_mean_alone": lambda a: a.x.scatter_reduce(1, a.places, a.y, "mean", include_self=False),
    "diagonal": lambda a: a.x.diagonal(1, 1, 2),
    "diagonal_below": lambda a: a.mask.diagonal(-2, 1, 2),
}  # fmt: skip
ORDER: dict[str, Callable[..., Any]] = {
    "sort": lambda a: a.x.sort(-1).values,
    "sort_descending": lambda a: a.x.sort(dim=0, descending=True).indices,
    "sort_ties": lambda a: a.integers.sort(dim=1, stable=True).indices,
    "sort_bool": lambda a: a.mask.sort(-1).values,
    "argsort_ties_descending": lambda a: a.places.argsort(dim=-1, descending=True, stable=True),
    "topk_many": lambda a: a.x.flatten().topk(70).indices,
    "median": lambda a: a.x.median(-1).values,
    "median_of_all": lambda a: a.x.median(),
    "kthvalue": lambda a: a.x.kthvalue(2, 1).values,
    "searchsorted": lambda a: torch.searchsorted(a.x.sort(-1).values, a.y),
    "bucketize": lambda a: torch.bucketize(a.x, torch.tensor([-1.0, 0.0, 0.5, 1.0])),
    "bucketize_right": lambda a: torch.bucketize(a.integers, torch.tensor([-1, 0, 2, 5]), right=True),
    "isin": lambda a: torch.isin(a.integers, torch.tensor([1, 3, 5])),
    "cumprod": lambda a: a.y.cumprod(1),
    "logcumsumexp": lambda a: a.y.logcumsumexp(-1),
    "cummax": lambda a: a.x.cummax(1).values,
    "cummax_ties": lambda a: a.integers.cummax(2).indices,
    "cummin": lambda a: a.x.cummin(0).indices,
    "prod": lambda a: a.positive.prod(),
}
NUMBERS: dict[str, Callable[..., Any]] = {
    "sinh": lambda a: a.x.sinh(),
    "sinh_small": lambda a: (a.x * 1e-4).sinh(),
    "cosh": lambda a: a.x.cosh(),
    "asinh": lambda a: (a.x * 1e-3).asinh(),
    "acosh": lambda a: (a.positive + 1).acosh(),
    "atanh": lambda a: a.x.tanh().atanh(),
    "atan": lambda a: a.x.atan(),
    "asin": lambda a: a.x.tanh().asin(),
    "acos": lambda a: a.x.tanh().acos(),
    "erfc": lambda a: a.x.erfc(),
    "fmax": lambda a: torch.fmax(torch.where(a.mask, torch.nan, a.x), a.y),
    "fmin": lambda a: torch.fmin(a.x, torch.where(a.mask, torch.nan, a.y)),
    "round_decimals": lambda a: a.x.round(decimals=1),
    "shifts": lambda a: (a.integers << 2) + (a.integers >> 1),
    "hardtanh": lambda a: F.hardtanh(a.x) + F.relu6(a.y),
    "logical_xor": lambda a: torch.logical_xor(a.mask, a.x > 0),
    "hypot": lambda a: torch.hypot(a.x, a.y),
    "logarithms": lambda a: torch.log10(a.positive) + torch.logaddexp(a.x, a.y) + a.x.sigmoid().logit(),
    "nan_to_num": lambda a: torch.where(a.mask, torch.nan, a.x).nan_to_num(),
    "addbmm": lambda a: torch.addbmm(a.x[0, :, :5], a.x, a.y.mT, beta=0.5, alpha=2),
    "float64": lambda a: (a.x.double() * 2 + torch.arange(7, dtype=torch.float64)).float(),
}
FAMILIES = {
    "pooling": POOLING,
    "resampling": RESAMPLING,
    "layers": LAYERS,
    "complex": COMPLEX,
    "placing": PLACING,
    "order": ORDER,
    "numbers": NUMBERS,
}


def _family(functions: dict[str, Callable[..., Any]], *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(function(Inputs(*tensors)) for function in functions.values())


@pytest.fixture(scope="session")
def graphs(lower: Callable[..., Any]) -> Callable[[str], tuple[Any, dict[str, torch.Tensor]]]:
    """The graph of a family and its outputs on XLA-CPU, made once."""
    done: dict[str, tuple[Any, dict[str, torch.Tensor]]] = {}

    def of(family: str) -> tuple[Any, dict[str, torch.Tensor]]:
        if family not in done:
            graph = lower(partial(_family, FAMILIES[family]), _inputs())
            done[family] = graph, dict(zip(FAMILIES[family], graph.run(*_inputs()), strict=True))
        return done[family]

    return of


@pytest.mark.parametrize(
    ("family", "name"), [(family, name) for family in FAMILIES for name in FAMILIES[family]]
)
def test_rewritten_operator_agrees_with_torch(family: str, name: str, graphs: Callable[..., Any]) -> None:
    """The graph gives torch's result: integers exactly, numbers within 3e-6 of the largest."""
    actual = graphs(family)[1][name]
    expected = FAMILIES[family][name](Inputs(*_inputs()))
    assert actual.shape == expected.shape
    if not expected.dtype.is_floating_point:
        assert torch.equal(actual.to(expected.dtype), expected)
        return
    assert actual.dtype == expected.dtype
    assert (actual - expected).abs().max() <= 3e-6 * expected.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_rewritten_operators_pass_the_lint(family: str, graphs: Callable[..., Any]) -> None:
    """Nothing in the graph is known to be refused by the compiler: no sort, no integer scatter, no 64 bits."""
    graph = graphs(family)[0]
    assert lint(graph.hlo, "trn2", graph.spec).findings == ()


def test_sort_of_many_elements_is_left_to_the_cpu(lower: Callable[..., Any]) -> None:
    """5,000 elements are too many to compare in pairs: the graph sorts, is right on the CPU, and lint says so."""
    numbers = torch.randperm(5000).to(torch.float32)
    graph = lower(lambda x: x.sort().indices, (numbers,))
    assert torch.equal(graph.run(numbers)[0].long(), numbers.sort().indices)
    assert [item.cause for item in lint(graph.hlo, "trn2", graph.spec).findings] == [
        "Unsupported operator `sort`"
    ]
