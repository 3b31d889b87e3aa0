"""Group normalisation of images and signals: groups of channels are normalised together, each image by itself.

Matches modules without children that take [N, C, ...], carry `num_groups` and an epsilon, and whose parameters, if
any, are a gain and a shift of length C. As many groups as channels is instance normalisation. The numeric probe decides.
Any N and number of pixels; float32 and bfloat16. Sizes: N = images, G = groups, C = channels of one group, S = pixels,
W = parameters (2: gain and shift, 0: none).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size, Tolerance
from neuron_port.types import WeightSource

ROLES = {"weight": "gamma", "bias": "beta"}


def bind(call: Any) -> Binding | None:
    """Accept a module with `num_groups` and an epsilon over [N, C, ...]."""
    module = call.module
    if call.operation != "module" or module is None or len(call.inputs) != 1 or any(module.children()):
        return None
    groups, eps = getattr(module, "num_groups", None), getattr(module, "eps", None)
    shape = call.inputs[0].shape
    if not isinstance(groups, int) or not isinstance(eps, float) or len(shape) < 3 or shape[1] % groups:
        return None
    parameters = dict(module.named_parameters())
    if not set(parameters) <= set(ROLES) or any(
        tuple(item.shape) != (shape[1],) for item in parameters.values()
    ):
        return None
    return Binding(
        weights={ROLES[name]: WeightSource(name=name) for name in parameters},
        attributes={"groups": groups, "eps": eps},
    )


def forward(operator: Any, weights: Mapping[str, Any], attributes: Mapping[str, Any], x: Any) -> Any:
    """Normalise [N, C, ...] through the operator on [N, C, S]."""
    rows = x.reshape(x.shape[0], x.shape[1], -1).contiguous()
    return operator(rows, weights.get("gamma"), weights.get("beta"), **attributes).reshape(x.shape)


def inputs(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    """x [N, G * C, S]; gamma and beta [G * C], or None for W = 0."""
    channels = sizes["G"] * sizes["C"]
    x = draw.normal((sizes["N"], channels, sizes["S"]))
    if not sizes["W"]:
        return x, None, None
    return x, draw.normal((channels,)), draw.normal((channels,))


def flops(*shapes: tuple[int, ...]) -> int:
    """TensorE only averages a few statistics."""
    return 0


def _case(
    name: str,
    kind: Any,
    images: int,
    groups: int,
    channels: int,
    pixels: int,
    parameters: int = 2,
    **options: Any,
) -> Case:
    sizes = {"N": images, "G": groups, "C": channels, "S": pixels, "W": parameters}
    return Case(name=name, kind=kind, sizes=sizes, attributes={"groups": groups, "eps": 1e-5}, **options)


RECIPE = Recipe(
    name="group_norm",
    summary="Group normalisation of images and signals, instance normalisation included.",
    schema="(Tensor x, Tensor? gamma, Tensor? beta, int groups, float eps) -> Tensor",
    operation="module",
    bind=bind,
    forward=forward,
    sequence_axes=(-1,),
    inputs=inputs,
    flops=flops,
    tolerance=Tolerance(reduction_length="S"),
    sizes={"N": Size(least=1, most=64), "C": Size(least=1, most=1024), "S": Size(least=1, most=65536)},
    cases=(
        _case("an image", "ordinary", 1, 8, 16, 100),
        _case("instance norm of a signal", "ordinary", 2, 32, 1, 319),
        _case("few channels, cut into parts", "ordinary", 1, 2, 4, 96),
        _case("no parameters", "ordinary", 2, 4, 8, 64, 0),
        _case("one group of many channels", "tail", 2, 1, 200, 30),
        _case("groups that do not fill a tile", "tail", 3, 5, 12, 33),
        _case("one pixel", "tail", 2, 4, 8, 1),
        _case("epsilon decides", "stress", 1, 4, 8, 64, scale=1e-3),
        _case("large values", "stress", 1, 4, 8, 64, scale=30.0),
        _case("channels far from each other", "stress", 1, 4, 8, 64, style="constant rows"),
        _case("read twice", "large", 1, 1, 2, 33013),
    ),
)
