"""The scan of a selective state-space layer (Mamba) over a whole prompt: a recurrence per channel, from nothing.

Matches functions called as f(x [B, E, S], dt [B, E, S], A [E, N], B [B, N, S], C [B, N, S], D, z, delta_bias,
delta_softplus, return_last_state), which compute

    h[n, s] = exp(dt A[n]) h[n, s-1] + dt B[n, s] x[s],   y[s] = (sum_n C[n, s] h[n, s] + D x[s]) silu(z[s])

in each channel, and return y, or y and the last h. D, z and delta_bias may be missing.
Any B, E and S; N up to 512; float32 and bfloat16, mixed as they come. Sizes: B = batch, E = channels, S = steps,
N = states.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size, Tolerance

MAX_STATES = 512


def bind(call: Any) -> Binding | None:
    """Returns a Binding with `softplus`, or None."""
    try:
        given = inspect.signature(signature).bind(*call.args, **call.kwargs)
    except TypeError:
        return None
    given.apply_defaults()
    shapes = {name: getattr(value, "shape", None) for name, value in given.arguments.items()}
    x, a = shapes["hidden_states"], shapes["A"]
    if x is None or a is None or len(x) != 3 or len(a) != 2 or a[0] != x[1] or a[1] > MAX_STATES:
        return None
    wanted = {"dt": x, "B": (x[0], a[1], x[2]), "C": (x[0], a[1], x[2])}
    optional = {"D": (x[1],), "z": x, "delta_bias": (x[1],)}
    if any(shapes[name] is None or tuple(shapes[name]) != tuple(shape) for name, shape in wanted.items()):
        return None
    if any(
        shapes[name] is not None and tuple(shapes[name]) != tuple(shape) for name, shape in optional.items()
    ):
        return None
    return Binding(attributes={"softplus": bool(given.arguments["delta_softplus"])})


def signature(
    hidden_states: Any,
    dt: Any,
    A: Any,
    B: Any,
    C: Any,
    D: Any = None,
    z: Any = None,
    delta_bias: Any = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    **kwargs: Any,
) -> tuple[Any, ...]:
    """Returns the operator's tensors, and whether the caller wants the last state."""
    return (hidden_states, dt, A, B, C, D, z, delta_bias), return_last_state


def forward(
    operator: Any, weights: Mapping[str, Any], attributes: Mapping[str, Any], *args: Any, **kwargs: Any
) -> Any:
    """Returns y [B, E, S], and the last state [B, E, N] if the caller asks for it."""
    tensors, return_last_state = signature(*args, **kwargs)
    y, state = operator(*tensors, **attributes)
    return (y, state) if return_last_state else y


def token_axes(call: Any) -> tuple[int | None, ...]:
    """Time is the last axis of every tensor that has three; which are there, differs from call to call."""
    return tuple(2 if len(spec.shape) == 3 else None for spec in call.inputs)


def inputs(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    """x, dt, a, b, c, d, z, dt_bias; the last three are missing where `sizes` says `bare`."""
    batch, channels, steps, states = sizes["B"], sizes["E"], sizes["S"], sizes["N"]
    rates = -abs(draw.weight((channels, states))) * channels**0.5 - 0.05
    tensors = (
        draw.normal((batch, channels, steps)),
        draw.normal((batch, channels, steps)),
        rates,
        draw.normal((batch, states, steps)),
        draw.normal((batch, states, steps)),
    )
    if sizes.get("bare"):  # time steps must be positive where no softplus makes them so
        return (tensors[0], abs(tensors[1]), *tensors[2:], None, None, None)
    extras = (draw.normal((channels,)), draw.normal((batch, channels, steps)), draw.normal((channels,)))
    return (*tensors, *extras)


def flops(x: tuple[int, ...], dt: tuple[int, ...], a: tuple[int, ...], *rest: Any) -> int:
    """Returns what TensorE does: a sum over states, by products with the identity."""
    return 2 * x[0] * x[1] * x[2] * a[1]


def _case(name: str, kind: Any, scale: float = 1.0, style: Any = "normal", **sizes: int) -> Case:
    softplus = not sizes.get("bare")
    return Case(
        name=name, kind=kind, sizes=sizes, attributes={"softplus": softplus}, scale=scale, style=style
    )


RECIPE = Recipe(
    name="selective_scan",
    summary="Selective state-space scan (Mamba) over a prompt.",
    schema="(Tensor x, Tensor dt, Tensor a, Tensor b, Tensor c, Tensor? d, Tensor? z, Tensor? dt_bias, "
    "bool softplus) -> (Tensor, Tensor)",
    operation="function",
    mixed_dtypes=True,
    bind=bind,
    forward=forward,
    sequence_axes=token_axes,
    domains={2: "negative"},
    scales=(1.0, 4.0, 3e-3),
    inputs=inputs,
    flops=flops,
    tolerance=Tolerance(reduction_length="S"),
    sizes={
        "B": Size(least=1, most=16),
        "E": Size(least=1, most=16384),
        "S": Size(least=1, most=8192),
        "N": Size(least=1, most=MAX_STATES),
    },
    cases=(
        _case("mamba", "ordinary", B=1, E=128, S=128, N=16),
        _case("two rows, eight states", "ordinary", B=2, E=64, S=16, N=8),
        _case("two tiles of channels", "tail", B=1, E=130, S=77, N=4),
        _case("one step", "tail", B=1, E=128, S=1, N=16),
        _case("one channel, one state", "tail", B=1, E=1, S=3, N=1),
        _case("bare", "tail", B=1, E=48, S=40, N=5, bare=1),
        _case("several blocks of time", "large", B=1, E=32, S=530, N=16),
        _case("small values", "stress", scale=0.05, B=1, E=64, S=64, N=8),
        _case("large values", "stress", scale=10.0, B=1, E=64, S=64, N=8),
        _case("outliers", "stress", style="outliers", B=1, E=64, S=32, N=8),
    ),
)
