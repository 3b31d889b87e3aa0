"""The place of the largest value along the last axis: greedy sampling from logits.

No layer is matched yet: models return logits, and sampling stands outside of them. The kernel is called by name,
`torch.ops.neuron_port.argmax(logits)`. Of equal values the first is taken.
Sizes: R = rows, N = values of a row.
"""

from __future__ import annotations

from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size


def bind(call: Any) -> Binding | None:
    """None: no cut point hands this over yet."""
    return None


def forward(operator: Any, weights: Any, attributes: Any, x: Any) -> Any:
    """Places (int64, as torch has them) in [.., N]."""
    return operator(x.reshape(-1, x.shape[-1])).long().reshape(x.shape[:-1])


def inputs(sizes: Any, draw: Any) -> tuple[Any, ...]:
    """x [R, N]."""
    return (draw.normal((sizes["R"], sizes["N"])),)


def flops(x: tuple[int, ...]) -> int:
    """No product: TensorE has nothing to do."""
    return 0


RECIPE = Recipe(
    name="argmax",
    summary="The place of the largest value of each row.",
    schema="(Tensor x) -> Tensor",
    operation="function",
    bind=bind,
    forward=forward,
    sequence_axes=(-2,),
    inputs=inputs,
    flops=flops,
    sizes={"R": Size(least=1, most=4096), "N": Size(least=1, most=262144)},
    cases=(
        Case(name="short rows", kind="ordinary", sizes={"R": 20, "N": 64}),
        Case(name="a vocabulary", kind="ordinary", sizes={"R": 1, "N": 32000}),
        Case(name="a batch", kind="ordinary", sizes={"R": 5, "N": 49152}),
        Case(name="more rows than partitions", kind="tail", sizes={"R": 130, "N": 7}),
        Case(name="two values", kind="tail", sizes={"R": 3, "N": 2}),
        Case(name="a vocabulary that no partition divides", kind="tail", sizes={"R": 2, "N": 50257}),
        Case(name="many ties", kind="stress", sizes={"R": 4, "N": 300}, style="signed zeros"),
        Case(name="clustered", kind="stress", sizes={"R": 3, "N": 4099}, style="clustered"),
        Case(name="large values", kind="stress", sizes={"R": 9, "N": 200}, scale=1e6),
        Case(name="a large vocabulary", kind="large", sizes={"R": 2, "N": 151936}),
    ),
)
