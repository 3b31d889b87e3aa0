"""Experts that each have tokens of their own: rows e * T ... of the input belong to expert e, as in Llama 4.

Matches modules whose parameters are two stacks, [E, H, 2 I] and [E, I, N] or both transposed, called with one tensor
[E * T, H]: every expert is a gated MLP on its T rows. Any T; float32 and bfloat16.
Sizes: T = tokens of each expert, E = experts, H = hidden, I = intermediate, N = output features.
"""

from __future__ import annotations

from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size, Tolerance
from neuron_port.types import WeightSource

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")


def bind(call: Any) -> tuple[Binding, ...]:
    """Accept a module with two stacks of matrices that fit each other and rows that experts can share evenly."""
    module = call.module
    if call.operation != "module" or module is None or len(call.inputs) != 1:
        return ()
    x = call.inputs[0]
    shapes = {name: tuple(tensor.shape) for name, tensor in module.named_parameters()}
    if (
        x.dtype not in RECIPE.dtypes
        or len(x.shape) != 2
        or [len(shape) for shape in shapes.values()] != [3, 3]
    ):
        return ()
    names = list(shapes)
    bindings = []
    for up, down in (names, names[::-1]):
        for transform in ("none", "transpose"):
            experts, hidden, columns = _laid_out(shapes[up], transform)
            if hidden != x.shape[-1] or x.shape[0] % experts:
                continue
            if _laid_out(shapes[down], transform)[:2] != (experts, columns // 2) or columns % 2:
                continue
            weights = {
                "up": WeightSource(name=up, transform=transform),
                "down": WeightSource(name=down, transform=transform),
            }
            bindings += [Binding(weights=weights, attributes={"activation": name}) for name in ACTIVATIONS]
    return tuple(bindings)


def _laid_out(shape: tuple[int, ...], transform: str) -> tuple[int, ...]:
    return (shape[0], shape[2], shape[1]) if transform == "transpose" else shape


def forward(operator: Any, weights: Any, attributes: Any, hidden: Any) -> Any:
    """Every expert on its rows, [E * T, N]."""
    return operator(hidden, weights["up"], weights["down"], **attributes)


def inputs(sizes: Any, draw: Any) -> tuple[Any, ...]:
    """x [E * T, H], up [E, H, 2 I], down [E, I, N]; N is H unless sizes say otherwise."""
    experts, hidden, intermediate = sizes["E"], sizes["H"], sizes["I"]
    return (
        draw.normal((experts * sizes["T"], hidden)),
        draw.weight((hidden, experts, 2 * intermediate)).transpose(1, 0, 2).copy(),
        draw.weight((intermediate, experts, sizes.get("N", hidden))).transpose(1, 0, 2).copy(),
    )


def flops(x: tuple[int, ...], up: tuple[int, ...], down: tuple[int, ...]) -> int:
    """Two per multiply-add of the products."""
    return 2 * x[0] * (up[1] * up[2] + down[1] * down[2])


def _case(name: str, kind: Any, activation: str = "silu", scale: float = 1.0, **sizes: int) -> Case:
    return Case(name=name, kind=kind, sizes=sizes, attributes={"activation": activation}, scale=scale)


RECIPE = Recipe(
    name="moe_dense_experts",
    summary="Experts that each have tokens of their own: a gated MLP for every expert.",
    schema="(Tensor x, Tensor up, Tensor down, str activation) -> Tensor",
    operation="module",
    bind=bind,
    forward=forward,
    sequence_axes=(None,),  # the rows of an expert cannot be varied without those of the others
    inputs=inputs,
    flops=flops,
    tolerance=Tolerance(reduction_length="I"),
    sizes={
        "T": Size(least=1, most=4096),
        "E": Size(least=1, most=128),
        "H": Size(least=1, most=8192),
        "I": Size(least=1, most=32768),
        "N": Size(least=1, most=8192),
    },
    cases=(
        _case("one token each", "ordinary", T=1, E=4, H=256, I=256),
        _case("a prompt", "ordinary", T=40, E=4, H=128, I=192),
        _case("gelu_tanh", "ordinary", "gelu_tanh", T=3, E=2, H=128, I=64),
        _case("tails everywhere", "tail", T=130, E=2, H=193, I=131, N=515),
        _case("one of each", "tail", T=1, E=1, H=1, I=1),
        _case("small values", "stress", scale=1e-3, T=5, E=3, H=128, I=96),
        _case("large values", "stress", scale=30.0, T=5, E=3, H=128, I=96),
        _case("two blocks of tokens", "large", T=600, E=2, H=128, I=256),
    ),
)
