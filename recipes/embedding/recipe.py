"""Embedding lookup: a row of a table for each token id.

Matches modules whose only parameter is a 2-D `weight` and whose input is integer ids; scaled or renormalising
embeddings (max_norm) are left to others. Any size; float32 and bfloat16; the result is exact.
Sizes: T = tokens, V = vocabulary, H = hidden.
"""

from __future__ import annotations

from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size
from neuron_port.types import WeightSource

INTEGERS = ("int32", "int64")


def bind(call: Any) -> Binding | None:
    """Accept a module with one 2-D parameter `weight` that is called with integer ids."""
    module = call.module
    if call.operation != "module" or module is None:
        return None
    if len(call.inputs) != 1 or call.inputs[0].dtype not in INTEGERS:
        return None
    if [name for name, _ in module.named_parameters()] != ["weight"] or module.weight.ndim != 2:
        return None
    if getattr(module, "max_norm", None) is not None:  # rewrites its own table while it looks up
        return None
    return Binding(weights={"table": WeightSource(name="weight")})


def forward(operator: Any, weights: Any, attributes: Any, ids: Any) -> Any:
    """Look up ids [..., S] of any integer dtype through the operator on int32 [T]."""
    table = weights["table"]
    return operator(ids.reshape(-1).int(), table).reshape(*ids.shape, table.shape[1])


def inputs(sizes: Any, draw: Any) -> tuple[Any, ...]:
    """ids [T], table [V, H]."""
    return draw.integers(0, sizes["V"], (sizes["T"],)), draw.normal((sizes["V"], sizes["H"]))


def flops(*shapes: tuple[int, ...]) -> int:
    """TensorE is not used."""
    return 0


RECIPE = Recipe(
    name="embedding",
    summary="A row of a table for each token id.",
    schema="(Tensor ids, Tensor table) -> Tensor",
    operation="module",
    bind=bind,
    forward=forward,
    sequence_axes=(1,),
    inputs=inputs,
    flops=flops,
    sizes={
        "T": Size(least=1, most=32768),
        "V": Size(least=1, most=262144),
        "H": Size(least=1, most=65536),
    },
    cases=(
        Case(name="one token", kind="ordinary", sizes={"T": 1, "V": 1000, "H": 576}),
        Case(name="a prompt", kind="ordinary", sizes={"T": 128, "V": 1000, "H": 256}),
        Case(name="one row again and again", kind="stress", sizes={"T": 130, "V": 1, "H": 96}),
        Case(name="two partial tiles", kind="tail", sizes={"T": 130, "V": 77, "H": 577}),
        Case(name="one row", kind="tail", sizes={"T": 3, "V": 1, "H": 1}),
        Case(name="wider than one block", kind="large", sizes={"T": 5, "V": 40, "H": 20000}),
    ),
)
