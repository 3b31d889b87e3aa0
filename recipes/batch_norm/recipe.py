"""Batch normalisation as it is used after training: fixed statistics, folded into a scale and a shift in the kernel.

Matches modules without children that take [N, C, ...] and have buffers `running_mean` and `running_var` of length C
and an epsilon; gain and shift are optional. The statistics are bound like weights. The numeric probe decides.
Any N, C and number of pixels; float32 and bfloat16. Sizes: N = images, C = channels, S = pixels, W = parameters
(2: gain and shift, 0: none).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from neuron_port.recipe import Binding, Case, Recipe, Size
from neuron_port.types import WeightSource

STATISTICS = {"running_mean": "mean", "running_var": "variance"}
ROLES = {"weight": "gamma", "bias": "beta"}


def bind(call: Any) -> Binding | None:
    """Accept a module with running statistics and an epsilon over [N, C, ...]."""
    module = call.module
    if call.operation != "module" or module is None or len(call.inputs) != 1 or any(module.children()):
        return None
    eps, shape = getattr(module, "eps", None), call.inputs[0].shape
    buffers, parameters = dict(module.named_buffers()), dict(module.named_parameters())
    if not isinstance(eps, float) or len(shape) < 2 or not set(STATISTICS) <= set(buffers):
        return None
    sized = [*parameters.values(), *(buffers[name] for name in STATISTICS)]
    if not set(parameters) <= set(ROLES) or any(tuple(item.shape) != (shape[1],) for item in sized):
        return None
    names = STATISTICS | {name: ROLES[name] for name in parameters}
    return Binding(
        weights={role: WeightSource(name=name) for name, role in names.items()}, attributes={"eps": eps}
    )


def forward(operator: Any, weights: Mapping[str, Any], attributes: Mapping[str, Any], x: Any) -> Any:
    """Normalise [N, C, ...] through the operator on [N, C, S]."""
    rows = x.reshape(x.shape[0], x.shape[1], -1).contiguous()
    statistics = (weights["mean"], weights["variance"])
    return operator(rows, *statistics, weights.get("gamma"), weights.get("beta"), **attributes).reshape(
        x.shape
    )


def inputs(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    """x [N, C, S], mean and variance [C]; gamma and beta [C], or None for W = 0. A variance is positive."""
    channels = (sizes["C"],)
    x = draw.normal((sizes["N"], sizes["C"], sizes["S"]))
    mean, variance = draw.normal(channels), np.float32(0.01) + draw.weight(channels) ** 2 * sizes["C"]
    if not sizes["W"]:
        return x, mean, variance, None, None
    return x, mean, variance, draw.normal(channels), draw.normal(channels)


def flops(*shapes: tuple[int, ...]) -> int:
    """TensorE is not used."""
    return 0


def _case(
    name: str, kind: Any, images: int, channels: int, pixels: int, parameters: int = 2, **options: Any
) -> Case:
    sizes = {"N": images, "C": channels, "S": pixels, "W": parameters}
    return Case(name=name, kind=kind, sizes=sizes, attributes={"eps": 1e-5}, **options)


RECIPE = Recipe(
    name="batch_norm",
    summary="Batch normalisation with the statistics of training, folded into scale and shift.",
    schema="(Tensor x, Tensor mean, Tensor variance, Tensor? gamma, Tensor? beta, float eps) -> Tensor",
    operation="module",
    bind=bind,
    forward=forward,
    sequence_axes=(-1,),
    inputs=inputs,
    flops=flops,
    sizes={
        "N": Size(least=1, most=64),
        "C": Size(least=1, most=4096),
        "S": Size(least=1, most=65536),
    },
    cases=(
        _case("an image", "ordinary", 1, 64, 196),
        _case("a batch", "ordinary", 4, 32, 100),
        _case("no parameters", "ordinary", 2, 48, 64, 0),
        _case("channels that do not fill a tile", "tail", 3, 100, 49),
        _case("one pixel", "tail", 2, 200, 1),
        _case("odd number of pixels", "tail", 1, 16, 77),
        _case("tiny values", "stress", 1, 64, 49, scale=1e-3),
        _case("large values", "stress", 1, 64, 49, scale=30.0),
        _case("several steps", "large", 1, 8, 9001),
    ),
)
