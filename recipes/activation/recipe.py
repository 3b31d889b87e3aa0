"""Elementwise activation function, where no other recipe has taken it into its own kernel.

Matches modules without parameters and buffers that take one floating-point tensor. Which function it is, the numeric
probe decides: the ones that the module's own words suggest (`approximate = "tanh"`, `max_val = 6`) are tried first.
Any shape; float32 and bfloat16. Size: T = rows, H = columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size

# By how often models use them: the probe goes through these in order.
FUNCTIONS = (
    "silu", "gelu", "gelu_tanh", "relu", "quick_gelu", "relu2", "tanh", "sigmoid", "softplus", "mish", "hard_swish",
    "relu6", "exp",
)  # fmt: skip


def bind(call: Any) -> tuple[Binding, ...] | None:
    """Offer every known function for a module that has nothing but a tensor to go by."""
    module = call.module
    if call.operation != "module" or module is None or len(call.inputs) != 1:
        return None
    if not call.inputs[0].dtype.startswith(("float", "bfloat")) or not call.inputs[0].shape:
        return None
    if next(module.parameters(), None) is not None or next(module.buffers(), None) is not None:
        return None
    if any(hasattr(module, name) for name in ("kernel_size", "output_size", "start_dim", "p")):
        return None  # pooling, reshaping and dropout: the probe would refuse them thirteen times
    return tuple(Binding(attributes={"function": name}) for name in likeliest_first(module))


def likeliest_first(module: Any) -> list[str]:
    """All functions, those that attributes point to in front."""
    first = []
    if getattr(module, "approximate", None) == "tanh":
        first = ["gelu_tanh"]
    elif hasattr(module, "approximate"):
        first = ["gelu"]
    elif getattr(module, "max_val", None) == 6.0:
        first = ["relu6"]
    elif hasattr(module, "beta") and hasattr(module, "threshold"):
        first = ["softplus"]
    return first + [name for name in FUNCTIONS if name not in first]


def forward(
    operator: Any,
    weights: Mapping[str, Any],
    attributes: Mapping[str, Any],
    x: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Apply the function to x of any shape through the operator on two axes."""
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    return operator(rows, **attributes).reshape(x.shape)


def inputs(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    """x [T, H]."""
    return (draw.normal((sizes["T"], sizes["H"])),)


def flops(*shapes: tuple[int, ...]) -> int:
    """TensorE is not used."""
    return 0


def _case(name: str, kind: Any, rows: int, columns: int, function: str = "gelu", **options: Any) -> Case:
    sizes = {"T": rows, "H": columns}
    return Case(name=name, kind=kind, sizes=sizes, attributes={"function": function}, **options)


RECIPE = Recipe(
    name="activation",
    summary="Elementwise activation function: gelu (three kinds), relu (three kinds), silu, sigmoid, tanh ...",
    schema="(Tensor x, str function) -> Tensor",
    operation="module",
    bind=bind,
    forward=forward,
    sequence_axes=(-2,),
    inputs=inputs,
    flops=flops,
    sizes={"T": Size(least=1, most=65536), "H": Size(least=1, most=65536)},
    cases=(
        *(_case(function, "ordinary", 8, 64, function) for function in FUNCTIONS),
        _case("several steps", "large", 128, 2100, "silu"),
        _case("a vector", "tail", 1, 77),
        _case("uneven", "tail", 3, 577, "quick_gelu"),
        _case("tiny values", "stress", 16, 64, "gelu_tanh", scale=1e-3),
        _case("large values", "stress", 16, 64, "silu", scale=30.0),
        _case("large values, softplus", "stress", 16, 64, "softplus", scale=30.0),
        _case("signed zeros", "stress", 16, 64, "relu2", style="signed zeros"),
    ),
)
