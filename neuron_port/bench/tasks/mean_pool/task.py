"""The mean over tokens, as sentence embeddings take it. Sizes: B = batch, T = tokens, H = hidden."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neuron_port.bench.suite import described
from neuron_port.recipe import Case, Size, Tolerance


def reference(x: Any) -> Any:
    """Average x [B, T, H] over its tokens. Returns [B, H]."""
    return x.mean(1)


def inputs(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    """x [B, T, H]."""
    return (draw.normal((sizes["B"], sizes["T"], sizes["H"])),)


TASK = described(
    __file__,
    name="mean_pool",
    summary="The mean over the tokens of each sequence.",
    schema="(Tensor x) -> Tensor",
    layout={"x": "[B, T, H]", "return": "[B, H]"},
    reference=reference,
    inputs=inputs,
    tolerance=Tolerance(reduction_length="T"),
    sizes={"B": Size(least=1, most=4), "T": Size(least=1, most=300), "H": Size(least=1, most=640)},
    cases=(
        Case(name="small", kind="ordinary", sizes={"B": 3, "T": 16, "H": 32}),
        Case(name="partial tile", kind="tail", sizes={"B": 2, "T": 150, "H": 100}),
        Case(name="one token", kind="tail", sizes={"B": 2, "T": 1, "H": 77}),
        Case(name="several tiles each way", kind="ordinary", sizes={"B": 2, "T": 256, "H": 600}),
        Case(name="tiny values", kind="stress", sizes={"B": 1, "T": 24, "H": 48}, scale=1e-3),
        Case(name="long tail", kind="stress", sizes={"B": 1, "T": 24, "H": 48}, style="long tail"),
    ),
)
