"""Attention over whole sequences: of decoders, encoders, and across two sequences.

Computes softmax(scale * q k^T + masks and biases) v for every query head, with query heads in equal groups per key/value
head. Scores never leave the chip. What may vary: causal or not; a window of keys before and after; chunks that see only
themselves; additive biases as tensors (padding, prefix masks, relative positions, alibi); a soft cap; attention sinks;
as many keys as queries or another number; head dimensions up to 256, of values another than of keys.

Matches calls that transformers routes through its AttentionInterface. Rules need no tensor: keys that a rule hides from
128 queries are not even loaded into TensorE.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size, Tolerance

MAX_HEAD_DIM = 256
MAX_SOFTCAP = 60.0  # exp(60) times the longest sequence is far inside float32
# What keys, values and biases of one head may take per partition of SBUF in float32, in which every kernel is proven.
SBUF_BYTES = 130 * 1024
RULES = ("window_before", "window_after", "chunk_size")
PADDED = -1e30  # in a case's padding bias: far below any score, in range of bfloat16


def bind(call: Any) -> Binding | None:
    """Returns a Binding for q [B, Q, S, D], k [B, G, C, D], v [B, G, C, E] and what is added to scores; else None."""
    if len(call.inputs) < 3:
        return None
    (q, k, v), others = [spec.shape for spec in call.inputs[:3]], [spec.shape for spec in call.inputs[3:]]
    if len(q) != 4 or len(k) != 4 or len(v) != 4 or k[:3] != v[:3] or k[0] != q[0] or k[3] != q[3]:
        return None
    if q[1] % k[1] or max(q[3], v[3]) > MAX_HEAD_DIM:
        return None
    biases = [shape for shape in others if len(shape) == 4]
    if not all(spreads_over(shape, (q[0], q[1], q[2], k[2])) for shape in biases):
        return None
    if len(others) > len(biases) + 1 or sbuf_bytes(k[2], q[3], v[3], len(biases)) > SBUF_BYTES:
        return None
    attributes = bound_attributes(call.attributes, q[3])
    has_rule = attributes["is_causal"] or any(attributes[name] is not None for name in RULES)
    return (
        None if (has_rule and q[2] != k[2]) or not supported(attributes) else Binding(attributes=attributes)
    )


def bound_attributes(given: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
    """The operator's attributes: those of the call, and where it leaves them open, no bound."""
    scale, softcap = given.get("scaling"), given.get("softcap")
    return {
        "scale": float(head_dim**-0.5 if scale is None else scale),
        "is_causal": bool(given.get("is_causal", True)),
        "softcap": None if softcap is None else float(softcap),
        **{name: given.get(name) for name in RULES},
    }


def supported(attributes: Mapping[str, Any]) -> bool:
    """Whether numbers are in the kernel's range."""
    softcap = attributes["softcap"]
    return attributes["scale"] > 0 and (softcap is None or 0 < softcap <= MAX_SOFTCAP)


def spreads_over(shape: Sequence[int], scores: Sequence[int]) -> bool:
    """Whether a bias can be added to scores [B, Q, S, C]: each axis as long or 1, the keys in full."""
    return shape[3] == scores[3] and all(own in (1, full) for own, full in zip(shape, scores, strict=True))


def sbuf_bytes(keys: int, head_dim: int, value_dim: int, biases: int) -> int:
    """Bytes per partition, in float32, of one head's keys and values and of the biases of two tiles of queries."""
    pieces, chunks = -(-head_dim // 128), -(-keys // 128)
    return 4 * (pieces * keys + chunks * (value_dim + 1) + 2 * biases * keys)


def forward(
    operator: Any,
    weights: Mapping[str, Any],
    attributes: Mapping[str, Any],
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    bias: Any = None,
    **kwargs: Any,
) -> tuple[Any, None]:
    """Returns (output [B, S, Q, E], None) for query [B, Q, S, D], key [B, G, C, D] and value [B, G, C, E].

    The model makes these by transposing [B, S, heads, D]; transposing back gives the contiguous tensor free.
    """
    q, k, v = (tensor.transpose(1, 2).contiguous() for tensor in (query, key, value))
    added = (as_query(kwargs.get(name), q) for name in ("position_bias", "s_aux"))
    return operator(q, k, v, as_query(bias, q), *added, **attributes), None


def as_query(tensor: Any, query: Any) -> Any:
    """The tensor in the dtype of the query; float32's lowest number would be infinite in 16 bits."""
    if tensor is None or tensor.dtype == query.dtype:
        return tensor
    return tensor.clamp(min=PADDED).to(query.dtype)


def inputs(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    """Returns q, k, v, bias, position_bias, sinks; which of the last three there are, and their axes, sizes say.

    padding, prefix: a bias of 0 or PADDED, one for each key, or for each query and key. position_heads: a position bias
    of as many heads. position_queries: 1 where it is the same for all queries. sinks: 1 where there are some.
    """
    batch, queries, head_dim, query_heads = sizes["B"], sizes["S"], sizes["D"], sizes["Q"]
    keys = sizes.get("C", queries)
    bias = position_bias = sinks = None
    if sizes.get("padding") or sizes.get("prefix"):
        rows = queries if sizes.get("prefix") else 1
        bias = (draw.integers(0, 3, (batch, 1, rows, keys)) == 0).astype("float32") * PADDED
        bias[..., 0] = 0.0  # a query that sees nothing has no defined answer
    if sizes.get("position_heads"):
        shape = (1, sizes["position_heads"], sizes.get("position_queries", queries), keys)
        position_bias = draw.normal(shape)
    if sizes.get("sinks"):
        sinks = draw.normal((query_heads,))
    q = draw.normal((batch, queries, query_heads, head_dim))
    k = draw.normal((batch, keys, sizes["G"], head_dim))
    v = draw.normal((batch, keys, sizes["G"], sizes.get("E", head_dim)))
    return q, k, v, bias, position_bias, sinks


def flops(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], *others: Any) -> int:
    """Returns the operations of q k^T and of weights times v over all pairs: shapes do not tell which are hidden."""
    batch, queries, query_heads, head_dim = q
    return 2 * batch * query_heads * queries * k[1] * (head_dim + v[3])


def _case(
    name: str, kind: Any, causal: bool = True, scale: float = 1.0, softcap: float | None = None, **sizes: int
) -> Case:
    rules = {rule: sizes.pop(rule, None) for rule in RULES}
    attributes = {"scale": sizes["D"] ** -0.5, "is_causal": causal, "softcap": softcap, **rules}
    return Case(name=name, kind=kind, sizes=sizes, attributes=attributes, scale=scale)


RECIPE = Recipe(
    name="attention",
    summary="Attention over sequences: causal, windowed, chunked, biased, capped, with sinks; scores kept on chip.",
    schema=(
        "(Tensor q, Tensor k, Tensor v, Tensor? bias=None, Tensor? position_bias=None, Tensor? sinks=None, "
        "float scale=1.0, bool is_causal=True, int? window_before=None, int? window_after=None, "
        "int? chunk_size=None, float? softcap=None) -> Tensor"
    ),
    operation="attention",
    bind=bind,
    forward=forward,
    sequence_axes=(2, 2, 2, (2, 3), (2, 3), (2, 3)),
    inputs=inputs,
    flops=flops,
    mixed_dtypes=True,
    scales=(1.0, 4.0, 3e-3),
    tolerance=Tolerance(reduction_length="S"),
    # Q and G go together (Q a multiple of G), C and S where a rule binds them: they stay as the cases have them.
    sizes={
        "B": Size(least=1, most=64),
        "S": Size(least=1, most=8192),  # of float32 at D = 256: keys and values of a head stay in SBUF
        "D": Size(least=1, most=MAX_HEAD_DIM),
    },
    cases=(
        _case("llama heads", "ordinary", B=1, S=128, Q=8, G=2, D=64),
        _case("multi-head, two rows", "ordinary", B=2, S=64, Q=4, G=4, D=32),
        _case("encoder with padding", "ordinary", causal=False, B=2, S=48, Q=4, G=4, D=32, padding=1),
        _case("across sequences", "ordinary", causal=False, B=1, S=40, C=150, Q=4, G=4, D=64),
        _case("window", "ordinary", B=1, S=300, Q=2, G=1, D=32, window_before=63),
        _case(
            "window on both sides",
            "ordinary",
            causal=False,
            B=1,
            S=200,
            Q=2,
            G=2,
            D=32,
            window_before=16,
            window_after=16,
        ),
        _case("chunks of 50", "ordinary", B=1, S=140, Q=2, G=2, D=32, chunk_size=50),
        _case("sinks and a window", "ordinary", B=1, S=130, Q=4, G=2, D=64, sinks=1, window_before=20),
        _case("soft cap", "ordinary", softcap=50.0, B=1, S=150, Q=4, G=2, D=64),
        _case("prefix mask", "ordinary", causal=False, B=1, S=40, Q=4, G=1, D=80, prefix=1),
        _case(
            "relative positions and padding",
            "ordinary",
            causal=False,
            B=1,
            S=20,
            C=33,
            Q=4,
            G=4,
            D=64,
            padding=1,
            position_heads=4,
        ),
        _case("alibi", "ordinary", B=1, S=20, Q=4, G=4, D=48, position_heads=4, position_queries=1),
        _case("one token", "tail", B=1, S=1, Q=8, G=2, D=128),
        _case("short prompt, three heads", "tail", B=2, S=17, Q=9, G=3, D=64),
        _case("130 tokens, narrow values", "tail", B=1, S=130, Q=4, G=2, D=64, E=24),
        _case("577 tokens, one key head", "tail", B=1, S=577, Q=3, G=1, D=20),
        _case("heads of 192 and 128", "tail", B=1, S=129, Q=2, G=2, D=192, E=128),
        _case("heads of 256", "tail", B=1, S=131, Q=2, G=1, D=256),
        _case(
            "soft cap, padding and sinks",
            "tail",
            softcap=5.0,
            causal=False,
            B=1,
            S=33,
            Q=4,
            G=2,
            D=64,
            padding=1,
            sinks=1,
        ),
        _case("tiny values", "stress", scale=1e-3, B=1, S=160, Q=4, G=2, D=64),
        _case("large values", "stress", scale=3.0, B=1, S=160, Q=4, G=2, D=64),
        _case(
            "large values with biases",
            "stress",
            causal=False,
            scale=3.0,
            B=1,
            S=40,
            Q=4,
            G=2,
            D=128,
            position_heads=4,
        ),
        _case("several key blocks", "large", B=1, S=1100, Q=2, G=1, D=64),
    ),
)
