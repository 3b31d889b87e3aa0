"""RMS norm with a gain and the projection after it, in one pass: (x / rms(x) * gamma) @ weight (+ bias).

Joins two layers: a norm's result that only one projection reads need not go through HBM. No cut point shows two
modules in one call today, so `bind` accepts nothing, and norm and projection are matched one by one; the kernel is
proven on its own cases and can be used by hand.
Any T and N; float32 and bfloat16. Sizes: T = tokens, K = features, N = output features.
"""

from __future__ import annotations

from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size, Tolerance


def bind(call: Any) -> Binding | None:
    """Accept nothing: a call is of one module, this is two."""
    return None


def forward(operator: Any, weights: Any, attributes: Any, hidden: Any) -> Any:
    """Normalise and project [..., K] to [..., N] through the operator on [T, K]."""
    rows = hidden.reshape(-1, hidden.shape[-1])
    result = operator(rows, weights["gamma"], weights["weight"], weights.get("bias"), **attributes)
    return result.reshape(*hidden.shape[:-1], result.shape[-1])


def inputs(sizes: Any, draw: Any) -> tuple[Any, ...]:
    """x [T, K], gamma [K], weight [K, N] and, if sizes say so, bias [N]."""
    x, gamma = draw.normal((sizes["T"], sizes["K"])), draw.normal((sizes["K"],))
    weight = draw.weight((sizes["K"], sizes["N"]))
    return (x, gamma, weight, draw.normal((sizes["N"],))) if sizes.get("bias") else (x, gamma, weight)


def flops(x: tuple[int, ...], gamma: tuple[int, ...], weight: tuple[int, ...], *bias: Any) -> int:
    """Two per multiply-add of the product; the norm takes none of TensorE."""
    return 2 * x[0] * weight[0] * weight[1]


EPS = {"eps": 1e-5}
RECIPE = Recipe(
    name="norm_linear",
    summary="RMS norm with a gain and the projection after it, in one pass.",
    schema="(Tensor x, Tensor gamma, Tensor weight, Tensor? bias=None, float eps=1e-6) -> Tensor",
    operation="module",
    bind=bind,
    forward=forward,
    sequence_axes=(-2,),
    inputs=inputs,
    flops=flops,
    tolerance=Tolerance(reduction_length="K"),
    sizes={
        "T": Size(least=1, most=32768),
        "K": Size(least=1, most=16384),
        "N": Size(least=1, most=262144),
    },
    cases=(
        Case(name="one token", kind="ordinary", sizes={"T": 1, "K": 576, "N": 1536}, attributes=EPS),
        Case(name="four tokens with bias", kind="ordinary", sizes={"T": 4, "K": 256, "N": 640, "bias": 1}),
        Case(name="a prompt", kind="ordinary", sizes={"T": 128, "K": 576, "N": 192}, attributes=EPS),
        Case(name="a prompt with bias", kind="ordinary", sizes={"T": 40, "K": 256, "N": 700, "bias": 1}),
        Case(name="tails everywhere", kind="tail", sizes={"T": 130, "K": 577, "N": 515, "bias": 1}),
        Case(name="less than a chunk", kind="tail", sizes={"T": 3, "K": 65, "N": 7}, attributes=EPS),
        Case(name="one of each", kind="tail", sizes={"T": 1, "K": 1, "N": 1}, attributes=EPS),
        Case(
            name="epsilon decides",
            kind="stress",
            sizes={"T": 20, "K": 256, "N": 130},
            attributes=EPS,
            scale=1e-3,
        ),
        Case(
            name="epsilon decides for two",
            kind="stress",
            sizes={"T": 2, "K": 256, "N": 130},
            attributes=EPS,
            scale=1e-3,
        ),
        Case(
            name="large values",
            kind="stress",
            sizes={"T": 20, "K": 640, "N": 130},
            attributes=EPS,
            scale=30.0,
        ),
        Case(name="two blocks of tokens", kind="large", sizes={"T": 600, "K": 320, "N": 300}, attributes=EPS),
        Case(name="several stages", kind="large", sizes={"T": 16, "K": 4224, "N": 256}, attributes=EPS),
    ),
)
