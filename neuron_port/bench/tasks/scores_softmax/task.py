"""Causal attention weights: scaled q k^T, masked after the diagonal, softmax.

Sizes: B = batch x heads, S = sequence, D = head dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neuron_port.bench.suite import described, rows_sum_to_one
from neuron_port.recipe import Case, Size, Tolerance
from neuron_port.task import Invariant


def reference(q: Any, k: Any, scale: float) -> Any:
    """Softmax over the keys up to each query's own of scale * q k^T, for q, k [B, S, D]. Returns [B, S, S]."""
    import torch

    scores = (q @ k.transpose(-1, -2)) * scale
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    return torch.softmax(scores.masked_fill(later, float("-inf")), dim=-1)


def inputs(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    """q [B, S, D], k [B, S, D]."""
    shape = (sizes["B"], sizes["S"], sizes["D"])
    return draw.normal(shape), draw.normal(shape)


def later_keys_weigh_nothing(inputs: Any, attributes: Any, outputs: Any) -> str:
    """Name the first weight after the diagonal that is not zero."""
    import numpy as np

    places = np.argwhere(np.triu(np.asarray(outputs[0], dtype=np.float32), 1) != 0)
    if not len(places):
        return ""
    return f"{len(places)} weights of later keys are not zero, the first at {tuple(map(int, places[0]))}"


SCALE = {"scale": 0.125}
TASK = described(
    __file__,
    name="scores_softmax",
    summary="Causal attention weights: softmax of the scaled, masked product of queries and keys.",
    schema="(Tensor q, Tensor k, float scale) -> Tensor",
    layout={"q": "[B, S, D]", "k": "[B, S, D]", "return": "[B, S, S]"},
    reference=reference,
    inputs=inputs,
    flops=lambda q, k: 2 * q[0] * q[1] * k[1] * q[2],
    tolerance=Tolerance(reduction_length="D"),
    sizes={"B": Size(least=1, most=4), "S": Size(least=1, most=300), "D": Size(least=1, most=128)},
    invariants=(rows_sum_to_one(), Invariant(name="causal", check=later_keys_weigh_nothing)),
    cases=(
        Case(name="small", kind="ordinary", sizes={"B": 2, "S": 16, "D": 16}, attributes=SCALE),
        Case(name="partial tile", kind="tail", sizes={"B": 1, "S": 150, "D": 40}, attributes=SCALE),
        Case(name="one query", kind="tail", sizes={"B": 3, "S": 3, "D": 64}, attributes=SCALE),
        Case(name="two tiles", kind="ordinary", sizes={"B": 2, "S": 256, "D": 64}, attributes=SCALE),
        Case(
            name="scores in the hundreds",
            kind="stress",
            sizes={"B": 1, "S": 64, "D": 64},
            attributes=SCALE,
            scale=12.0,
        ),
    ),
)
