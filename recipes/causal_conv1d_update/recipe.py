"""One step of a causal depthwise convolution, with or without silu: the short memory of state-space layers in decoding.

Matches functions that are called as `f(hidden [B, C, 1], state [B, C, L], weight [C, K], bias [C] or None, activation)`
and leave the new state in `state`. The operator returns it instead, and `forward` copies it there, so that an exported
graph has it as an output. Any size with L at least K - 1; float32 and bfloat16.
Sizes: B = sequences, C = channels, L = length of the state, K = taps.
"""

from __future__ import annotations

from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size, Tolerance

ACTIVATIONS: dict[Any, bool] = {None: False, "silu": True, "swish": True}  # -> whether silu is taken


def arguments(
    hidden_states: Any, conv_state: Any, weight: Any = None, bias: Any = None, activation: Any = None
) -> tuple[Any, Any, Any, Any, Any]:
    """The call's arguments in one order, whichever of them it passed by name."""
    return hidden_states, conv_state, weight, bias, activation


def bind(call: Any) -> Binding | None:
    """Accept x [B, C, 1], state [B, C, L], weight [C, K] with K at most L + 1, and perhaps bias [C]."""
    if not 2 <= len(call.args) <= 5 or len(call.inputs) not in (3, 4):
        return None
    if not set(call.kwargs) <= {"weight", "bias", "activation"}:
        return None
    x, state, weight = (spec.shape for spec in call.inputs[:3])
    if len(x) != 3 or len(state) != 3 or len(weight) != 2 or x != (*state[:2], 1):
        return None
    if weight[0] != x[1] or weight[1] > state[2] + 1 or len({spec.dtype for spec in call.inputs}) > 1:
        return None
    if len(call.inputs) == 4 and call.inputs[3].shape != x[1:2]:
        return None
    activation = arguments(*call.args, **call.kwargs)[4]
    if not (activation is None or isinstance(activation, str)) or activation not in ACTIVATIONS:
        return None
    return Binding(attributes={"silu": ACTIVATIONS[activation]})


def forward(operator: Any, weights: Any, attributes: Any, *args: Any, **kwargs: Any) -> Any:
    """Returns the result [B, C, 1]; the new state goes where the old one was."""
    x, state, weight, bias, _ = arguments(*args, **kwargs)
    out, new_state = operator(x, state, weight, bias, silu=attributes["silu"])
    state.copy_(new_state)
    return out


def inputs(sizes: Any, draw: Any) -> tuple[Any, ...]:
    """x [B, C, 1], state [B, C, L], weight [C, K] and, if sizes say so, bias [C]."""
    x = draw.normal((sizes["B"], sizes["C"], 1))
    state = draw.normal((sizes["B"], sizes["C"], sizes["L"]))
    weight = draw.weight((sizes["K"], sizes["C"])).T.copy()
    return (x, state, weight, draw.normal((sizes["C"],))) if sizes.get("bias") else (x, state, weight)


def flops(*shapes: tuple[int, ...], silu: bool = False) -> int:
    """None: TensorE has no part in it."""
    return 0


def _case(name: str, kind: Any, *sizes: int, silu: bool = True, bias: int = 1, scale: float = 1.0) -> Case:
    named = dict(zip("BCLK", sizes, strict=True)) | {"bias": bias}
    return Case(name=name, kind=kind, sizes=named, attributes={"silu": silu}, scale=scale)


RECIPE = Recipe(
    name="causal_conv1d_update",
    summary="One step of a causal depthwise convolution, and its new state.",
    schema="(Tensor x, Tensor state, Tensor weight, Tensor? bias, bool silu) -> (Tensor, Tensor)",
    operation="function",
    bind=bind,
    forward=forward,
    sequence_axes=(None, None, None, None),
    inputs=inputs,
    flops=flops,
    tolerance=Tolerance(reduction_length="K"),
    sizes={
        "B": Size(least=1, most=64),
        "C": Size(least=1, most=16384),
    },
    cases=(
        _case("four taps with silu", "ordinary", 1, 256, 4, 4),
        _case("a state of three", "ordinary", 4, 384, 3, 4),
        _case("three taps, plain", "ordinary", 2, 96, 3, 3, silu=False, bias=0),
        _case("channels left over", "tail", 3, 200, 4, 4),
        _case("a long state", "tail", 2, 130, 7, 2),
        _case("one of each", "tail", 1, 1, 1, 2, silu=False),
        _case("small values", "stress", 1, 64, 4, 4, scale=1e-3),
        _case("large values", "stress", 1, 64, 4, 4, scale=30.0),
        _case("many sequences", "large", 24, 2816, 4, 4),
    ),
)
