"""Gated MLP: (activation(x @ gate) * (x @ up)) @ down, with silu (SwiGLU), gelu, gelu_tanh (GeGLU) or relu.

Matches modules whose only parameters are the weights of three projections, two [I, H] and one [N, I], or of two where
gate and up are halves of one [2I, H], each with a bias or without; called with one tensor of H features.
Names hint which is gate and which is up, and what activates; where they do not say, the possibilities are tried in
turn. The numeric probe decides. Any T; float32 and bfloat16. Sizes: T = tokens, H = hidden, I = intermediate, N = output
features.
"""

from __future__ import annotations

from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size, Tolerance
from neuron_port.types import WeightSource

# Parts of the children's names that say what they are, in the order of the roles.
ROLE_NAMES = {"gate": ("gate", "w1", "wi_0"), "up": ("up", "w3", "wi_1"), "down": ("down", "w2", "wo")}
# Activations, and what the names of classes, functions and options have in them that compute these.
ACTIVATION_NAMES = {
    "silu": ("silu", "swish", "swiglu"),
    "gelu_tanh": ("tanh", "gelu_new", "newgelu", "fastgelu", "gelu_fast", "gelu_accurate"),
    "gelu": ("gelu", "geglu"),
    "relu": ("relu", "reglu"),
}


def bind(call: Any) -> tuple[Binding, ...] | None:
    """Accept a module with two or three projections that can be gate, up and down."""
    module = call.module
    if call.operation != "module" or module is None or len(call.inputs) != 1 or not call.inputs[0].shape:
        return None
    x = call.inputs[0]
    shapes = {name: tuple(tensor.shape) for name, tensor in module.named_parameters()}
    matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    if x.dtype not in RECIPE.dtypes or len(matrices) not in (2, 3) or not only_biases(shapes, matrices):
        return None
    found = split(matrices, x.shape[-1]) if len(matrices) == 3 else fused(matrices, x.shape[-1])
    bindings = [
        Binding(weights=sources(roles, shapes), attributes={"activation": activation, "halves": halves})
        for activation in likely_activations(module)
        for roles, halves in found
    ]
    return tuple(bindings) or None


def only_biases(shapes: dict[str, tuple[int, ...]], matrices: dict[str, tuple[int, ...]]) -> bool:
    """Whether every other parameter is the bias of a projection."""
    biases = {bias_of(name): shape[:1] for name, shape in matrices.items()}
    others = {name: shape for name, shape in shapes.items() if name not in matrices}
    return all(biases.get(name) == shape for name, shape in others.items())


def bias_of(weight: str) -> str:
    """The name that the bias of a weight has beside it."""
    return weight.removesuffix("weight") + "bias"


def split(matrices: dict[str, tuple[int, ...]], hidden: int) -> list[tuple[dict[str, str], str]]:
    """Gate, up and down as three weights; where names do not tell gate from up, both ways."""
    for told in (said(matrices), {}):  # names that contradict the shapes say nothing
        roles = assign_roles(matrices, hidden, told)
        gate, up, down = (matrices[roles[role]] for role in ROLE_NAMES)
        if gate == up and gate[1] == hidden and down[1] == gate[0]:
            swapped = {**roles, "gate": roles["up"], "up": roles["gate"]}
            return (
                [(roles, "apart")] if {"gate", "up"} & set(told) else [(roles, "apart"), (swapped, "apart")]
            )
    return []


def fused(matrices: dict[str, tuple[int, ...]], hidden: int) -> list[tuple[dict[str, str], str]]:
    """Gate and up as halves of one weight [2I, H], in both orders, and down [N, I]."""
    for both, down in (tuple(matrices), tuple(matrices)[::-1]):
        rows, features = matrices[both]
        if features == hidden and rows == 2 * matrices[down][1]:
            return [({"gate": both, "down": down}, order) for order in ("gate_up", "up_gate")]
    return []


def said(names: Any) -> dict[str, str]:
    """Roles that parts of the names tell."""
    told: dict[str, str] = {}
    for role, parts in ROLE_NAMES.items():
        free = [name for name in names if name not in told.values()]
        named = [name for name in free if any(part in name.lower() for part in parts)]
        if len(named) == 1:
            told[role] = named[0]
    return told


def assign_roles(shapes: dict[str, tuple[int, ...]], hidden: int, told: dict[str, str]) -> dict[str, str]:
    """The roles that are told; the rest in order, down by its shape."""
    rest = [name for name in shapes if name not in told.values()]
    rest.sort(key=lambda name: shapes[name][1] != hidden)  # stable; only down reads other than H features
    return {role: told.get(role) or rest.pop(0) for role in ROLE_NAMES}


def sources(roles: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> dict[str, WeightSource]:
    """Weights to be transposed at load, and the biases that there are."""
    weights = {role: WeightSource(name=name, transform="transpose") for role, name in roles.items()}
    for role, name in roles.items():
        if bias_of(name) in shapes:
            weights[f"{role}_bias"] = WeightSource(name=bias_of(name))
    return weights


def likely_activations(module: Any) -> list[str]:
    """All activations, those first that the names of the module's parts and options mention."""
    words = [type(child).__name__ for child in module.modules()]
    for options in (vars(module), vars(getattr(module, "config", object))):
        words += [str(getattr(value, "__name__", value)) for key, value in options.items() if "act" in key]
    text = " ".join(words).lower()
    mentioned = [name for name, parts in ACTIVATION_NAMES.items() if any(part in text for part in parts)]
    return mentioned + [name for name in ACTIVATION_NAMES if name not in mentioned]


def forward(operator: Any, weights: Any, attributes: Any, *args: Any, **options: Any) -> Any:
    """Apply the MLP to [..., H] through the operator on [T, H]; a fused weight serves as gate and as up."""
    hidden = args[0] if args else next(iter(options.values()))
    rows = hidden.reshape(-1, hidden.shape[-1])
    gate, gate_bias = weights["gate"], weights.get("gate_bias")
    is_fused = "up" not in weights
    up, up_bias = (gate, gate_bias) if is_fused else (weights["up"], weights.get("up_bias"))
    biases = (gate_bias, up_bias, weights.get("down_bias"))
    result = operator(rows, gate, up, weights["down"], *biases, **attributes)
    return result.reshape(*hidden.shape[:-1], result.shape[-1])


def inputs(sizes: Any, draw: Any) -> tuple[Any, ...]:
    """x [T, H], gate and up [H, I] or one [H, 2I] twice, down [I, N] (N is H unless sizes say so), perhaps biases."""
    hidden, intermediate = sizes["H"], sizes["I"]
    columns = sizes.get("N", hidden)
    x = draw.normal((sizes["T"], hidden))
    stored = 2 * intermediate if sizes.get("fused") else intermediate
    gate = draw.weight((hidden, stored))
    up = gate if sizes.get("fused") else draw.weight((hidden, stored))
    down = draw.weight((intermediate, columns))
    if not sizes.get("bias"):
        return x, gate, up, down
    gate_bias = draw.normal((stored,))
    up_bias = gate_bias if sizes.get("fused") else draw.normal((stored,))
    return x, gate, up, down, gate_bias, up_bias, draw.normal((columns,))


def flops(x: tuple[int, ...], gate: tuple[int, ...], up: Any, down: tuple[int, ...], *biases: Any) -> int:
    """Two per multiply-add of the three products."""
    return 2 * x[0] * down[0] * (2 * gate[0] + down[1])


RECIPE = Recipe(
    name="gated_mlp",
    summary="Gated MLP: (activation(x @ gate) * (x @ up)) @ down, with silu, gelu, gelu_tanh or relu.",
    schema=(
        "(Tensor x, Tensor gate, Tensor up, Tensor down, Tensor? gate_bias=None, Tensor? up_bias=None, "
        "Tensor? down_bias=None, str activation='silu', str halves='apart') -> Tensor"
    ),
    operation="module",
    bind=bind,
    forward=forward,
    sequence_axes=(-2,),
    inputs=inputs,
    flops=flops,
    tolerance=Tolerance(reduction_length="I"),
    version="2",
    sizes={
        "T": Size(least=1, most=32768),
        "H": Size(least=1, most=16384),
        "I": Size(least=1, most=65536),
        "N": Size(least=1, most=16384),
    },
    cases=(
        Case(name="one token", kind="ordinary", sizes={"T": 1, "H": 576, "I": 1536}),
        Case(name="four tokens, spread", kind="ordinary", sizes={"T": 4, "H": 256, "I": 640}),
        Case(name="a prompt", kind="ordinary", sizes={"T": 128, "H": 192, "I": 768}),
        Case(
            name="gelu, fused, one token",
            kind="ordinary",
            sizes={"T": 1, "H": 192, "I": 384, "fused": 1},
            attributes={"activation": "gelu", "halves": "gate_up"},
        ),
        Case(
            name="gelu_tanh with biases, fused the other way",
            kind="ordinary",
            sizes={"T": 20, "H": 130, "I": 300, "fused": 1, "bias": 1},
            attributes={"activation": "gelu_tanh", "halves": "up_gate"},
        ),
        Case(
            name="relu with biases, one token",
            kind="ordinary",
            sizes={"T": 1, "H": 192, "I": 384, "bias": 1},
            attributes={"activation": "relu"},
        ),
        Case(name="tails everywhere", kind="tail", sizes={"T": 130, "H": 193, "I": 577, "N": 515}),
        Case(
            name="tails everywhere, with biases",
            kind="tail",
            sizes={"T": 130, "H": 65, "I": 333, "N": 131, "bias": 1},
            attributes={"activation": "gelu"},
        ),
        Case(name="less than a chunk", kind="tail", sizes={"T": 2, "H": 65, "I": 33}),
        Case(name="one of each", kind="tail", sizes={"T": 1, "H": 1, "I": 1}),
        Case(name="small values", kind="stress", sizes={"T": 5, "H": 192, "I": 320}, scale=1e-3),
        Case(name="large values", kind="stress", sizes={"T": 20, "H": 192, "I": 320}, scale=30.0),
        Case(name="two blocks of tokens", kind="large", sizes={"T": 700, "H": 256, "I": 640}),
    ),
)
