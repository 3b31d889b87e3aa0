"""One token through the gated delta rule (Gated DeltaNet) in decoding: the state forgets, unlearns, takes the token in.

Matches functions called as f(query [B, 1, K, D], key [B, 1, K, D], value [B, 1, H, E], g [B, 1, H], beta [B, 1, H],
initial_state [B, H, D, E], output_final_state, use_qk_l2norm_in_kernel), which compute, for each value head,

    S = exp(g) S,   S = S + k (beta (v - k S)),   out = D^-0.5 q S

and return out and the new S, or None. Queries and keys may be divided by their L2 norms first.
D up to 128, E up to 512, H / K up to 64. Sizes: B = batch, K = key heads, H = value heads, D, E = head dimensions of keys
and values.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size, Tolerance

MAX_DEPTH, MAX_WIDTH, MAX_SHARE = 128, 512, 64


def bind(call: Any) -> Binding | None:
    """Returns a Binding with `normalize`, or None."""
    try:
        given = inspect.signature(signature).bind(*call.args, **call.kwargs)
    except TypeError:
        return None
    given.apply_defaults()
    named = given.arguments
    shapes = {name: tuple(value.shape) if hasattr(value, "shape") else None for name, value in named.items()}
    k, v = shapes["key"], shapes["value"]
    if k is None or v is None or len(k) != 4 or len(v) != 4 or named["kwargs"].get("cu_seqlens") is not None:
        return None
    (batch, tokens, key_heads, depth), (heads, width) = k, v[2:]
    step = (batch, 1, heads)
    if tokens != 1 or shapes["query"] != k or v[:2] != k[:2] or shapes["g"] != step or shapes["beta"] != step:
        return None
    if shapes["initial_state"] != (batch, heads, depth, width) or heads % key_heads:
        return None
    if depth > MAX_DEPTH or width > MAX_WIDTH or heads // key_heads > MAX_SHARE:
        return None
    return Binding(attributes={"normalize": bool(named["use_qk_l2norm_in_kernel"])})


def signature(
    query: Any,
    key: Any,
    value: Any,
    g: Any,
    beta: Any,
    chunk_size: int = 64,
    initial_state: Any = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    **kwargs: Any,
) -> tuple[Any, ...]:
    """Returns the operator's tensors, and whether the caller wants the new state."""
    token = (item.squeeze(1) for item in (query, key, value, g, beta))
    return (initial_state, *token), output_final_state


def forward(
    operator: Any, weights: Mapping[str, Any], attributes: Mapping[str, Any], *args: Any, **kwargs: Any
) -> Any:
    """Returns out [B, 1, H, E], and the new state [B, H, D, E] if the caller asks for it, else None."""
    tensors, output_final_state = signature(*args, **kwargs)
    out, state = operator(*tensors, **attributes)
    return out.unsqueeze(1), state if output_final_state else None


def inputs(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    """state, q, k, v, g, beta."""
    batch, heads = sizes["B"], sizes["H"]
    keys = (batch, sizes["K"], sizes["D"])
    state = draw.normal((batch, heads, sizes["D"], sizes["E"]))
    q, k, v = draw.normal(keys), draw.normal(keys), draw.normal((batch, heads, sizes["E"]))
    g = -abs(draw.weight((1, batch * heads))).reshape(batch, heads)
    beta = 1 / (1 + abs(draw.weight((1, batch * heads)).reshape(batch, heads)))
    return state, q, k, v, g, beta.astype(g.dtype)


def flops(state: tuple[int, ...], *rest: Any) -> int:
    """Returns the operations of reading the state by key and by query, and of writing it."""
    batch, heads, depth, width = state
    return 2 * 3 * batch * heads * depth * width


def _case(name: str, kind: Any, scale: float = 1.0, style: Any = "normal", **sizes: int) -> Case:
    attributes = {"normalize": not sizes.get("plain")}
    return Case(name=name, kind=kind, sizes=sizes, attributes=attributes, scale=scale, style=style)


RECIPE = Recipe(
    name="gated_delta_update",
    summary="One decoding step of the gated delta rule (Gated DeltaNet).",
    schema="(Tensor state, Tensor q, Tensor k, Tensor v, Tensor g, Tensor beta, bool normalize) -> (Tensor, Tensor)",
    operation="function",
    mixed_dtypes=True,
    bind=bind,
    forward=forward,
    sequence_axes=(),
    domains={3: "decay", 4: "unit"},
    scales=(1.0, 4.0, 0.1),
    inputs=inputs,
    flops=flops,
    tolerance=Tolerance(reduction_length="D"),
    # K and H go together (H a multiple of K): they stay as the cases have them.
    sizes={
        "B": Size(least=1, most=64),
        "D": Size(least=1, most=128),
        "E": Size(least=1, most=512),
    },
    cases=(
        _case("two value heads for a key head", "ordinary", B=1, K=4, H=8, D=128, E=128),
        _case("three rows", "ordinary", B=3, K=4, H=4, D=32, E=48),
        _case("many tiles", "ordinary", B=4, K=2, H=12, D=16, E=16),
        _case("one of each", "tail", B=1, K=1, H=1, D=1, E=1),
        _case("uneven", "tail", B=1, K=1, H=3, D=20, E=10),
        _case("forty heads for a key", "tail", B=1, K=1, H=40, D=16, E=24),
        _case("wide values", "large", B=1, K=2, H=4, D=64, E=512),
        _case("keys all alike", "stress", style="constant rows", B=1, K=2, H=4, D=32, E=32),
        _case("small values", "stress", scale=1e-2, B=1, K=2, H=4, D=16, E=16),
        _case("large values", "stress", scale=10.0, B=2, K=2, H=4, D=16, E=16),
        _case("without norms", "stress", scale=0.3, B=1, K=4, H=4, D=8, E=8, plain=1),
    ),
)
