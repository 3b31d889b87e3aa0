"""Root mean square normalisation with a gain, as in Llama: normalise and multiply by gamma, in float32.

Matches modules whose only parameter is a 1-D `weight` as long as the last axis of their input, and which
carry an epsilon. Variants (gain 1 + w, gain in float32) pass this hint; the numeric probe refuses them.
Any T; H up to 16384; float32 and bfloat16. Sizes: T = tokens, H = hidden.
"""

from __future__ import annotations

from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size, Tolerance
from neuron_port.types import WeightSource

EPSILON_NAMES = ("variance_epsilon", "eps", "epsilon")


def bind(call: Any) -> Binding | None:
    """Accept a module with one 1-D parameter `weight` over the last axis and an epsilon attribute."""
    module = call.module
    if call.operation != "module" or module is None or len(call.inputs) != 1:
        return None
    if [name for name, _ in module.named_parameters()] != ["weight"] or module.weight.ndim != 1:
        return None
    if module.weight.shape[0] != call.inputs[0].shape[-1]:
        return None
    for name in EPSILON_NAMES:
        eps = getattr(module, name, None)
        if isinstance(eps, float):
            return Binding(weights={"gamma": WeightSource(name="weight")}, attributes={"eps": eps})
    return None


def forward(operator: Any, weights: Any, attributes: Any, hidden: Any) -> Any:
    """Normalise [..., H] through the operator on [T, H]."""
    rows = hidden.reshape(-1, hidden.shape[-1])
    return operator(rows, weights["gamma"], **attributes).reshape(hidden.shape)


def inputs(sizes: Any, draw: Any) -> tuple[Any, ...]:
    """x [T, H], gamma [H]."""
    return draw.normal((sizes["T"], sizes["H"])), draw.normal((sizes["H"],))


def flops(*shapes: tuple[int, ...]) -> int:
    """TensorE is not used (but for one tiny sum over partitions in decode)."""
    return 0


EPS = {"eps": 1e-5}
RECIPE = Recipe(
    name="rms_norm",
    summary="Root mean square normalisation with a gain.",
    schema="(Tensor x, Tensor gamma, float eps) -> Tensor",
    operation="module",
    bind=bind,
    forward=forward,
    sequence_axes=(1,),
    inputs=inputs,
    flops=flops,
    tolerance=Tolerance(reduction_length="H"),
    sizes={
        "T": Size(least=1, most=32768),
        "H": Size(least=1, most=16384),
    },
    cases=(
        Case(name="one token", kind="ordinary", sizes={"T": 1, "H": 4096}, attributes=EPS),
        Case(name="a prompt", kind="ordinary", sizes={"T": 128, "H": 576}, attributes=EPS),
        Case(name="eight tokens", kind="ordinary", sizes={"T": 8, "H": 256}, attributes={"eps": 1e-6}),
        Case(name="few tokens, uneven", kind="tail", sizes={"T": 3, "H": 577}, attributes=EPS),
        Case(name="two partial tiles", kind="tail", sizes={"T": 130, "H": 577}, attributes=EPS),
        Case(name="one feature", kind="tail", sizes={"T": 9, "H": 1}, attributes=EPS),
        Case(name="epsilon decides", kind="stress", sizes={"T": 16, "H": 256}, attributes=EPS, scale=1e-3),
        Case(
            name="epsilon decides for two",
            kind="stress",
            sizes={"T": 2, "H": 256},
            attributes=EPS,
            scale=1e-3,
        ),
        Case(name="large values", kind="stress", sizes={"T": 16, "H": 256}, attributes=EPS, scale=30.0),
        Case(name="several blocks of columns", kind="large", sizes={"T": 130, "H": 5000}, attributes=EPS),
    ),
)
