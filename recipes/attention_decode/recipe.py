"""Attention of one new token per batch row over a key/value cache.

Computes softmax(scale * q k^T + masks and biases) v over those of the cache slots 0..positions[b] that batch row b sees;
slots beyond may hold anything finite. The cache is a fixed number of slots, so that one compiled graph serves every
step. Keys are kept transposed, [B, G, D, C]: the product with q contracts over D without a transpose.

Matches the same attention as `attention`, in the decoding phase: windows, chunks, additive biases, soft cap and sinks;
at most 128 query heads, head dimensions up to 256, of values another than of keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size, Tolerance

MAX_HEAD_DIM = 256
MAX_QUERY_HEADS = 128  # the heads of one batch row are transposed as one tile
RULES = (
    "window_before",
    "chunk_size",
)  # nothing lies after the position: a window's other side does not matter
LOWEST = -1e30  # for a bias in another dtype than the query: float32's lowest number is infinite in 16 bits


def bind(call: Any) -> Binding | None:
    """Returns a Binding, or None.

    Accepts q [B, Q, 1, D], k_cache [B, G, D, C], v_cache [B, G, C, E], positions [B], and what is added to scores:
    biases [B or 1, Q or 1, 1, C] and sinks [Q].
    """
    if len(call.inputs) < 4:
        return None
    shapes = [spec.shape for spec in call.inputs]
    (q, k, v, positions), others = shapes[:4], shapes[4:]
    if len(q) != 4 or len(k) != 4 or len(v) != 4:
        return None
    batch, query_heads, tokens, head_dim = q
    kv_heads, slots = k[1], k[3]
    if tokens != 1 or k != (batch, kv_heads, head_dim, slots) or v[:3] != (batch, kv_heads, slots):
        return None
    if positions != (batch,) or query_heads % kv_heads:
        return None
    if max(head_dim, v[3]) > MAX_HEAD_DIM or query_heads > MAX_QUERY_HEADS:
        return None
    biases = [shape for shape in others if len(shape) == 4]
    fits = all(s[0] in (1, batch) and s[1] in (1, query_heads) and s[2:] == (1, slots) for s in biases)
    if not fits or len(others) > len(biases) + 1:
        return None
    scale, softcap = call.attributes.get("scaling"), call.attributes.get("softcap")
    attributes = {
        "scale": float(head_dim**-0.5 if scale is None else scale),
        "softcap": None if softcap is None else float(softcap),
        **{name: call.attributes.get(name) for name in RULES},
    }
    return Binding(attributes=attributes) if attributes["scale"] > 0 else None


def forward(
    operator: Any,
    weights: Mapping[str, Any],
    attributes: Mapping[str, Any],
    module: Any,
    query: Any,
    k_cache: Any,
    v_cache: Any,
    positions: Any,
    bias: Any = None,
    **kwargs: Any,
) -> tuple[Any, None]:
    """Returns (output [B, 1, Q, E], None) for query [B, Q, 1, D] and the cache."""
    added = [bias, kwargs.get("position_bias")]
    biases = [None if tensor is None else as_query(tensor.squeeze(2), query) for tensor in added]
    sinks = kwargs.get("s_aux")
    sinks = None if sinks is None else as_query(sinks, query)
    out = operator(query.squeeze(2), k_cache, v_cache, positions, *biases, sinks, **attributes)
    return out.unsqueeze(1), None


def as_query(tensor: Any, query: Any) -> Any:
    """The tensor in the dtype of the query."""
    return tensor if tensor.dtype == query.dtype else tensor.clamp(min=LOWEST).to(query.dtype)


def inputs(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    """Returns q, k_cache, v_cache, positions, bias, position_bias, sinks; of the last three those that sizes ask for.

    Slots beyond a position hold values too: none may leak. padding: a bias of 0 or LOWEST for each row and slot.
    position_heads: a position bias of as many heads. sinks: 1 where there are some.
    """
    batch, kv_heads, head_dim, slots = sizes["B"], sizes["G"], sizes["D"], sizes["C"]
    bias = position_bias = sinks = None
    if sizes.get("padding"):
        bias = (draw.integers(0, 3, (batch, 1, slots)) == 0).astype("float32") * LOWEST
        bias[..., 0] = 0.0  # a query that sees nothing has no defined answer
    if sizes.get("position_heads"):
        position_bias = draw.normal((1, sizes["position_heads"], slots))
    if sizes.get("sinks"):
        sinks = draw.normal((sizes["Q"],))
    return (
        draw.normal((batch, sizes["Q"], head_dim)),
        draw.normal((batch, kv_heads, head_dim, slots)),
        draw.normal((batch, kv_heads, slots, sizes.get("E", head_dim))),
        draw.integers(0, slots, (batch,)),
        bias,
        position_bias,
        sinks,
    )


def flops(q: tuple[int, ...], k_cache: tuple[int, ...], v_cache: tuple[int, ...], *others: Any) -> int:
    """Returns the operations of q k^T and of weights times v, over all slots whatever the positions."""
    batch, query_heads, head_dim = q
    return 2 * batch * query_heads * (head_dim + v_cache[3]) * k_cache[3]


def _case(name: str, kind: Any, scale: float = 1.0, softcap: float | None = None, **sizes: int) -> Case:
    rules = {rule: sizes.pop(rule, None) for rule in RULES}
    attributes = {"scale": sizes["D"] ** -0.5, "softcap": softcap, **rules}
    return Case(name=name, kind=kind, sizes=sizes, attributes=attributes, scale=scale)


RECIPE = Recipe(
    name="attention_decode",
    summary="Attention of one token over a key/value cache: windowed, chunked, biased, capped, with sinks.",
    schema=(
        "(Tensor q, Tensor k_cache, Tensor v_cache, Tensor positions, Tensor? bias=None, "
        "Tensor? position_bias=None, Tensor? sinks=None, float scale=1.0, int? window_before=None, "
        "int? chunk_size=None, float? softcap=None) -> Tensor"
    ),
    operation="attention_decode",
    bind=bind,
    forward=forward,
    sequence_axes=(None, 3, 2, None),
    inputs=inputs,
    flops=flops,
    mixed_dtypes=True,
    scales=(1.0, 4.0, 3e-3),
    version="2",
    tolerance=Tolerance(reduction_length="C"),
    # Q and G go together (Q a multiple of G): they stay as the cases have them.
    sizes={
        "B": Size(least=1, most=64),
        "D": Size(least=1, most=MAX_HEAD_DIM),
        "C": Size(least=1, most=8192),
    },
    cases=(
        _case("llama heads", "ordinary", B=1, Q=32, G=8, D=128, C=256),
        _case("multi-head, four rows", "ordinary", B=4, Q=4, G=4, D=32, C=128),
        _case("window", "ordinary", B=3, Q=4, G=2, D=32, C=200, window_before=40),
        _case("chunks", "ordinary", B=3, Q=4, G=2, D=32, C=150, chunk_size=49),
        _case("sinks and a window", "ordinary", B=2, Q=8, G=2, D=64, C=130, sinks=1, window_before=20),
        _case("soft cap", "ordinary", softcap=5.0, B=2, Q=4, G=2, D=64, C=150),
        _case("padding", "ordinary", B=3, Q=4, G=2, D=64, C=150, padding=1),
        _case(
            "relative positions and padding",
            "ordinary",
            B=2,
            Q=4,
            G=4,
            D=64,
            C=40,
            padding=1,
            position_heads=4,
        ),
        _case("one slot", "tail", B=1, Q=8, G=2, D=64, C=1),
        _case("three heads, 130 slots", "tail", B=3, Q=9, G=3, D=64, C=130),
        _case("one key head, 577 slots", "tail", B=2, Q=7, G=1, D=20, C=577),
        _case("heads of 192 and 128", "tail", B=2, Q=4, G=4, D=192, E=128, C=129),
        _case("heads of 256", "tail", B=1, Q=4, G=2, D=256, C=131),
        _case(
            "soft cap, padding and sinks", "tail", softcap=5.0, B=2, Q=4, G=2, D=64, C=33, padding=1, sinks=1
        ),
        _case("tiny values", "stress", scale=1e-3, B=2, Q=8, G=2, D=64, C=160),
        _case("large values", "stress", scale=3.0, B=2, Q=8, G=2, D=64, C=160),
        _case("more heads than partitions", "large", B=5, Q=32, G=8, D=64, C=300),
        _case("long cache", "large", B=1, Q=8, G=2, D=64, C=4096),
    ),
)
