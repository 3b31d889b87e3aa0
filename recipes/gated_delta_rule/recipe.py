"""The gated delta rule (Gated DeltaNet) over a prompt: linear attention whose state forgets, and unlearns what it knows.

Matches functions called as f(query [B, S, K, D], key [B, S, K, D], value [B, S, H, E], g [B, S, H], beta [B, S, H],
initial_state, output_final_state, use_qk_l2norm_in_kernel), which compute, for each value head, token by token

    S = exp(g) S,   S = S + k (beta (v - k S)),   out = D^-0.5 q S

and return out and the last S [B, H, D, E], or None. Queries and keys may be divided by their L2 norms first. The state
starts from zeros or from initial_state; a single token from a state is `gated_delta_update`'s.
D up to 128, E up to 512, K D up to 4096, H E up to 16384. Sizes: B = batch, S = tokens, K = key heads, H = value heads,
D, E = head dimensions of keys and values.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size, Tolerance

MAX_DEPTH, MAX_WIDTH = 128, 512
MAX_KEY_COLUMNS, MAX_STATE_COLUMNS = 4096, 16384


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
    step = (batch, tokens, heads)
    if shapes["query"] != k or v[:2] != k[:2] or shapes["g"] != step or shapes["beta"] != step:
        return None
    if shapes["initial_state"] not in (None, (batch, heads, depth, width)) or heads % key_heads:
        return None
    if tokens == 1 and shapes["initial_state"] is not None:
        return None
    if depth > MAX_DEPTH or width > MAX_WIDTH:
        return None
    if key_heads * depth > MAX_KEY_COLUMNS or heads * width > MAX_STATE_COLUMNS:
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
    """Returns the operator's tensors, and whether the caller wants the last state."""
    return (query, key, value, g, beta, initial_state), output_final_state


def forward(
    operator: Any, weights: Mapping[str, Any], attributes: Mapping[str, Any], *args: Any, **kwargs: Any
) -> Any:
    """Returns out [B, S, H, E], and the last state [B, H, D, E] if the caller asks for it, else None."""
    tensors, output_final_state = signature(*args, **kwargs)
    out, state = operator(*tensors, **attributes)
    return out, state if output_final_state else None


def inputs(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    """q, k, v, g, beta, initial; the last is missing unless `sizes` says `warm`."""
    batch, tokens, heads = sizes["B"], sizes["S"], sizes["H"]
    keys = (batch, tokens, sizes["K"], sizes["D"])
    q, k = draw.normal(keys), draw.normal(keys)
    v = draw.normal((batch, tokens, heads, sizes["E"]))
    g = -abs(draw.weight((batch * tokens * heads, 1))).reshape(batch, tokens, heads)
    g = g * (batch * tokens * heads) ** 0.5 * 0.5
    beta = 1 / (1 + abs(draw.weight((tokens * heads * batch, 1)).reshape(g.shape)) * 20.0)
    initial = draw.normal((batch, heads, sizes["D"], sizes["E"])) if sizes.get("warm") else None
    return q, k, v, g, beta.astype(g.dtype), initial


def flops(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], *rest: Any) -> int:
    """Returns the operations of chunks of 128: pairs, the system solved once, the state read twice and written."""
    (batch, tokens, heads, width), depth = v, k[3]
    chunk = min(128, tokens)
    return 2 * batch * tokens * heads * (2 * chunk * depth + 2 * chunk * width + 3 * depth * width)


def _case(name: str, kind: Any, scale: float = 1.0, style: Any = "normal", **sizes: int) -> Case:
    attributes = {"normalize": not sizes.get("plain")}
    return Case(name=name, kind=kind, sizes=sizes, attributes=attributes, scale=scale, style=style)


RECIPE = Recipe(
    name="gated_delta_rule",
    summary="Gated delta rule (Gated DeltaNet) over a prompt.",
    schema="(Tensor q, Tensor k, Tensor v, Tensor g, Tensor beta, Tensor? initial, bool normalize) -> (Tensor, Tensor)",
    operation="function",
    mixed_dtypes=True,
    bind=bind,
    forward=forward,
    sequence_axes=(1, 1, 1, 1, 1),
    domains={3: "decay", 4: "unit"},
    scales=(1.0, 4.0, 0.1),
    inputs=inputs,
    flops=flops,
    tolerance=Tolerance(reduction_length="S"),
    # K and H go together (H a multiple of K): they stay as the cases have them.
    sizes={
        "B": Size(least=1, most=8),
        "S": Size(least=1, most=8192),
        "D": Size(least=1, most=128),
        "E": Size(least=1, most=128),
    },
    cases=(
        _case("two value heads for a key head", "ordinary", B=1, S=128, K=2, H=4, D=64, E=64),
        _case("two chunks", "ordinary", B=1, S=192, K=2, H=2, D=32, E=48),
        _case("two rows", "ordinary", B=2, S=32, K=4, H=4, D=16, E=16),
        _case("two partial chunks, uneven", "tail", B=1, S=133, K=1, H=3, D=20, E=10),
        _case("one token", "tail", B=1, S=1, K=2, H=4, D=16, E=16),
        _case("three tokens from a state", "tail", B=1, S=3, K=1, H=2, D=128, E=128, warm=1),
        _case("from a state", "ordinary", B=1, S=70, K=2, H=4, D=24, E=40, warm=1),
        _case("keys all alike", "stress", style="constant rows", B=1, S=128, K=2, H=4, D=32, E=32),
        _case("clustered keys", "stress", style="clustered", B=1, S=128, K=2, H=4, D=32, E=32),
        _case("small values", "stress", scale=1e-2, B=1, S=64, K=2, H=4, D=16, E=16),
        _case("large values", "stress", scale=10.0, B=1, S=64, K=2, H=4, D=16, E=16),
        _case("without norms", "stress", scale=0.3, B=1, S=64, K=4, H=4, D=8, E=8, plain=1),
        _case("three chunks", "large", B=1, S=300, K=2, H=4, D=32, E=32),
    ),
)
