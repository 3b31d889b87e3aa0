"""silu(gate) * up, with gate and up side by side in one tensor. Sizes: T = tokens, I = intermediate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neuron_port.bench.suite import described
from neuron_port.recipe import Case, Size


def reference(x: Any) -> Any:
    """silu of the left half of each row of x [T, 2 I], times the right half. Returns [T, I]."""
    import torch

    gate, up = x.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def inputs(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    """x [T, 2 I]."""
    return (draw.normal((sizes["T"], 2 * sizes["I"])),)


TASK = described(
    __file__,
    name="swiglu",
    summary="Gated SiLU of a projection that holds gate and up side by side.",
    schema="(Tensor x) -> Tensor",
    layout={"x": "[T, 2 I]", "return": "[T, I]"},
    reference=reference,
    inputs=inputs,
    sizes={"T": Size(least=1, most=300), "I": Size(least=1, most=600)},
    cases=(
        Case(name="small", kind="ordinary", sizes={"T": 16, "I": 64}),
        Case(name="two tiles", kind="ordinary", sizes={"T": 256, "I": 128}),
        Case(name="partial tile", kind="tail", sizes={"T": 150, "I": 100}),
        Case(name="one row", kind="tail", sizes={"T": 1, "I": 577}),
        Case(name="tiny values", kind="stress", sizes={"T": 16, "I": 96}, scale=1e-3),
        Case(name="beyond saturation", kind="stress", sizes={"T": 16, "I": 96}, scale=30.0),
    ),
)
