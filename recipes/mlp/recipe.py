"""MLP: activation(x @ up) @ down, with gelu, gelu_tanh, quick_gelu, relu, relu2 (relu squared) or silu.

Matches modules whose only parameters are the weights of two projections, each with a bias or without, and which are
called with one tensor of the first one's features. Weights are stored as [N, K] (transposed at load) or as [K, N]
(GPT-2). Names hint what activates; all activations are tried in turn, and the numeric probe decides. A module that does
more, such as to add a residual, is not matched: its projections then are, one by one.
Any T; float32 and bfloat16. Sizes: T = tokens, H = hidden, I = intermediate, N = output features.
"""

from __future__ import annotations

from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size, Tolerance
from neuron_port.types import WeightSource

# Activations, and what the names of classes, functions and options have in them that compute these.
ACTIVATION_NAMES = {
    "quick_gelu": ("quick",),
    "gelu_tanh": ("tanh", "gelu_new", "newgelu", "fastgelu", "gelu_fast", "gelu_accurate"),
    "gelu": ("gelu",),
    "relu2": ("squared", "relu2"),
    "relu": ("relu",),
    "silu": ("silu", "swish"),
}


def bind(call: Any) -> tuple[Binding, ...] | None:
    """Accept a module with two projections, the second of which takes what the first gives."""
    module = call.module
    if call.operation != "module" or module is None or len(call.inputs) != 1 or not call.inputs[0].shape:
        return None
    x = call.inputs[0]
    shapes = {name: tuple(tensor.shape) for name, tensor in module.named_parameters()}
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    if x.dtype not in RECIPE.dtypes or len(matrices) != 2 or len(shapes) > 4:
        return None
    found = [weights for weights in layouts(matrices, shapes, x.shape[-1]) if len(weights) == len(shapes)]
    bindings = [
        Binding(weights=weights, attributes={"activation": activation})
        for weights in found
        for activation in likely_activations(module)
    ]
    return tuple(bindings) or None


def layouts(
    matrices: list[str], shapes: dict[str, tuple[int, ...]], hidden: int
) -> list[dict[str, WeightSource]]:
    """Roles in the order in which the module declares its projections, or in the other where that does not fit."""
    for up, down in (matrices, matrices[::-1]):
        fitting = []
        for transform, features, columns in (("transpose", 1, 0), ("none", 0, 1)):
            intermediate = shapes[up][columns]
            if shapes[up][features] != hidden or shapes[down][features] != intermediate:
                continue
            weights = {}
            for role, name in (("up", up), ("down", down)):
                weights[role] = WeightSource(name=name, transform=transform)
                bias = name.removesuffix("weight") + "bias"
                if shapes.get(bias) == (shapes[name][columns],):
                    weights[f"{role}_bias"] = WeightSource(name=bias)
            fitting.append(weights)
        if fitting:
            return fitting
    return []


def likely_activations(module: Any) -> list[str]:
    """All activations, those first that the names of the module's parts and options mention."""
    words = [type(child).__name__ for child in module.modules()]
    for options in (vars(module), vars(getattr(module, "config", object))):
        words += [str(getattr(value, "__name__", value)) for key, value in options.items() if "act" in key]
    text = " ".join(words).lower()
    mentioned = [name for name, parts in ACTIVATION_NAMES.items() if any(part in text for part in parts)]
    return mentioned + [name for name in ACTIVATION_NAMES if name not in mentioned]


def forward(operator: Any, weights: Any, attributes: Any, *args: Any, **options: Any) -> Any:
    """Apply the MLP to [..., H] through the operator on [T, H]; arguments that are no tensors do not matter."""
    hidden = args[0] if args else next(iter(options.values()))
    rows = hidden.reshape(-1, hidden.shape[-1])
    biases = (weights.get("up_bias"), weights.get("down_bias"))
    result = operator(rows, weights["up"], weights["down"], *biases, **attributes)
    return result.reshape(*hidden.shape[:-1], result.shape[-1])


def inputs(sizes: Any, draw: Any) -> tuple[Any, ...]:
    """x [T, H], up [H, I], down [I, N] (N is H unless sizes say so) and, if sizes say so, their biases."""
    hidden, intermediate = sizes["H"], sizes["I"]
    columns = sizes.get("N", hidden)
    x = draw.normal((sizes["T"], hidden))
    weights = draw.weight((hidden, intermediate)), draw.weight((intermediate, columns))
    if not sizes.get("bias"):
        return (x, *weights)
    return (x, *weights, draw.normal((intermediate,)), draw.normal((columns,)))


def flops(x: tuple[int, ...], up: tuple[int, ...], down: tuple[int, ...], *biases: Any) -> int:
    """Two per multiply-add of the two products."""
    return 2 * x[0] * (up[0] * up[1] + down[0] * down[1])


RECIPE = Recipe(
    name="mlp",
    summary="MLP: activation(x @ up) @ down, with gelu, gelu_tanh, quick_gelu, relu, relu2 or silu.",
    schema=(
        "(Tensor x, Tensor up, Tensor down, Tensor? up_bias=None, Tensor? down_bias=None, "
        "str activation='gelu') -> Tensor"
    ),
    operation="module",
    bind=bind,
    forward=forward,
    sequence_axes=(-2,),
    inputs=inputs,
    flops=flops,
    tolerance=Tolerance(reduction_length="I"),
    sizes={
        "T": Size(least=1, most=32768),
        "H": Size(least=1, most=16384),
        "I": Size(least=1, most=65536),
        "N": Size(least=1, most=16384),
    },
    cases=(
        Case(name="one token with biases", kind="ordinary", sizes={"T": 1, "H": 384, "I": 1536, "bias": 1}),
        Case(
            name="four tokens, relu",
            kind="ordinary",
            sizes={"T": 4, "H": 256, "I": 640},
            attributes={"activation": "relu"},
        ),
        Case(
            name="a prompt, gelu_tanh with biases",
            kind="ordinary",
            sizes={"T": 128, "H": 192, "I": 768, "bias": 1},
            attributes={"activation": "gelu_tanh"},
        ),
        Case(
            name="quick_gelu with biases",
            kind="ordinary",
            sizes={"T": 50, "H": 128, "I": 512, "bias": 1},
            attributes={"activation": "quick_gelu"},
        ),
        Case(
            name="relu squared",
            kind="ordinary",
            sizes={"T": 12, "H": 128, "I": 512},
            attributes={"activation": "relu2"},
        ),
        Case(
            name="relu squared, one token",
            kind="ordinary",
            sizes={"T": 1, "H": 128, "I": 512},
            attributes={"activation": "relu2"},
        ),
        Case(
            name="silu, one token",
            kind="ordinary",
            sizes={"T": 1, "H": 192, "I": 384, "bias": 1},
            attributes={"activation": "silu"},
        ),
        Case(
            name="tails everywhere",
            kind="tail",
            sizes={"T": 130, "H": 193, "I": 577, "N": 515, "bias": 1},
        ),
        Case(name="less than a chunk", kind="tail", sizes={"T": 2, "H": 65, "I": 33}),
        Case(name="one of each", kind="tail", sizes={"T": 1, "H": 1, "I": 1}),
        Case(name="small values", kind="stress", sizes={"T": 5, "H": 192, "I": 320}, scale=1e-3),
        Case(name="large values", kind="stress", sizes={"T": 20, "H": 192, "I": 320, "bias": 1}, scale=30.0),
        Case(name="two blocks of tokens", kind="large", sizes={"T": 700, "H": 128, "I": 512, "bias": 1}),
    ),
)
