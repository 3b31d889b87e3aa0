"""State-space duality (Mamba-2) over a prompt: chunks of tokens as masked attention, a state from chunk to chunk.

Matches functions called as f(x [B, S, H, D], dt [B, S, H], A [H], B [B, S, G, N], C [B, S, G, N], chunk_size, D,
dt_bias, initial_states, dt_softplus, dt_limit, return_final_states), which compute, for each head and head dimension,

    step = clamp(softplus(dt + dt_bias)),   h = exp(step A) h + step B x,   y = C h + D x

and return y, or y and the last h [B, H, D, N], both in float32. D, dt_bias and initial_states may be missing. The
chunk's size is a matter of speed, not of meaning. H and D up to 512, H D ceil(N / 128) up to 16384.
Sizes: B = batch, S = tokens, H = heads, D = head dimension, G = groups, N = states.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size, Tolerance

MAX_HEADS = 512
MAX_STATE_COLUMNS = 16384
NO_LIMIT = 3e38  # stands for infinity, which JSON has not


def bind(call: Any) -> Binding | None:
    """Returns a Binding with `softplus`, `dt_low` and `dt_high`, or None."""
    try:
        given = inspect.signature(signature).bind(*call.args, **call.kwargs)
    except TypeError:
        return None
    given.apply_defaults()
    named = given.arguments
    shapes = {name: tuple(value.shape) if hasattr(value, "shape") else None for name, value in named.items()}
    x, b = shapes["hidden_states"], shapes["B"]
    if x is None or b is None or len(x) != 4 or len(b) != 4 or named["kwargs"].get("z") is not None:
        return None
    batch, tokens, heads, head_dim = x
    groups, states = b[2], b[3]
    wanted = {"dt": x[:3], "A": (heads,), "B": (batch, tokens, groups, states), "C": b}
    optional = {"D": (heads,), "dt_bias": (heads,), "initial_states": (batch, heads, head_dim, states)}
    if any(shapes[name] != shape for name, shape in wanted.items()) or heads % groups:
        return None
    if any(shapes[name] not in (None, shape) for name, shape in optional.items()):
        return None
    if heads > MAX_HEADS or head_dim > MAX_HEADS or heads * head_dim * -(-states // 128) > MAX_STATE_COLUMNS:
        return None
    low, high = named["dt_limit"]
    limits = {"dt_low": max(float(low), -NO_LIMIT), "dt_high": min(float(high), NO_LIMIT)}
    return Binding(attributes={"softplus": bool(named["dt_softplus"]), **limits})


def signature(
    hidden_states: Any,
    dt: Any,
    A: Any,
    B: Any,
    C: Any,
    chunk_size: int,
    D: Any = None,
    dt_bias: Any = None,
    initial_states: Any = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    **kwargs: Any,
) -> tuple[Any, ...]:
    """Returns the operator's tensors, and whether the caller wants the last state."""
    return (hidden_states, dt, A, B, C, D, dt_bias, initial_states), return_final_states


def forward(
    operator: Any, weights: Mapping[str, Any], attributes: Mapping[str, Any], *args: Any, **kwargs: Any
) -> Any:
    """Returns y [B, S, H, D], and the last state [B, H, D, N] if the caller asks for it."""
    tensors, return_final_states = signature(*args, **kwargs)
    y, state = operator(*tensors, **attributes)
    return (y, state) if return_final_states else y


def inputs(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    """x, dt, a, b, c, d, dt_bias, initial; the last only if `sizes` says `warm`, the last three not if it says `bare`."""
    batch, tokens, heads = sizes["B"], sizes["S"], sizes["H"]
    shared = (batch, tokens, sizes["G"], sizes["N"])
    x, dt = draw.normal((batch, tokens, heads, sizes["D"])), draw.normal((batch, tokens, heads))
    rates = -abs(draw.weight((heads, 1)))[:, 0] * heads**0.5 - 0.02
    b, c = draw.normal(shared), draw.normal(shared)
    if sizes.get("bare"):  # time steps must be positive where no softplus makes them so
        return x, abs(dt), rates, b, c, None, None, None
    initial = draw.normal((batch, heads, sizes["D"], sizes["N"])) if sizes.get("warm") else None
    return x, dt, rates, b, c, draw.normal((heads,)), draw.normal((heads,)), initial


def flops(x: tuple[int, ...], dt: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...], *rest: Any) -> int:
    """Returns the operations of chunks of 128: scores per group; per head, values, reading and writing the state."""
    batch, tokens, heads, head_dim = x
    groups, states = b[2], b[3]
    chunk = min(128, tokens)
    return 2 * batch * tokens * (groups * chunk * states + heads * head_dim * (chunk + 2 * states))


def _case(name: str, kind: Any, scale: float = 1.0, style: Any = "normal", **sizes: int) -> Case:
    attributes = {"softplus": not sizes.get("bare"), "dt_low": 0.0, "dt_high": NO_LIMIT}
    return Case(name=name, kind=kind, sizes=sizes, attributes=attributes, scale=scale, style=style)


RECIPE = Recipe(
    name="ssd",
    summary="State-space duality (Mamba-2) over a prompt.",
    schema="(Tensor x, Tensor dt, Tensor a, Tensor b, Tensor c, Tensor? d, Tensor? dt_bias, Tensor? initial, "
    "bool softplus, float dt_low, float dt_high) -> (Tensor, Tensor)",
    operation="function",
    mixed_dtypes=True,
    bind=bind,
    forward=forward,
    sequence_axes=(1, 1, None, 1, 1),
    domains={2: "negative"},
    scales=(1.0, 4.0, 3e-3),
    inputs=inputs,
    flops=flops,
    tolerance=Tolerance(reduction_length="S"),
    # H and G go together (H a multiple of G): they stay as the cases have them.
    sizes={
        "B": Size(least=1, most=8),
        "S": Size(least=1, most=8192),
        "D": Size(least=1, most=128),
        "N": Size(least=1, most=256),
    },
    cases=(
        _case("mamba-2", "ordinary", B=1, S=128, H=4, D=64, G=1, N=128),
        _case("two groups, two chunks", "ordinary", B=1, S=256, H=4, D=32, G=2, N=32),
        _case("two rows", "ordinary", B=2, S=64, H=8, D=16, G=1, N=8),
        _case("two partial chunks, uneven", "tail", B=1, S=133, H=3, D=20, G=1, N=10),
        _case("one token", "tail", B=1, S=1, H=4, D=16, G=1, N=16),
        _case("many states", "tail", B=1, S=40, H=2, D=16, G=1, N=200),
        _case("from a state", "ordinary", B=1, S=30, H=4, D=48, G=2, N=24, warm=1),
        _case("bare", "tail", B=1, S=50, H=4, D=8, G=4, N=6, bare=1),
        _case("small values", "stress", scale=0.05, B=1, S=64, H=4, D=16, G=1, N=16),
        _case("large values", "stress", scale=10.0, B=1, S=64, H=4, D=16, G=1, N=16),
        _case("outliers", "stress", style="outliers", B=1, S=64, H=4, D=16, G=1, N=16),
        _case("three chunks", "large", B=1, S=300, H=6, D=32, G=1, N=64),
    ),
)
