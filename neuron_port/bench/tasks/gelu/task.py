"""The exact GELU, with the error function. Sizes: T = tokens, H = hidden."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neuron_port.bench.suite import described
from neuron_port.recipe import Case, Size


def reference(x: Any) -> Any:
    """x * (1 + erf(x / sqrt(2))) / 2 of each element of x [T, H]. Returns [T, H]."""
    import torch

    return torch.nn.functional.gelu(x)


def inputs(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    """x [T, H]."""
    return (draw.normal((sizes["T"], sizes["H"])),)


TASK = described(
    __file__,
    name="gelu",
    summary="The exact GELU of each element.",
    schema="(Tensor x) -> Tensor",
    layout={"x": "[T, H]", "return": "[T, H]"},
    reference=reference,
    inputs=inputs,
    sizes={"T": Size(least=1, most=300), "H": Size(least=1, most=1200)},
    cases=(
        Case(name="small", kind="ordinary", sizes={"T": 16, "H": 64}),
        Case(name="two tiles, one partial", kind="tail", sizes={"T": 150, "H": 200}),
        Case(name="one row", kind="tail", sizes={"T": 1, "H": 577}),
        Case(name="wide", kind="ordinary", sizes={"T": 128, "H": 768}),
        Case(name="beyond saturation", kind="stress", sizes={"T": 16, "H": 96}, scale=30.0),
        Case(name="tiny values", kind="stress", sizes={"T": 16, "H": 96}, scale=1e-3),
    ),
)
