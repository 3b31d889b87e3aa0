"""Rotary position embedding: rotates queries and keys by their positions, as nearly all decoders do.

Computes `x * cos + rotate_half(x) * sin` for every query and key head, where `rotate_half` swaps the two
halves of the head and negates the first. Tables of any kind (plain, Llama 3, YaRN, dynamic) fit, because
cos and sin come in as tensors.

Matches calls of `apply_rotary_pos_emb(q, k, cos, sin)` with heads on axis 1 and tables that cover the whole
head. Partial and interleaved rotations are refused: by shape where it shows, by the numeric probe otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size

HEADS_AXIS = 1  # of the model's own q and k [B, heads, S, D]


def bind(call: Any) -> Binding | None:
    """Returns a Binding for q [B, Q, S, D], k [B, G, S, D], cos and sin [B or 1, S, D], D even; else None."""
    if len(call.inputs) != 4 or call.attributes.get("unsqueeze_dim", HEADS_AXIS) != HEADS_AXIS:
        return None
    q, k, cos, sin = (spec.shape for spec in call.inputs)
    if len(q) != 4 or len(k) != 4 or len(cos) != 3 or cos != sin:
        return None
    batch, _, sequence, head_dim = q
    if head_dim % 2 or (k[0], k[2], k[3]) != (batch, sequence, head_dim):
        return None
    if cos[0] not in (1, batch) or cos[1:] != (sequence, head_dim):
        return None
    return Binding()


def forward(
    operator: Any,
    weights: Mapping[str, Any],
    attributes: Mapping[str, Any],
    q: Any,
    k: Any,
    cos: Any,
    sin: Any,
    *args: Any,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """Returns q [B, Q, S, D] and k [B, G, S, D] rotated.

    The model makes these by transposing [B, S, heads, D]; transposing back gives the contiguous tensor free.
    """
    batch = q.shape[0]
    q_rotated, k_rotated = operator(
        q.transpose(1, 2).contiguous(),
        k.transpose(1, 2).contiguous(),
        cos.expand(batch, -1, -1).contiguous(),
        sin.expand(batch, -1, -1).contiguous(),
    )
    return q_rotated.transpose(1, 2), k_rotated.transpose(1, 2)


def inputs(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    """Returns q, k, cos, sin; cos and sin are free values, so their halves differ."""
    batch, sequence, head_dim = sizes["B"], sizes["S"], sizes["D"]
    return (
        draw.normal((batch, sequence, sizes["Q"], head_dim)),
        draw.normal((batch, sequence, sizes["G"], head_dim)),
        draw.normal((batch, sequence, head_dim)),
        draw.normal((batch, sequence, head_dim)),
    )


def flops(q: tuple[int, ...], k: tuple[int, ...], cos: tuple[int, ...], sin: tuple[int, ...]) -> int:
    """Returns 0: rotation runs on VectorE and GpSimdE, TensorE has no part in it."""
    return 0


def _case(name: str, kind: Any, scale: float = 1.0, **sizes: int) -> Case:
    return Case(name=name, kind=kind, sizes=sizes, scale=scale)


RECIPE = Recipe(
    name="rope",
    summary="Rotary position embedding of queries and keys (half rotation over the whole head).",
    schema="(Tensor q, Tensor k, Tensor cos, Tensor sin) -> (Tensor, Tensor)",
    operation="rope",
    bind=bind,
    forward=forward,
    sequence_axes=(2, 2, 1, 1),
    inputs=inputs,
    flops=flops,
    sizes={
        "B": Size(least=1, most=64),
        "S": Size(least=1, most=32768),
        "Q": Size(least=1, most=128),
        "G": Size(least=1, most=128),
        "D": Size(least=2, most=256, multiple=2),
    },
    cases=(
        _case("llama heads", "ordinary", B=1, S=128, Q=32, G=8, D=64),
        _case("multi-head", "ordinary", B=2, S=64, Q=4, G=4, D=32),
        _case("one token", "tail", B=1, S=1, Q=32, G=8, D=128),
        _case("three heads", "tail", B=1, S=17, Q=9, G=3, D=64),
        _case("130 tokens, one key head", "tail", B=1, S=130, Q=7, G=1, D=6),
        _case("tiny values", "stress", scale=1e-3, B=2, S=33, Q=4, G=2, D=16),
        _case("large values", "stress", scale=30.0, B=2, S=33, Q=4, G=2, D=16),
        _case("heads in blocks", "large", B=1, S=130, Q=64, G=8, D=128),
    ),
)
