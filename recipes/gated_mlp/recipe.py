"""Gated MLP with silu (SwiGLU): three bias-free projections, (silu(x @ gate) * (x @ up)) @ down.

Matches modules whose only parameters are three 2-D weights of children, two [I, H] and one [N, I], called
with one tensor of H features. Names say which is gate and which is up; the numeric probe decides.
Any T; float32 and bfloat16. Sizes: T = tokens, H = hidden, I = intermediate, N = output features.
"""

from __future__ import annotations

from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size, Tolerance
from neuron_port.types import WeightSource

# Parts of the children's names that say what they are, in the order of the roles.
ROLE_NAMES = {"gate": ("gate", "w1", "wi_0"), "up": ("up", "w3", "wi_1"), "down": ("down", "w2", "wo")}


def bind(call: Any) -> Binding | None:
    """Accept a module with three bias-free linear children that can be gate, up and down projection."""
    module = call.module
    if call.operation != "module" or module is None or len(call.inputs) != 1:
        return None
    x = call.inputs[0]
    shapes = {name: tuple(weight.shape) for name, weight in module.named_parameters()}
    linear = all(name.endswith(".weight") and len(shape) == 2 for name, shape in shapes.items())
    if x.dtype not in RECIPE.dtypes or len(shapes) != 3 or not linear:
        return None
    roles = assign_roles(shapes, x.shape[-1])
    gate, up, down = (shapes[roles[role]] for role in ROLE_NAMES)
    if gate != up or gate[1] != x.shape[-1] or down[1] != gate[0]:
        return None
    sources = {role: WeightSource(name=name, transform="transpose") for role, name in roles.items()}
    return Binding(weights=sources)


def assign_roles(shapes: dict[str, tuple[int, ...]], hidden: int) -> dict[str, str]:
    """Roles by parts of the names; names that say nothing take the rest in order, down by its shape."""
    said: dict[str, str] = {}
    for role, parts in ROLE_NAMES.items():
        free = [name for name in shapes if name not in said.values()]
        named = [name for name in free if any(part in name.lower() for part in parts)]
        if len(named) == 1:
            said[role] = named[0]
    rest = [name for name in shapes if name not in said.values()]
    rest.sort(key=lambda name: shapes[name][1] != hidden)  # stable; only down reads other than H features
    return {role: said.get(role) or rest.pop(0) for role in ROLE_NAMES}


def forward(operator: Any, weights: Any, attributes: Any, hidden: Any) -> Any:
    """Apply the MLP to [..., H] through the operator on [T, H]."""
    rows = hidden.reshape(-1, hidden.shape[-1])
    result = operator(rows, weights["gate"], weights["up"], weights["down"])
    return result.reshape(*hidden.shape[:-1], result.shape[-1])


def inputs(sizes: Any, draw: Any) -> tuple[Any, ...]:
    """x [T, H], gate and up [H, I], down [I, N]; N is H unless sizes say otherwise."""
    hidden, intermediate = sizes["H"], sizes["I"]
    return (
        draw.normal((sizes["T"], hidden)),
        draw.weight((hidden, intermediate)),
        draw.weight((hidden, intermediate)),
        draw.weight((intermediate, sizes.get("N", hidden))),
    )


def flops(x: tuple[int, ...], gate: tuple[int, ...], up: tuple[int, ...], down: tuple[int, ...]) -> int:
    """Two per multiply-add of the three products."""
    return 2 * x[0] * (gate[0] * gate[1] + up[0] * up[1] + down[0] * down[1])


RECIPE = Recipe(
    name="gated_mlp",
    summary="Gated MLP with silu: (silu(x @ gate) * (x @ up)) @ down.",
    schema="(Tensor x, Tensor gate, Tensor up, Tensor down) -> Tensor",
    operation="module",
    bind=bind,
    forward=forward,
    sequence_axes=(1,),
    inputs=inputs,
    flops=flops,
    tolerance=Tolerance(reduction_length="I"),
    sizes={
        "T": Size(least=1, most=32768),
        "H": Size(least=1, most=16384),
        "I": Size(least=1, most=65536),
        "N": Size(least=1, most=16384),
    },
    cases=(
        Case(name="one token", kind="ordinary", sizes={"T": 1, "H": 576, "I": 1536}),
        Case(name="one token, spread", kind="ordinary", sizes={"T": 1, "H": 512, "I": 1408}),
        Case(name="four tokens, spread", kind="ordinary", sizes={"T": 4, "H": 256, "I": 640}),
        Case(name="a prompt", kind="ordinary", sizes={"T": 128, "H": 576, "I": 1536}),
        Case(name="tails everywhere", kind="tail", sizes={"T": 130, "H": 193, "I": 577, "N": 515}),
        Case(name="less than a chunk", kind="tail", sizes={"T": 2, "H": 65, "I": 33}),
        Case(name="one of each", kind="tail", sizes={"T": 1, "H": 1, "I": 1}),
        Case(name="small values", kind="stress", sizes={"T": 5, "H": 192, "I": 320}, scale=1e-3),
        Case(name="large values", kind="stress", sizes={"T": 20, "H": 192, "I": 320}, scale=30.0),
        Case(name="two blocks of tokens", kind="large", sizes={"T": 700, "H": 256, "I": 640}),
    ),
)
