"""Residual connection: the sum of two activations of one shape.

Matches an addition of two equally shaped floating point tensors. Any size; float32 and bfloat16.
Sizes: T = tokens, H = hidden.
"""

from __future__ import annotations

from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size


def bind(call: Any) -> Binding | None:
    """Accept an addition of two tensors that agree in shape and dtype (no broadcasting, no scaled addend)."""
    if call.operation != "add" or len(call.inputs) != 2 or call.attributes:
        return None
    x, y = call.inputs
    return Binding() if x == y and x.dtype in RECIPE.dtypes else None


def forward(operator: Any, weights: Any, attributes: Any, x: Any, y: Any) -> Any:
    """Add [..., H] tensors through the operator on [T, H]."""
    hidden = x.shape[-1]
    return operator(x.reshape(-1, hidden), y.reshape(-1, hidden)).reshape(x.shape)


def inputs(sizes: Any, draw: Any) -> tuple[Any, ...]:
    """x and y [T, H]."""
    shape = (sizes["T"], sizes["H"])
    return draw.normal(shape), draw.normal(shape)


def flops(*shapes: tuple[int, ...]) -> int:
    """TensorE is not used."""
    return 0


RECIPE = Recipe(
    name="residual_add",
    summary="Sum of two activations.",
    schema="(Tensor x, Tensor y) -> Tensor",
    operation="add",
    bind=bind,
    forward=forward,
    sequence_axes=(1, 1),
    inputs=inputs,
    flops=flops,
    sizes={
        "T": Size(least=1, most=32768),
        "H": Size(least=1, most=65536),
    },
    cases=(
        Case(name="one token", kind="ordinary", sizes={"T": 1, "H": 4096}),
        Case(name="a few tokens", kind="ordinary", sizes={"T": 16, "H": 576}),
        Case(name="no even split", kind="tail", sizes={"T": 130, "H": 577}),
        Case(name="fewer elements than partitions", kind="tail", sizes={"T": 1, "H": 65}),
        Case(name="small values", kind="stress", sizes={"T": 5, "H": 256}, scale=1e-3),
        Case(name="large values", kind="stress", sizes={"T": 5, "H": 256}, scale=30.0),
        Case(name="two blocks", kind="large", sizes={"T": 520, "H": 4096}),
    ),
)
