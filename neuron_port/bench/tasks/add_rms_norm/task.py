"""Residual addition and root mean square normalisation of the sum; both are results. Sizes: T = tokens, H = hidden."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neuron_port.bench.suite import described
from neuron_port.recipe import Case, Size, Tolerance


def reference(x: Any, residual: Any, gamma: Any, eps: float) -> tuple[Any, Any]:
    """Add x and residual [T, H], normalise the sum by its root mean square, scale by gamma [H].

    Returns the normalised rows and the sum, both [T, H].
    """
    import torch

    added = x + residual
    return added * torch.rsqrt(added.pow(2).mean(-1, keepdim=True) + eps) * gamma, added


def inputs(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    """x [T, H], residual [T, H], gamma [H]."""
    shape = (sizes["T"], sizes["H"])
    return draw.normal(shape), draw.normal(shape), draw.weight((sizes["H"],))


EPS = {"eps": 1e-6}
TASK = described(
    __file__,
    name="add_rms_norm",
    summary="Residual addition followed by root mean square normalisation.",
    schema="(Tensor x, Tensor residual, Tensor gamma, float eps) -> (Tensor, Tensor)",
    layout={"x": "[T, H]", "residual": "[T, H]", "gamma": "[H]", "return": "([T, H], [T, H])"},
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
