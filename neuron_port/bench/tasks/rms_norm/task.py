"""Root mean square normalisation with a gain, everything in the dtype's own float32. Sizes: T = tokens, H = hidden."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neuron_port.bench.suite import described
from neuron_port.recipe import Case, Size, Tolerance


def reference(x: Any, gamma: Any, eps: float) -> Any:
    """Divide each row of x [T, H] by its root mean square and scale by gamma [H]. Returns [T, H]."""
    import torch

    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * gamma


def inputs(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    """x [T, H], gamma [H]."""
    return draw.normal((sizes["T"], sizes["H"])), draw.weight((sizes["H"],))


EPS = {"eps": 1e-5}
TASK = described(
    __file__,
    name="rms_norm",
    summary="Root mean square normalisation with a gain.",
    schema="(Tensor x, Tensor gamma, float eps) -> Tensor",
    layout={"x": "[T, H]", "gamma": "[H]", "return": "[T, H]"},
    reference=reference,
    inputs=inputs,
    tolerance=Tolerance(reduction_length="H"),
    sizes={"T": Size(least=1, most=300), "H": Size(least=1, most=1200)},
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
