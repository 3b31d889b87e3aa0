"""Root mean square normalisation with a gate, before the norm (Mamba 2) or after it (gated delta nets).

Matches modules without children whose only parameter is 1-D over the last axis of two inputs of one shape (the values
and their gate), with an epsilon, and perhaps a `group_size`, among their attributes. Whether the gate comes first, and
whether it is silu or sigmoid, the numeric probe decides.
Any T; H up to 8192; float32 and bfloat16. Sizes: T = tokens, G = groups, H = features of one group.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size, Tolerance
from neuron_port.types import WeightSource

EPSILON_NAMES = ("variance_epsilon", "eps", "epsilon", "rms_norm_eps", "norm_eps")
VARIANTS = ((True, "silu"), (False, "silu"), (False, "sigmoid"), (True, "sigmoid"))

WIDEST = 8192  # rows that fit SBUF


def bind(call: Any) -> tuple[Binding, ...] | None:
    """Offer both orders and both gates for a module with a gain and two like inputs."""
    module = call.module
    if call.operation != "module" or module is None or len(call.inputs) != 2 or any(module.children()):
        return None
    hidden = call.inputs[0].shape
    if call.inputs[1].shape != hidden or len(hidden) < 2:
        return None
    parameters = list(module.named_parameters())
    eps = next((getattr(module, name) for name in EPSILON_NAMES if hasattr(module, name)), None)
    if len(parameters) != 1 or not isinstance(eps, float):
        return None
    name, gain = parameters[0]
    width = getattr(module, "group_size", None) or hidden[-1]
    if gain.ndim != 1 or gain.shape[0] != hidden[-1] or hidden[-1] > WIDEST:
        return None
    if not isinstance(width, int) or hidden[-1] % width:
        return None
    fixed: dict[str, Any] = {"eps": eps, "groups": hidden[-1] // width}
    return tuple(
        Binding(
            weights={"gamma": WeightSource(name=name)},
            attributes=fixed | {"gate_first": gate_first, "function": function},
        )
        for gate_first, function in VARIANTS
    )


def forward(
    operator: Any, weights: Mapping[str, Any], attributes: Mapping[str, Any], hidden: Any, gate: Any
) -> Any:
    """Normalise [..., H] with a gate [..., H] through the operator on [T, H]."""
    width = hidden.shape[-1]
    rows, gates = hidden.reshape(-1, width).contiguous(), gate.reshape(-1, width).contiguous()
    return operator(rows, gates, weights["gamma"], **attributes).reshape(hidden.shape)


def inputs(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    """x and gate [T, G * H], gamma [G * H]."""
    hidden = sizes["G"] * sizes["H"]
    return draw.normal((sizes["T"], hidden)), draw.normal((sizes["T"], hidden)), draw.normal((hidden,))


def flops(*shapes: tuple[int, ...]) -> int:
    """TensorE is not used."""
    return 0


def _case(
    name: str, kind: Any, tokens: int, hidden: int, gate_first: bool, groups: int = 1, **options: Any
) -> Case:
    attributes = {
        "eps": 1e-5,
        "gate_first": gate_first,
        "groups": groups,
        "function": options.pop("function", "silu"),
    }
    sizes = {"T": tokens, "G": groups, "H": hidden}
    return Case(name=name, kind=kind, sizes=sizes, attributes=attributes, **options)


RECIPE = Recipe(
    name="gated_rms_norm",
    summary="Root mean square normalisation with a gate before or after it, in groups.",
    schema=(
        "(Tensor x, Tensor gate, Tensor gamma, float eps, bool gate_first, int groups=1, "
        'str function="silu") -> Tensor'
    ),
    operation="module",
    bind=bind,
    forward=forward,
    mixed_dtypes=True,  # a scan answers in float32 beside 16-bit gates and weights
    sequence_axes=(-2, -2),
    inputs=inputs,
    flops=flops,
    tolerance=Tolerance(reduction_length="H"),
    sizes={"T": Size(least=1, most=32768), "H": Size(least=1, most=1024)},
    cases=(
        _case("gate first", "ordinary", 64, 512, True),
        _case("gate last", "ordinary", 200, 128, False),
        _case("gate first, four groups", "ordinary", 40, 64, True, groups=4),
        _case("gate last, two groups", "ordinary", 40, 64, False, groups=2),
        _case("gate last, sigmoid", "ordinary", 40, 64, False, function="sigmoid"),
        _case("one token", "tail", 1, 256, True),
        _case("several tokens on a partition", "tail", 1100, 48, False),
        _case("uneven", "tail", 131, 77, True),
        _case("epsilon decides", "stress", 16, 64, True, scale=1e-2),
        _case("epsilon decides, gate last", "stress", 16, 64, False, scale=1e-2),
        _case("large values", "stress", 16, 64, True, scale=30.0),
        _case("wide", "large", 130, 1000, False, groups=4),
    ),
)
