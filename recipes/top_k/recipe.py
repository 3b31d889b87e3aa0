"""The largest values along the last axis and their places, largest first.

No layer is matched yet: routers choose inside `moe_router`, and `torch.topk` is not a cut point. The kernel is called by
name, `torch.ops.neuron_port.top_k(x, k)`. Of equal values the first counts as larger.
Sizes: R = rows, N = values of a row. The number of values wanted is the attribute `k`, at most 128.
"""

from __future__ import annotations

from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size


def bind(call: Any) -> Binding | None:
    """None: no cut point hands this over yet."""
    return None


def forward(operator: Any, weights: Any, attributes: Any, x: Any) -> tuple[Any, Any]:
    """Values and indices (int64, as torch has them) of [.., N]."""
    values, indices = operator(x.reshape(-1, x.shape[-1]), **attributes)
    shape = (*x.shape[:-1], attributes["k"])
    return values.reshape(shape), indices.long().reshape(shape)


def inputs(sizes: Any, draw: Any) -> tuple[Any, ...]:
    """x [R, N]."""
    return (draw.normal((sizes["R"], sizes["N"])),)


def flops(x: tuple[int, ...]) -> int:
    """No product: TensorE has nothing to do."""
    return 0


RECIPE = Recipe(
    name="top_k",
    summary="The largest values of each row and their places.",
    schema="(Tensor x, int k) -> (Tensor, Tensor)",
    operation="function",
    bind=bind,
    forward=forward,
    sequence_axes=(-2,),
    inputs=inputs,
    flops=flops,
    sizes={"R": Size(least=1, most=4096)},  # k is at most N, so N stays as the cases have it
    cases=(
        Case(name="eight of 64", kind="ordinary", sizes={"R": 20, "N": 64}, attributes={"k": 8}),
        Case(name="two of 100", kind="ordinary", sizes={"R": 3, "N": 100}, attributes={"k": 2}),
        Case(name="fifty of a vocabulary", kind="ordinary", sizes={"R": 2, "N": 32000}, attributes={"k": 50}),
        Case(name="all of a short row", kind="tail", sizes={"R": 130, "N": 5}, attributes={"k": 5}),
        Case(name="one of two", kind="tail", sizes={"R": 1, "N": 2}, attributes={"k": 1}),
        Case(name="a vocabulary that no partition divides", kind="tail", sizes={"R": 1, "N": 50257}, attributes={"k": 9}),
        Case(name="many ties", kind="stress", sizes={"R": 4, "N": 300}, attributes={"k": 12}, style="signed zeros"),
        Case(name="clustered", kind="stress", sizes={"R": 2, "N": 4099}, attributes={"k": 5}, style="clustered"),
        Case(name="large values", kind="stress", sizes={"R": 9, "N": 200}, attributes={"k": 3}, scale=1e6),
        Case(name="a large vocabulary", kind="large", sizes={"R": 1, "N": 151936}, attributes={"k": 4}),
    ),
)  # fmt: skip
