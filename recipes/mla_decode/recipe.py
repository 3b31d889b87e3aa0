"""Multi-head latent attention (DeepSeek) of one new token per batch row, absorbed into the latent space.

Computes what attention over expanded keys and values computes, without expanding them: each head's query is multiplied
with its part of the key up-projection and attends to the latents themselves; the mean latent is multiplied with the
head's part of the value up-projection. The cache is read once for all heads: R + P numbers a slot.

Matches nothing yet: no cut point hands over a query together with both up-projections. transformers expands keys and
values before it calls its AttentionInterface, where `attention` and `attention_decode` serve them.
"""

from __future__ import annotations

from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size, Tolerance


def bind(call: Any) -> Binding | None:
    """Returns None: the cut points of today see keys and values when they are expanded already."""
    return None


def forward(operator: Any, weights: Any, attributes: Any, *tensors: Any) -> Any:
    """Returns [B, Q, E] for the operator's own tensors: queries, caches, up-projections, positions."""
    return operator(*tensors, **attributes)


def inputs(sizes: Any, draw: Any) -> tuple[Any, ...]:
    """Returns q_nope, q_rope, latent_cache, rope_cache, key_up, value_up, positions.

    Slots beyond a position hold values too: none may leak.
    """
    batch, heads, slots, latent_dim = sizes["B"], sizes["Q"], sizes["C"], sizes["R"]
    nope_dim, rope_dim = sizes["N"], sizes["P"]
    return (
        draw.normal((batch, heads, nope_dim)),
        draw.normal((batch, heads, rope_dim)),
        draw.normal((batch, slots, latent_dim)),
        draw.normal((batch, slots, rope_dim)),
        draw.weight((nope_dim, heads, latent_dim)),
        draw.weight((latent_dim, heads, sizes["E"])),
        draw.integers(0, slots, (batch,)),
    )


def flops(
    q_nope: tuple[int, ...],
    q_rope: tuple[int, ...],
    latent_cache: tuple[int, ...],
    rope_cache: tuple[int, ...],
    key_up: tuple[int, ...],
    value_up: tuple[int, ...],
    positions: tuple[int, ...],
) -> int:
    """Returns the operations of both up-projections, of the scores, and of weights times latents, over all slots."""
    batch, heads, nope_dim = q_nope
    slots, latent_dim = latent_cache[1:]
    projections = latent_dim * (nope_dim + value_up[2])
    return 2 * batch * heads * (projections + slots * (2 * latent_dim + rope_cache[2]))


def _case(name: str, kind: Any, scale: float = 1.0, **sizes: int) -> Case:
    attributes = {"scale": (sizes["N"] + sizes["P"]) ** -0.5}
    return Case(name=name, kind=kind, sizes=sizes, attributes=attributes, scale=scale)


RECIPE = Recipe(
    name="mla_decode",
    summary="Multi-head latent attention of one token over a compressed cache, absorbed.",
    schema=(
        "(Tensor q_nope, Tensor q_rope, Tensor latent_cache, Tensor rope_cache, Tensor key_up, Tensor value_up, "
        "Tensor positions, float scale) -> Tensor"
    ),
    operation="attention_decode",
    bind=bind,
    forward=forward,
    sequence_axes=(None, None, 1, 1, None, None, None),
    inputs=inputs,
    flops=flops,
    scales=(1.0, 4.0, 3e-3),
    tolerance=Tolerance(reduction_length="C"),
    sizes={
        "B": Size(least=1, most=32),
        "Q": Size(least=1, most=128),
        "C": Size(least=1, most=4096),
        "E": Size(least=1, most=512),
        "N": Size(least=1, most=128),
        "P": Size(least=1, most=128),
        "R": Size(least=1, most=512),
    },
    cases=(
        _case("a share of DeepSeek-V3's heads", "ordinary", B=1, Q=16, N=128, P=64, R=512, E=128, C=200),
        _case("four rows", "ordinary", B=4, Q=4, N=32, P=16, R=64, E=32, C=128),
        _case("one slot", "tail", B=1, Q=4, N=16, P=8, R=32, E=16, C=1),
        _case("130 slots, odd sizes", "tail", B=3, Q=5, N=24, P=10, R=160, E=20, C=130),
        _case("577 slots, one head", "tail", B=2, Q=1, N=16, P=8, R=130, E=24, C=577),
        _case("tiny values", "stress", scale=1e-3, B=2, Q=4, N=32, P=16, R=64, E=32, C=160),
        _case("large values", "stress", scale=3.0, B=2, Q=4, N=32, P=16, R=64, E=32, C=160),
        _case("long cache", "large", B=1, Q=8, N=32, P=16, R=256, E=32, C=2100),
    ),
)
