"""Root mean square normalisation: with a gain w (Llama), a gain 1 + w (Gemma), or none (Llama 4's L2 norm).

Matches modules without children that have at most one parameter, 1-D, as long as the last axis of their one input, and
an epsilon among their attributes. Norms of single heads [.., heads, D] match like norms of tokens. w or 1 + w, and
whether it is a root mean square at all, the numeric probe decides.
Any T; H up to 16384; float32 and bfloat16. Sizes: T = tokens, H = hidden, W = parameters (0 or 1).
"""

from __future__ import annotations

from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size, Tolerance
from neuron_port.types import WeightSource

EPSILON_NAMES = ("variance_epsilon", "eps", "epsilon", "layer_norm_eps", "rms_norm_eps", "norm_eps")

WIDEST = 16384  # rows that fit SBUF


def bind(call: Any) -> Binding | tuple[Binding, ...] | None:
    """Offer the gain w, then 1 + w; without a parameter, no gain."""
    module = call.module
    if call.operation != "module" or module is None or len(call.inputs) != 1 or any(module.children()):
        return None
    parameters = list(module.named_parameters())
    eps = epsilon(module)
    if eps is None or len(parameters) > 1 or any(buffer.numel() for _, buffer in module.named_buffers()):
        return None
    if len(call.inputs[0].shape) < 2 or not call.inputs[0].dtype.startswith(("float", "bfloat")):
        return None
    if not parameters:
        return Binding(attributes={"eps": eps})
    name, parameter = parameters[0]
    if parameter.ndim != 1 or parameter.shape[0] != call.inputs[0].shape[-1] or parameter.shape[0] > WIDEST:
        return None
    weights = {"gamma": WeightSource(name=name)}
    return (
        Binding(weights=weights, attributes={"eps": eps}),
        Binding(weights=weights, attributes={"eps": eps, "offset": 1.0}),
    )


def epsilon(module: Any) -> float | None:
    """The module's epsilon, under any of the names that models give it."""
    for name in EPSILON_NAMES:
        value = getattr(module, name, None)
        if isinstance(value, float):
            return value
    return None


def forward(operator: Any, weights: Any, attributes: Any, hidden: Any) -> Any:
    """Normalise [..., H] through the operator on [T, H]."""
    rows = hidden.reshape(-1, hidden.shape[-1]).contiguous()
    return operator(rows, weights.get("gamma"), **attributes).reshape(hidden.shape)


def inputs(sizes: Any, draw: Any) -> tuple[Any, ...]:
    """x [T, H], gamma [H]; gamma is None for W = 0."""
    x = draw.normal((sizes["T"], sizes["H"]))
    return x, draw.normal((sizes["H"],)) if sizes.get("W", 1) else None


def flops(*shapes: tuple[int, ...]) -> int:
    """TensorE is not used (but for one tiny sum over partitions in decode)."""
    return 0


EPS = {"eps": 1e-5}
ONE_PLUS = {"eps": 1e-6, "offset": 1.0}
RECIPE = Recipe(
    name="rms_norm",
    summary="Root mean square normalisation with a gain w, 1 + w, or none.",
    schema="(Tensor x, Tensor? gamma, float eps, float offset=0.0) -> Tensor",
    operation="module",
    bind=bind,
    forward=forward,
    mixed_dtypes=True,  # a residual stream kept in float32 beside 16-bit weights (Mamba)
    sequence_axes=(-2,),
    inputs=inputs,
    flops=flops,
    tolerance=Tolerance(reduction_length="H"),
    sizes={
        "T": Size(least=1, most=32768),
        "H": Size(least=1, most=WIDEST),
    },
    cases=(
        Case(name="one token", kind="ordinary", sizes={"T": 1, "H": 4096}, attributes=EPS),
        Case(name="a prompt", kind="ordinary", sizes={"T": 128, "H": 576}, attributes=EPS),
        Case(name="eight tokens", kind="ordinary", sizes={"T": 8, "H": 256}, attributes={"eps": 1e-6}),
        Case(name="one plus w", kind="ordinary", sizes={"T": 40, "H": 256}, attributes=ONE_PLUS),
        Case(name="one plus w, one token", kind="ordinary", sizes={"T": 1, "H": 640}, attributes=ONE_PLUS),
        Case(name="no gain", kind="ordinary", sizes={"T": 60, "H": 128, "W": 0}, attributes=EPS),
        Case(name="no gain, few tokens", kind="ordinary", sizes={"T": 4, "H": 128, "W": 0}, attributes=EPS),
        Case(name="heads, several on a partition", kind="tail", sizes={"T": 1300, "H": 64}, attributes=EPS),
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
