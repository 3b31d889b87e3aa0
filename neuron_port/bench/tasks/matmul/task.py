"""Matrix product with weights in [K, N]. Sizes: T = tokens, K = input features, N = output features."""

from __future__ import annotations

from typing import Any

from neuron_port.bench.suite import described
from neuron_port.recipe import Case, Size, Tolerance


def reference(x: Any, weight: Any) -> Any:
    """Multiply x [T, K] by weight [K, N]. Returns [T, N]."""
    return x @ weight


def inputs(sizes: Any, draw: Any) -> tuple[Any, ...]:
    """x [T, K], weight [K, N]."""
    return draw.normal((sizes["T"], sizes["K"])), draw.weight((sizes["K"], sizes["N"]))


def flops(x: tuple[int, ...], weight: tuple[int, ...]) -> int:
    """2 T K N."""
    return 2 * x[0] * weight[0] * weight[1]


TASK = described(
    __file__,
    name="matmul",
    summary="Matrix product of activations and weights.",
    schema="(Tensor x, Tensor weight) -> Tensor",
    layout={"x": "[T, K]", "weight": "[K, N]", "return": "[T, N]"},
    reference=reference,
    inputs=inputs,
    flops=flops,
    tolerance=Tolerance(reduction_length="K"),
    sizes={"T": Size(least=1, most=300), "K": Size(least=1, most=400), "N": Size(least=1, most=640)},
    cases=(
        Case(name="small", kind="ordinary", sizes={"T": 16, "K": 64, "N": 32}),
        Case(name="uneven", kind="tail", sizes={"T": 77, "K": 200, "N": 130}),
        Case(name="one token", kind="tail", sizes={"T": 1, "K": 129, "N": 48}),
        Case(name="several tiles each way", kind="ordinary", sizes={"T": 256, "K": 256, "N": 520}),
        Case(name="tiny values", kind="stress", sizes={"T": 16, "K": 96, "N": 32}, scale=1e-3),
        Case(name="outliers", kind="stress", sizes={"T": 16, "K": 96, "N": 32}, style="outliers"),
    ),
)
