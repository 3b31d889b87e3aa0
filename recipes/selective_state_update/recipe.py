"""One token through a selective state-space layer (Mamba, Mamba-2) in decoding: the state decays, takes it in, is read.

Matches functions called as f(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus) which write the new state into `state`
and return y:

    state = exp(dt A) state + dt B x,   y = (sum_n C[n] state[n] + D x) silu(z)

Mamba's: state [B, E, N], x and dt [B, E], A [E, N], B and C [B, N], D and dt_bias [E].
Mamba-2's: state [B, H, P, N], x and dt [B, H, P], A [H, P, N], B and C [B, G, N], D and dt_bias [H, P].
D, z and dt_bias may be missing. Any sizes with G up to 128 and N up to 4096; dtypes mixed as they come.
Sizes: B = batch, R = channels, N = states, G = groups.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size

MAX_GROUPS = 128
MAX_STATES = 4096


def bind(call: Any) -> Binding | None:
    """Returns a Binding with `softplus`, or None."""
    try:
        given = inspect.signature(signature).bind(*call.args, **call.kwargs)
    except TypeError:
        return None
    given.apply_defaults()
    shapes = {
        name: tuple(value.shape) if hasattr(value, "shape") else None
        for name, value in given.arguments.items()
    }
    state, b = shapes["state"], shapes["B"]
    if state is None or b is None or len(state) not in (3, 4):
        return None
    batch, channels, states = state[0], state[1:-1], state[-1]
    groups = 1 if len(state) == 3 else b[1]
    shared = (batch, states) if len(state) == 3 else (batch, groups, states)
    wanted = {
        "hidden_states": (batch, *channels), "dt": (batch, *channels), "A": (*channels, states), "B": shared, "C": shared,
    }  # fmt: skip
    optional = {"D": channels, "z": (batch, *channels), "dt_bias": channels}
    if any(shapes[name] != shape for name, shape in wanted.items()):
        return None
    if any(shapes[name] not in (None, shape) for name, shape in optional.items()):
        return None
    if groups > MAX_GROUPS or channels[0] % groups or states > MAX_STATES:
        return None
    return Binding(attributes={"softplus": bool(given.arguments["dt_softplus"])})


def signature(
    state: Any,
    hidden_states: Any,
    dt: Any,
    A: Any,
    B: Any,
    C: Any,
    D: Any = None,
    dt_bias: Any = None,
    dt_softplus: bool = False,
    z: Any = None,
    **kwargs: Any,
) -> tuple[Any, ...]:
    """Returns the operator's tensors, with the channels on one axis."""
    batch, states = state.shape[0], state.shape[-1]
    channels = math.prod(state.shape[1:-1])

    def flat(tensor: Any, *shape: int) -> Any:
        return None if tensor is None else tensor.reshape(shape)

    return (
        flat(state, batch, channels, states),
        flat(hidden_states, batch, channels),
        flat(dt, batch, channels),
        flat(A, channels, states),
        flat(B, batch, -1, states),
        flat(C, batch, -1, states),
        flat(D, channels),
        flat(z, batch, channels),
        flat(dt_bias, channels),
    )


def forward(
    operator: Any, weights: Mapping[str, Any], attributes: Mapping[str, Any], *args: Any, **kwargs: Any
) -> Any:
    """Writes the new state into the first argument and returns y in the form of the second."""
    y, new = operator(*signature(*args, **kwargs), **attributes)
    given = inspect.signature(signature).bind(*args, **kwargs).arguments
    given["state"].copy_(new.reshape(given["state"].shape))
    return y.reshape(given["hidden_states"].shape)


def inputs(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    """state, x, dt, a, b, c, d, z, dt_bias; the last three are missing where `sizes` says `bare`."""
    batch, channels, states, groups = sizes["B"], sizes["R"], sizes["N"], sizes["G"]
    rates = -abs(draw.weight((channels, states))) * channels**0.5 - 0.05
    state, x, dt = (draw.normal(shape) for shape in ((batch, channels, states), *[(batch, channels)] * 2))
    b, c = draw.normal((batch, groups, states)), draw.normal((batch, groups, states))
    if sizes.get("bare"):  # time steps must be positive where no softplus makes them so
        return state, x, abs(dt), rates, b, c, None, None, None
    d, z, bias = draw.normal((channels,)), draw.normal((batch, channels)), draw.normal((channels,))
    return state, x, dt, rates, b, c, d, z, bias


def flops(*shapes: Any) -> int:
    """TensorE is not used."""
    return 0


def _case(name: str, kind: Any, scale: float = 1.0, style: Any = "normal", **sizes: int) -> Case:
    softplus = not sizes.get("bare")
    return Case(
        name=name, kind=kind, sizes=sizes, attributes={"softplus": softplus}, scale=scale, style=style
    )


RECIPE = Recipe(
    name="selective_state_update",
    summary="One decoding step of a selective state space (Mamba, Mamba-2).",
    schema="(Tensor state, Tensor x, Tensor dt, Tensor a, Tensor b, Tensor c, Tensor? d, Tensor? z, Tensor? dt_bias, "
    "bool softplus) -> (Tensor, Tensor)",
    operation="function",
    mixed_dtypes=True,
    bind=bind,
    forward=forward,
    sequence_axes=(),
    domains={3: "negative"},
    scales=(1.0, 4.0, 3e-3),
    inputs=inputs,
    flops=flops,
    # R and G go together (R a multiple of G): they stay as the cases have them.
    sizes={
        "B": Size(least=1, most=64),
        "N": Size(least=1, most=512),
    },
    cases=(
        _case("mamba", "ordinary", B=1, R=512, N=16, G=1),
        _case("mamba-2", "ordinary", B=1, R=512, N=128, G=1),
        _case("two groups, two rows", "ordinary", B=2, R=256, N=64, G=2),
        _case("no even split", "tail", B=1, R=130, N=5, G=2),
        _case("a prime of channels", "tail", B=1, R=131, N=8, G=1),
        _case("one of each", "tail", B=1, R=1, N=1, G=1),
        _case("bare", "tail", B=3, R=48, N=12, G=4, bare=1),
        _case("two blocks of channels", "large", B=1, R=5120, N=128, G=8),
        _case("small values", "stress", scale=0.05, B=1, R=128, N=16, G=1),
        _case("large values", "stress", scale=10.0, B=1, R=128, N=16, G=1),
        _case("outliers", "stress", style="outliers", B=2, R=128, N=16, G=1),
    ),
)
