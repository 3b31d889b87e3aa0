"""The sum over the last axis. Sizes: T = tokens, H = row length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neuron_port.bench.suite import described
from neuron_port.recipe import Case, Size, Tolerance


def reference(x: Any) -> Any:
    """Sum each row of x [T, H]. Returns [T]."""
    return x.sum(-1)


def inputs(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    """x [T, H]."""
    return (draw.normal((sizes["T"], sizes["H"])),)


TASK = described(
    __file__,
    name="row_sum",
    summary="The sum of each row.",
    schema="(Tensor x) -> Tensor",
    layout={"x": "[T, H]", "return": "[T]"},
    reference=reference,
    inputs=inputs,
    tolerance=Tolerance(reduction_length="H"),
    sizes={"T": Size(least=1, most=300), "H": Size(least=1, most=3000)},
    cases=(
        Case(name="small", kind="ordinary", sizes={"T": 16, "H": 64}),
        Case(name="two tiles, one partial", kind="tail", sizes={"T": 150, "H": 200}),
        Case(name="one row", kind="tail", sizes={"T": 1, "H": 577}),
        Case(name="long rows", kind="ordinary", sizes={"T": 128, "H": 2500}),
        Case(name="large values", kind="stress", sizes={"T": 16, "H": 96}, scale=30.0),
        Case(name="long tail", kind="stress", sizes={"T": 16, "H": 96}, style="long tail"),
    ),
)
