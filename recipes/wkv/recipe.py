"""RWKV's time mixing: per channel, a mean of all values so far whose weights decay exponentially, over any tokens.

Matches functions called as f(time_decay [C], time_first [C], key [B, S, C], value [B, S, C], state, return_state) with
state None or three tensors [B, C] (numerator, denominator, largest exponent), which return the means [B, S, C] and the
new state, or None. The rate of decay is -exp(time_decay); the newest token counts exp(key + time_first).
Any B, S and C; float32 and bfloat16, the state float32. Sizes: B = batch, S = tokens, C = channels.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size, Tolerance


def bind(call: Any) -> Binding | None:
    """Returns an empty Binding, or None."""
    try:
        given = inspect.signature(signature).bind(*call.args, **call.kwargs).arguments
    except TypeError:
        return None
    shapes = {name: tuple(value.shape) if hasattr(value, "shape") else None for name, value in given.items()}
    key = shapes["key"]
    if key is None or len(key) != 3 or shapes["value"] != key:
        return None
    if shapes["time_decay"] != key[2:] or shapes["time_first"] != key[2:]:
        return None
    state = given.get("state")
    if state is not None:
        held = (key[0], key[2])
        if not isinstance(state, (tuple, list)) or [tuple(item.shape) for item in state] != [held] * 3:
            return None
    return Binding()


def signature(
    time_decay: Any, time_first: Any, key: Any, value: Any, state: Any = None, return_state: bool = False
) -> tuple[Any, ...]:
    """Returns the operator's tensors, and whether the caller gets the new state."""
    tensors = (key, value, time_decay, time_first, *((None,) * 3 if state is None else state))
    return tensors, return_state or state is not None


def forward(
    operator: Any, weights: Mapping[str, Any], attributes: Mapping[str, Any], *args: Any, **kwargs: Any
) -> Any:
    """Returns the means [B, S, C], and the new state as a list of three [B, C], or None."""
    tensors, wants_state = signature(*args, **kwargs)
    out, *state = operator(*tensors)
    return out, state if wants_state else None


def token_axes(call: Any) -> tuple[int | None, ...]:
    """Tokens are the middle axis of every tensor that has three."""
    return tuple(1 if len(spec.shape) == 3 else None for spec in call.inputs)


def inputs(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    """key, value, decay, first, numerator, denominator, maximum; the last three only where `sizes` says `warm`.

    Keys are exponents: one of 90 alone costs exp 90 roundings, whoever computes it, so none beyond 20 is drawn.
    """
    batch, channels = sizes["B"], sizes["C"]
    tokens = (batch, sizes["S"], channels)
    tensors = (
        draw.normal(tokens).clip(-20, 20),
        draw.normal(tokens),
        draw.weight((1, channels))[0],
        draw.weight((1, channels))[0],
    )
    if not sizes.get("warm"):
        return (*tensors, None, None, None)
    held = (batch, channels)
    return (*tensors, draw.normal(held), abs(draw.normal(held)) + 0.5, draw.normal(held).clip(-20, 20))


def flops(*shapes: Any) -> int:
    """TensorE only transposes."""
    return 0


def _case(name: str, kind: Any, scale: float = 1.0, style: Any = "normal", **sizes: int) -> Case:
    return Case(name=name, kind=kind, sizes=sizes, scale=scale, style=style)


RECIPE = Recipe(
    name="wkv",
    summary="RWKV's time mixing: decaying weighted means per channel.",
    schema="(Tensor key, Tensor value, Tensor decay, Tensor first, Tensor? numerator, Tensor? denominator, "
    "Tensor? maximum) -> (Tensor, Tensor, Tensor, Tensor)",
    operation="function",
    mixed_dtypes=True,
    bind=bind,
    forward=forward,
    sequence_axes=token_axes,
    domains={5: "positive"},  # a denominator is a sum of exponentials
    scales=(1.0, 4.0, 3e-3),
    inputs=inputs,
    flops=flops,
    tolerance=Tolerance(reduction_length="S"),
    sizes={
        "B": Size(least=1, most=16),
        "S": Size(least=1, most=8192),
        "C": Size(least=1, most=8192),
    },
    cases=(
        _case("a prompt", "ordinary", B=1, S=128, C=128),
        _case("two rows", "ordinary", B=2, S=16, C=64),
        _case("one token from a state", "ordinary", B=2, S=1, C=256, warm=1),
        _case("two tiles of channels, uneven", "tail", B=1, S=133, C=130),
        _case("one token", "tail", B=1, S=1, C=3),
        _case("one token, a prime of channels", "tail", B=3, S=1, C=131, warm=1),
        _case("three tokens from a state", "tail", B=1, S=3, C=77, warm=1),
        _case("two blocks of time", "large", B=1, S=600, C=64),
        _case("small values", "stress", scale=0.05, B=1, S=64, C=64),
        _case("large exponents", "stress", scale=3.0, B=1, S=64, C=64, warm=1),
        _case("clustered", "stress", style="clustered", B=1, S=64, C=64),
    ),
)
