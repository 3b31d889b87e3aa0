"""Causal depthwise convolution of a sequence, with or without silu: the short memory of state-space layers.

Matches functions that are called as `f(hidden [B, C, S], weight [C, K], bias [C] or None, activation)`, and in which
each channel of position s is a weighted sum of its positions s - K + 1 to s: Mamba, Mamba 2, Jamba, Bamba, Falcon H1,
Qwen3-Next, LFM2. Any size, K up to 128; float32 and bfloat16.
Sizes: B = sequences, C = channels, S = length, K = taps.
"""

from __future__ import annotations

from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size, Tolerance

MOST_TAPS = 128
ACTIVATIONS: dict[Any, bool] = {None: False, "silu": True, "swish": True}  # -> whether silu is taken


def arguments(
    hidden_states: Any, weight: Any = None, bias: Any = None, activation: Any = None, **rest: Any
) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
    """The call's arguments in one order, whichever of them it passed by name; and what else it passed."""
    return hidden_states, weight, bias, activation, rest


def bind(call: Any) -> Binding | None:
    """Accept x [B, C, S], weight [C, K] and perhaps bias [C]; nothing else that is a tensor."""
    if not 1 <= len(call.args) <= 4 or len(call.inputs) not in (2, 3) or "hidden_states" in call.kwargs:
        return None
    x, weight = call.inputs[:2]
    if len(x.shape) != 3 or len(weight.shape) != 2 or weight.shape[0] != x.shape[1]:
        return None
    if weight.shape[1] > MOST_TAPS or len({spec.dtype for spec in call.inputs}) > 1:
        return None
    if len(call.inputs) == 3 and call.inputs[2].shape != x.shape[1:2]:
        return None
    activation = arguments(*call.args, **call.kwargs)[3]
    if not (activation is None or isinstance(activation, str)) or activation not in ACTIVATIONS:
        return None
    return Binding(attributes={"silu": ACTIVATIONS[activation]})


def forward(operator: Any, weights: Any, attributes: Any, *args: Any, **kwargs: Any) -> Any:
    """Convolve [B, C, S]."""
    x, weight, bias, _, _ = arguments(*args, **kwargs)
    return operator(x, weight, bias, silu=attributes["silu"])


def inputs(sizes: Any, draw: Any) -> tuple[Any, ...]:
    """x [B, C, S], weight [C, K] and, if sizes say so, bias [C]."""
    x = draw.normal((sizes["B"], sizes["C"], sizes["S"]))
    weight = draw.weight((sizes["K"], sizes["C"])).T.copy()
    return (x, weight, draw.normal((sizes["C"],))) if sizes.get("bias") else (x, weight)


def flops(
    x: tuple[int, ...], weight: tuple[int, ...], bias: tuple[int, ...] | None = None, *, silu: bool = False
) -> int:
    """Two per multiply-add."""
    return 2 * x[0] * x[1] * x[2] * weight[1]


def _case(name: str, kind: Any, *sizes: int, silu: bool = True, bias: int = 1, scale: float = 1.0) -> Case:
    named = dict(zip("BCSK", sizes, strict=True)) | {"bias": bias}
    return Case(name=name, kind=kind, sizes=named, attributes={"silu": silu}, scale=scale)


RECIPE = Recipe(
    name="causal_conv1d",
    summary="Causal depthwise convolution of a sequence, with or without silu.",
    schema="(Tensor x, Tensor weight, Tensor? bias, bool silu) -> Tensor",
    operation="function",
    bind=bind,
    forward=forward,
    sequence_axes=(2, None, None),
    inputs=inputs,
    flops=flops,
    tolerance=Tolerance(reduction_length="K"),
    sizes={
        "B": Size(least=1, most=64),
        "C": Size(least=1, most=16384),
        "S": Size(least=1, most=32768),
        "K": Size(least=1, most=8),
    },
    cases=(
        _case("four taps with silu", "ordinary", 1, 256, 130, 4),
        _case("three taps, plain", "ordinary", 2, 96, 64, 3, silu=False, bias=0),
        _case("channels left over", "tail", 3, 200, 37, 4),
        _case("shorter than the kernel", "tail", 2, 130, 2, 4),
        _case("one of each", "tail", 1, 1, 1, 1, silu=False),
        _case("small values", "stress", 1, 64, 50, 4, scale=1e-3),
        _case("large values", "stress", 1, 64, 50, 4, scale=30.0),
        _case("several bands", "large", 1, 130, 2100, 4),
    ),
)
