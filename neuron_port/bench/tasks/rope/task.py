"""Rotary position embedding, half rotation over the whole head. Sizes: T = tokens, N = heads, D = head dimension."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neuron_port.bench.suite import described
from neuron_port.recipe import Case, Size


def reference(x: Any, cos: Any, sin: Any) -> Any:
    """x * cos + rotate_half(x) * sin for x [T, N, D], cos and sin [T, D]. Returns [T, N, D]."""
    import torch

    left, right = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat((-right, left), dim=-1) * sin[:, None]


def inputs(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    """x [T, N, D], cos [T, D], sin [T, D]: the two halves of cos and sin are drawn apart."""
    import numpy as np

    shape = (sizes["T"], sizes["D"])
    angles = draw.weight(shape) * np.float32(np.sqrt(shape[0]) * 3.0)
    return draw.normal((sizes["T"], sizes["N"], sizes["D"])), np.cos(angles), np.sin(angles)


TASK = described(
    __file__,
    name="rope",
    summary="Rotary position embedding by half rotation.",
    schema="(Tensor x, Tensor cos, Tensor sin) -> Tensor",
    layout={"x": "[T, N, D]", "cos": "[T, D]", "sin": "[T, D]", "return": "[T, N, D]"},
    reference=reference,
    inputs=inputs,
    sizes={
        "T": Size(least=1, most=300),
        "N": Size(least=1, most=8),
        "D": Size(least=2, most=128, multiple=2),
    },
    cases=(
        Case(name="small", kind="ordinary", sizes={"T": 16, "N": 2, "D": 16}),
        Case(name="partial tile", kind="tail", sizes={"T": 150, "N": 3, "D": 24}),
        Case(name="one token", kind="tail", sizes={"T": 1, "N": 8, "D": 64}),
        Case(name="two tiles", kind="ordinary", sizes={"T": 256, "N": 4, "D": 64}),
        Case(name="tiny values", kind="stress", sizes={"T": 16, "N": 2, "D": 32}, scale=1e-3),
        Case(name="outliers", kind="stress", sizes={"T": 16, "N": 2, "D": 32}, style="outliers"),
    ),
)
