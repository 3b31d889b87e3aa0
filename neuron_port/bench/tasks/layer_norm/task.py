"""Layer normalisation with gain and shift, as in BERT. Sizes: T = tokens, H = hidden."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neuron_port.bench.suite import described
from neuron_port.recipe import Case, Size, Tolerance


def reference(x: Any, gamma: Any, beta: Any, eps: float) -> Any:
    """Normalise rows of x [T, H] to mean 0 and variance 1, times gamma [H], plus beta [H]. Returns [T, H]."""
    import torch

    return torch.nn.functional.layer_norm(x, (x.shape[-1],), gamma, beta, eps)


def inputs(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    """x [T, H], gamma [H], beta [H]."""
    return draw.normal((sizes["T"], sizes["H"])), draw.weight((sizes["H"],)), draw.weight((sizes["H"],))


EPS = {"eps": 1e-5}
TASK = described(
    __file__,
    name="layer_norm",
    summary="Layer normalisation with gain and shift.",
    schema="(Tensor x, Tensor gamma, Tensor beta, float eps) -> Tensor",
    layout={"x": "[T, H]", "gamma": "[H]", "beta": "[H]", "return": "[T, H]"},
    reference=reference,
    inputs=inputs,
    tolerance=Tolerance(reduction_length="H"),
    sizes={"T": Size(least=1, most=300), "H": Size(least=2, most=1200)},
    cases=(
        Case(name="small", kind="ordinary", sizes={"T": 16, "H": 64}, attributes=EPS),
        Case(name="two tiles, one partial", kind="tail", sizes={"T": 150, "H": 200}, attributes=EPS),
        Case(name="one row", kind="tail", sizes={"T": 1, "H": 577}, attributes=EPS),
        Case(name="wide", kind="ordinary", sizes={"T": 128, "H": 768}, attributes=EPS),
        Case(name="epsilon decides", kind="stress", sizes={"T": 16, "H": 96}, attributes=EPS, scale=1e-3),
        Case(name="large values", kind="stress", sizes={"T": 16, "H": 96}, attributes=EPS, scale=30.0),
        Case(name="outliers", kind="stress", sizes={"T": 16, "H": 96}, attributes=EPS, style="outliers"),
    ),
)
