"""Softmax over the last axis. Sizes: T = tokens, H = row length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neuron_port.bench.suite import described, rows_sum_to_one
from neuron_port.recipe import Case, Size, Tolerance


def reference(x: Any) -> Any:
    """Softmax of each row of x [T, H]. Returns [T, H]."""
    import torch

    return torch.softmax(x, dim=-1)


def inputs(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    """x [T, H]."""
    return (draw.normal((sizes["T"], sizes["H"])),)


TASK = described(
    __file__,
    name="softmax",
    summary="Softmax of each row.",
    schema="(Tensor x) -> Tensor",
    layout={"x": "[T, H]", "return": "[T, H]"},
    reference=reference,
    inputs=inputs,
    tolerance=Tolerance(reduction_length="H"),
    sizes={"T": Size(least=1, most=300), "H": Size(least=1, most=1200)},
    invariants=(rows_sum_to_one(),),
    cases=(
        Case(name="small", kind="ordinary", sizes={"T": 16, "H": 64}),
        Case(name="two tiles, one partial", kind="tail", sizes={"T": 150, "H": 200}),
        Case(name="one long row", kind="tail", sizes={"T": 1, "H": 1000}),
        Case(name="wide", kind="ordinary", sizes={"T": 128, "H": 768}),
        Case(name="scores in the hundreds", kind="stress", sizes={"T": 16, "H": 96}, scale=100.0),
        Case(name="one winner", kind="stress", sizes={"T": 16, "H": 96}, style="one hot", scale=6.0),
        Case(name="close scores", kind="stress", sizes={"T": 16, "H": 96}, style="clustered", scale=6.0),
    ),
)
