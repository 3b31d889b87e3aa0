"""Attention of one new token per batch row over a key/value cache.

Computes softmax(scale * q k^T) v over cache slots 0..positions[b] of each batch row b; slots beyond may hold
anything finite. The cache is a fixed number of slots, so that one compiled graph serves every step. Keys are
kept transposed, [B, G, D, C]: the product with q contracts over D without a transpose.

Matches the same attention as `attention_prefill`, in the decoding phase: plain causal, no sliding window,
soft cap, sinks or position bias, at most 128 query heads, head dimension up to 128.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size, Tolerance

MAX_HEAD_DIM = 128  # partitions of TensorE, over which q k^T contracts
MAX_QUERY_HEADS = 128  # the heads of one batch row are transposed as one tile
# Arguments of the call, or attributes of the module, that ask for more than causal masking unless they are
# None.
VARIANTS = (
    "sliding_window", "softcap", "attn_logit_softcapping", "logits_soft_cap", "sinks", "s_aux",
    "position_bias", "alibi", "head_mask", "chunk_size", "cu_seq_lens_q",
)  # fmt: skip


def bind(call: Any) -> Binding | None:
    """Returns a Binding with `scale`, or None.

    Accepts q [B, Q, 1, D], k_cache [B, G, D, C], v_cache [B, G, C, D] and positions [B], plain causal.
    """
    if len(call.inputs) != 4:
        return None
    q, k, v, positions = (spec.shape for spec in call.inputs)
    if len(q) != 4 or len(k) != 4 or len(v) != 4:
        return None
    batch, query_heads, tokens, head_dim = q
    kv_heads, slots = k[1], k[3]
    if tokens != 1 or k != (batch, kv_heads, head_dim, slots) or v != (batch, kv_heads, slots, head_dim):
        return None
    if positions != (batch,) or query_heads % kv_heads:
        return None
    if head_dim > MAX_HEAD_DIM or query_heads > MAX_QUERY_HEADS or not is_plain_causal(call):
        return None
    scale = call.attributes.get("scaling")
    return Binding(attributes={"scale": float(head_dim**-0.5 if scale is None else scale)})


def is_plain_causal(call: Any) -> bool:
    """Returns whether neither the call's attributes nor its module ask for more than causal masking.

    The walker marks tensors among the keyword arguments as attributes `tensor:<name>`.
    """
    for name in VARIANTS:
        if call.attributes.get(name) is not None or getattr(call.module, name, None) is not None:
            return False
    if call.attributes.get("dropout") or any(name.startswith("tensor:") for name in call.attributes):
        return False
    causal = call.attributes.get("is_causal")
    return bool(getattr(call.module, "is_causal", True) if causal is None else causal)


def forward(
    operator: Any,
    weights: Mapping[str, Any],
    attributes: Mapping[str, Any],
    module: Any,
    query: Any,
    k_cache: Any,
    v_cache: Any,
    positions: Any,
    **kwargs: Any,
) -> tuple[Any, None]:
    """Returns (output [B, 1, Q, D], None) for query [B, Q, 1, D] and the cache."""
    out = operator(query.squeeze(2), k_cache, v_cache, positions, scale=attributes["scale"])
    return out.unsqueeze(1), None


def inputs(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    """Returns q, k_cache, v_cache, positions. Slots beyond a position hold values too: none may leak."""
    batch, kv_heads, head_dim, slots = sizes["B"], sizes["G"], sizes["D"], sizes["C"]
    return (
        draw.normal((batch, sizes["Q"], head_dim)),
        draw.normal((batch, kv_heads, head_dim, slots)),
        draw.normal((batch, kv_heads, slots, head_dim)),
        draw.integers(0, slots, (batch,)),
    )


def flops(
    q: tuple[int, ...], k_cache: tuple[int, ...], v_cache: tuple[int, ...], positions: tuple[int, ...]
) -> int:
    """Returns the operations of q k^T and of weights times v, over all slots whatever the positions."""
    batch, query_heads, head_dim = q
    return 2 * 2 * batch * query_heads * head_dim * k_cache[3]


def _case(name: str, kind: Any, scale: float = 1.0, **sizes: int) -> Case:
    return Case(name=name, kind=kind, sizes=sizes, attributes={"scale": sizes["D"] ** -0.5}, scale=scale)


RECIPE = Recipe(
    name="attention_decode",
    summary="Grouped-query attention of one token over a key/value cache.",
    schema="(Tensor q, Tensor k_cache, Tensor v_cache, Tensor positions, float scale) -> Tensor",
    operation="attention_decode",
    bind=bind,
    forward=forward,
    sequence_axes=(None, 3, 2, None),
    inputs=inputs,
    flops=flops,
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
        _case("one slot", "tail", B=1, Q=8, G=2, D=64, C=1),
        _case("three heads, 130 slots", "tail", B=3, Q=9, G=3, D=64, C=130),
        _case("one key head, 577 slots", "tail", B=2, Q=7, G=1, D=20, C=577),
        _case("tiny values", "stress", scale=1e-3, B=2, Q=8, G=2, D=64, C=160),
        _case("large values", "stress", scale=3.0, B=2, Q=8, G=2, D=64, C=160),
        _case("more heads than partitions", "large", B=5, Q=32, G=8, D=64, C=300),
        _case("long cache", "large", B=1, Q=8, G=2, D=64, C=4096),
    ),
)
