"""Key/value cache with new tokens in it: keys [B, G, D, C] (kept transposed) or values [B, G, C, D].

No layer is matched: in a port, `torch.ops.neuron_port.kv_write` becomes a dynamic-update-slice of the graph, which writes
the tokens in place. A kernel returns new tensors, so this one copies the cache first; it is for callers that want the
old cache as well, and the reference of what kv_write does.
Sizes: B = batch, G = key/value heads, C = slots, D = head dimension, S = new tokens.
"""

from __future__ import annotations

from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size


def bind(call: Any) -> Binding | None:
    """None: the graph's dynamic-update-slice runs in place, which beats any kernel that copies."""
    return None


def forward(operator: Any, weights: Any, attributes: Any, cache: Any, new: Any, positions: Any) -> Any:
    """The cache with the new tokens."""
    return operator(cache, new, positions, **attributes)


def inputs(sizes: Any, draw: Any) -> tuple[Any, ...]:
    """cache, new and positions; keys are transposed if the sizes say so."""
    batch, heads, slots, size, tokens = (sizes[name] for name in "BGCDS")
    keys = sizes.get("keys", 0)
    return (
        draw.normal((batch, heads, size, slots) if keys else (batch, heads, slots, size)),
        draw.normal((batch, heads, size, tokens) if keys else (batch, heads, tokens, size)),
        draw.integers(0, slots - tokens + 1, (batch,)),
    )


def flops(cache: tuple[int, ...], new: tuple[int, ...], positions: tuple[int, ...]) -> int:
    """No product: TensorE has nothing to do."""
    return 0


def _case(name: str, kind: Any, axis: int, scale: float = 1.0, **sizes: int) -> Case:
    return Case(
        name=name, kind=kind, sizes=sizes | {"keys": int(axis == 3)}, attributes={"axis": axis}, scale=scale
    )


RECIPE = Recipe(
    name="kv_cache_update",
    summary="Key/value cache with new tokens written at each row's position.",
    schema="(Tensor cache, Tensor new, Tensor positions, int axis) -> Tensor",
    operation="function",
    bind=bind,
    forward=forward,
    sequence_axes=(None, None, None),
    inputs=inputs,
    flops=flops,
    # S is at most C: it stays as the cases have it.
    sizes={"B": Size(least=1, most=64), "G": Size(least=1, most=64), "D": Size(least=1, most=512)},
    cases=(
        _case("values of one token", "ordinary", 2, B=2, G=4, C=64, D=32, S=1),
        _case("keys of one token", "ordinary", 3, B=2, G=4, C=64, D=32, S=1),
        _case("a prompt's values", "ordinary", 2, B=1, G=2, C=128, D=64, S=96),
        _case("a prompt's keys", "ordinary", 3, B=1, G=2, C=128, D=64, S=96),
        _case("as many tokens as slots", "tail", 2, B=2, G=1, C=5, D=3, S=5),
        _case("odd sizes", "tail", 3, B=3, G=3, C=77, D=13, S=7),
        _case("one of each", "tail", 2, B=1, G=1, C=2, D=2, S=1),
        _case("large values", "stress", 3, scale=1e6, B=2, G=2, C=33, D=16, S=2),
        _case("a long cache", "large", 2, B=2, G=4, C=1024, D=64, S=1),
    ),
)
