"""Causal grouped-query attention over a whole prompt.

Computes softmax(scale * q k^T + causal mask) v for every query head, with query heads in equal groups per
key/value head (multi-head, grouped-query and multi-query attention alike). Scores never leave the chip.

Matches calls that transformers routes through its AttentionInterface with plain causal masking: no sliding
window, soft cap, sinks or position bias, equal head dimensions of keys and values up to 128, and as many
keys as queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size, Tolerance

MAX_HEAD_DIM = 128  # partitions of TensorE, over which q k^T contracts
# Arguments of the call, or attributes of the module, that ask for more than causal masking unless they are
# None.
VARIANTS = (
    "sliding_window", "softcap", "attn_logit_softcapping", "logits_soft_cap", "sinks", "s_aux",
    "position_bias", "alibi", "head_mask", "chunk_size", "cu_seq_lens_q",
)  # fmt: skip


def bind(call: Any) -> Binding | None:
    """Returns a Binding with `scale` for q [B, Q, S, D], k and v [B, G, S, D], plain causal; else None."""
    if len(call.inputs) != 3:  # a mask, sinks or a position bias among them: not plain
        return None
    q, k, v = (spec.shape for spec in call.inputs)
    if len(q) != 4 or len(k) != 4 or k != v:
        return None
    batch, query_heads, sequence, head_dim = q
    if (k[0], k[2], k[3]) != (batch, sequence, head_dim) or query_heads % k[1] or head_dim > MAX_HEAD_DIM:
        return None
    if not is_plain_causal(call):
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
    key: Any,
    value: Any,
    attention_mask: Any = None,
    **kwargs: Any,
) -> tuple[Any, None]:
    """Returns (output [B, S, Q, D], None) for query [B, Q, S, D], key and value [B, G, S, D].

    The model makes these by transposing [B, S, heads, D]; transposing back gives the contiguous tensor free.
    """
    q, k, v = (tensor.transpose(1, 2).contiguous() for tensor in (query, key, value))
    return operator(q, k, v, scale=attributes["scale"]), None


def inputs(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    """Returns q, k, v."""
    batch, sequence, head_dim = sizes["B"], sizes["S"], sizes["D"]
    return (
        draw.normal((batch, sequence, sizes["Q"], head_dim)),
        draw.normal((batch, sequence, sizes["G"], head_dim)),
        draw.normal((batch, sequence, sizes["G"], head_dim)),
    )


def flops(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...]) -> int:
    """Returns the operations of q k^T and of weights times v over the causal half only."""
    batch, sequence, query_heads, head_dim = q
    return 2 * 2 * batch * query_heads * head_dim * (sequence * (sequence + 1) // 2)


def _case(name: str, kind: Any, scale: float = 1.0, **sizes: int) -> Case:
    return Case(name=name, kind=kind, sizes=sizes, attributes={"scale": sizes["D"] ** -0.5}, scale=scale)


RECIPE = Recipe(
    name="attention_prefill",
    summary="Causal grouped-query attention over a prompt, scores kept on chip.",
    schema="(Tensor q, Tensor k, Tensor v, float scale) -> Tensor",
    operation="attention",
    bind=bind,
    forward=forward,
    sequence_axes=(2, 2, 2),
    inputs=inputs,
    flops=flops,
    tolerance=Tolerance(reduction_length="S"),
    # Q and G go together (Q a multiple of G): they stay as the cases have them.
    sizes={
        "B": Size(least=1, most=64),
        "S": Size(least=1, most=12288),  # of float32 at D = 128: keys and values stay in SBUF
        "D": Size(least=1, most=MAX_HEAD_DIM),
    },
    cases=(
        _case("llama heads", "ordinary", B=1, S=128, Q=8, G=2, D=64),
        _case("multi-head, two rows", "ordinary", B=2, S=64, Q=4, G=4, D=32),
        _case("one token", "tail", B=1, S=1, Q=8, G=2, D=128),
        _case("short prompt, three heads", "tail", B=2, S=17, Q=9, G=3, D=64),
        _case("130 tokens", "tail", B=1, S=130, Q=4, G=2, D=64),
        _case("577 tokens, one key head", "tail", B=1, S=577, Q=3, G=1, D=20),
        _case("tiny values", "stress", scale=1e-3, B=1, S=160, Q=4, G=2, D=64),
        _case("large values", "stress", scale=3.0, B=1, S=160, Q=4, G=2, D=64),
        _case("several key blocks", "large", B=1, S=1100, Q=2, G=1, D=64),
    ),
)
