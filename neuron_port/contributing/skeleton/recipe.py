"""Rectifier with a gain: values below a floor are raised to it, then each feature is scaled.

Matches modules whose only parameter is a 1-D `weight` as long as the last axis of their input, and that carry a
`floor`. Any T and H; float32 and bfloat16. Sizes: T = tokens, H = hidden.
"""

from __future__ import annotations

from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size
from neuron_port.types import WeightSource


def bind(call: Any) -> Binding | None:
    """Accept a module with one 1-D parameter `weight` over the last axis and a `floor`; the probe decides."""
    module = call.module
    if call.operation != "module" or module is None or len(call.inputs) != 1:
        return None
    if [name for name, _ in module.named_parameters()] != ["weight"] or module.weight.ndim != 1:
        return None
    if module.weight.shape[0] != call.inputs[0].shape[-1]:
        return None
    floor = getattr(module, "floor", None)
    if not isinstance(floor, float):
        return None
    return Binding(weights={"gain": WeightSource(name="weight")}, attributes={"floor": floor})


def forward(operator: Any, weights: Any, attributes: Any, hidden: Any) -> Any:
    """Speak the layer's own convention, [..., H], through the operator on [T, H]."""
    rows = hidden.reshape(-1, hidden.shape[-1])
    return operator(rows, weights["gain"], **attributes).reshape(hidden.shape)


def inputs(sizes: Any, draw: Any) -> tuple[Any, ...]:
    """x [T, H], gain [H]."""
    return draw.normal((sizes["T"], sizes["H"])), draw.normal((sizes["H"],))


def flops(*shapes: tuple[int, ...]) -> int:
    """TensorE is not used."""
    return 0


FLOOR = {"floor": -0.25}
RECIPE = Recipe(
    name="my_recipe",
    summary="Rectifier with a gain.",
    schema="(Tensor x, Tensor gain, float floor) -> Tensor",
    operation="module",
    bind=bind,
    forward=forward,
    sequence_axes=(-2,),
    inputs=inputs,
    flops=flops,
    sizes={"T": Size(least=1, most=32768), "H": Size(least=1, most=65536)},
    cases=(
        Case(name="one token", kind="ordinary", sizes={"T": 1, "H": 4096}, attributes=FLOOR),
        Case(name="a prompt", kind="ordinary", sizes={"T": 128, "H": 768}, attributes=FLOOR),
        Case(name="two partial tiles", kind="tail", sizes={"T": 130, "H": 577}, attributes=FLOOR),
        Case(name="one feature", kind="tail", sizes={"T": 9, "H": 1}, attributes=FLOOR),
        Case(
            name="the floor decides",
            kind="stress",
            sizes={"T": 5, "H": 256},
            attributes={"floor": 0.0},
            scale=1e-3,
        ),
        Case(name="large values", kind="stress", sizes={"T": 5, "H": 256}, attributes=FLOOR, scale=30.0),
        Case(name="a long prompt", kind="large", sizes={"T": 512, "H": 4096}, attributes=FLOOR),
        Case(name="two blocks of features", kind="large", sizes={"T": 3, "H": 9000}, attributes=FLOOR),
    ),
)
