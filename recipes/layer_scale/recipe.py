"""Scale of features: the factors that vision transformers put behind attention and MLP.

Matches modules without children and buffers whose only parameter is 1-D, as long as the last axis of their one input.
Norms look the same from outside: the numeric probe tells them apart.
Any T; H up to 16384; float32 and bfloat16. Sizes: T = tokens, H = hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size
from neuron_port.types import WeightSource

WIDEST = 16384  # rows that fit SBUF


def bind(call: Any) -> Binding | None:
    """Accept a module with one 1-D parameter over the last axis."""
    module = call.module
    if call.operation != "module" or module is None or len(call.inputs) != 1 or any(module.children()):
        return None
    parameters, shape = list(module.named_parameters()), call.inputs[0].shape
    if len(parameters) != 1 or next(module.buffers(), None) is not None or len(shape) < 2:
        return None
    name, scale = parameters[0]
    if tuple(scale.shape) != (shape[-1],) or shape[-1] > WIDEST:
        return None
    return Binding(weights={"scale": WeightSource(name=name)})


def forward(operator: Any, weights: Mapping[str, Any], attributes: Mapping[str, Any], hidden: Any) -> Any:
    """Scale [..., H] through the operator on [T, H]."""
    rows = hidden.reshape(-1, hidden.shape[-1]).contiguous()
    return operator(rows, weights["scale"]).reshape(hidden.shape)


def inputs(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    """x [T, H], scale [H]."""
    return draw.normal((sizes["T"], sizes["H"])), draw.normal((sizes["H"],))


def flops(*shapes: tuple[int, ...]) -> int:
    """TensorE is not used."""
    return 0


def _case(name: str, kind: Any, tokens: int, hidden: int, **options: Any) -> Case:
    return Case(name=name, kind=kind, sizes={"T": tokens, "H": hidden}, **options)


RECIPE = Recipe(
    name="layer_scale",
    summary="Scale of features.",
    schema="(Tensor x, Tensor scale) -> Tensor",
    operation="module",
    bind=bind,
    forward=forward,
    sequence_axes=(-2,),
    inputs=inputs,
    flops=flops,
    sizes={"T": Size(least=1, most=65536), "H": Size(least=1, most=WIDEST)},
    cases=(
        _case("patches", "ordinary", 257, 384),
        _case("one token", "tail", 1, 577),
        _case("several tokens on a partition", "tail", 1100, 48),
        _case("tiny values", "stress", 16, 64, scale=1e-3),
        _case("large values", "stress", 16, 64, scale=30.0),
        _case("wide", "large", 130, 16384),
    ),
)
