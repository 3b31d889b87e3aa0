"""Layer normalisation, with or without gain and shift, over the last axis or over the channels of an image.

Matches modules without children whose only parameters are 1-D, as long as each other and as the last axis (or, of
[N, C, height, width], axis 1) of their one input, with an epsilon among their attributes. What distinguishes it from a
root mean square norm, and a gain w from 1 + w, the numeric probe decides. A gain alone is offered too; a module
without parameters needs an epsilon.
Any T; H up to 8192; float32 and bfloat16. Sizes: T = tokens, H = hidden, W = parameters (2: gain and shift, 1: gain,
0: none).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size, Tolerance
from neuron_port.types import WeightSource

EPSILON_NAMES = ("eps", "variance_epsilon", "epsilon", "layer_norm_eps", "layer_norm_epsilon", "norm_eps")
WIDEST = 8192  # rows that fit SBUF
CHANNELS_FIRST = 1  # axis of the channels of an image


def bind(call: Any) -> tuple[Binding, ...] | None:
    """Offer the gain w, then 1 + w, over the last axis; over axis 1 of a 4-D input that has the size there."""
    module = call.module
    if call.operation != "module" or module is None or len(call.inputs) != 1 or any(module.children()):
        return None
    shape = call.inputs[0].shape
    parameters = dict(module.named_parameters())
    eps = epsilon(module)
    if eps is None or not call.inputs[0].dtype.startswith(("float", "bfloat")) or len(shape) < 2:
        return None
    if len(parameters) > 2 or any(parameter.ndim != 1 for parameter in parameters.values()):
        return None
    lengths = {parameter.shape[0] for parameter in parameters.values()} or {shape[-1]}
    if (
        len(lengths) != 1
        or max(lengths) > WIDEST
        or any(buffer.numel() for _, buffer in module.named_buffers())
    ):
        return None
    length = lengths.pop()
    roles = weight_roles(list(parameters))
    if roles is None:
        return None
    weights = {role: WeightSource(name=name) for role, name in roles.items()}
    offsets = (0.0, 1.0) if "gamma" in roles else (0.0,)
    bindings = []
    if shape[-1] == length:
        bindings += [Binding(weights=weights, attributes=attributes_of(eps, offset)) for offset in offsets]
    if len(shape) == 4 and shape[CHANNELS_FIRST] == length:
        channels = {"axis": CHANNELS_FIRST}
        bindings += [Binding(weights=weights, attributes=attributes_of(eps, 0.0) | channels)]
    return tuple(bindings) or None


def attributes_of(eps: float, offset: float) -> dict[str, Any]:
    """The operator's attributes; an offset of zero is its default."""
    return {"eps": eps, "offset": offset} if offset else {"eps": eps}


def epsilon(module: Any) -> float | None:
    """The module's epsilon, under any of the names that models give it."""
    for name in EPSILON_NAMES:
        value = getattr(module, name, None)
        if isinstance(value, float):
            return value
    return None


def weight_roles(names: list[str]) -> dict[str, str] | None:
    """Which parameter is gain and which is shift: a shift is called so; the order decides nothing."""
    shifts = [name for name in names if name in ("bias", "beta", "shift", "b")]
    gains = [name for name in names if name not in shifts]
    if len(shifts) > 1 or len(gains) > 1:
        return None
    roles = {"gamma": gains[0]} if gains else {}
    return roles | ({"beta": shifts[0]} if shifts else {})


def forward(
    operator: Any, weights: Mapping[str, Any], attributes: Mapping[str, Any], hidden: Any, **kwargs: Any
) -> Any:
    """Normalise [..., H], or [N, H, height, width], through the operator on [T, H]."""
    options = {name: value for name, value in attributes.items() if name != "axis"}
    channels_first = attributes.get("axis") == CHANNELS_FIRST
    rows = hidden.permute(0, 2, 3, 1) if channels_first else hidden
    flat = rows.reshape(-1, rows.shape[-1]).contiguous()
    out = operator(flat, weights.get("gamma"), weights.get("beta"), **options).reshape(rows.shape)
    return out.permute(0, 3, 1, 2) if channels_first else out


def inputs(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    """x [T, H], gamma [H] and beta [H]; with W < 2 the shift, with W < 1 both are None."""
    x = draw.normal((sizes["T"], sizes["H"]))
    gamma = draw.normal((sizes["H"],)) if sizes["W"] >= 1 else None
    return x, gamma, draw.normal((sizes["H"],)) if sizes["W"] >= 2 else None


def flops(*shapes: tuple[int, ...]) -> int:
    """TensorE is not used (but for two tiny sums over partitions in decode)."""
    return 0


def _case(name: str, kind: Any, tokens: int, hidden: int, parameters: int = 2, **options: Any) -> Case:
    extra = {key: options.pop(key) for key in ("scale", "style") if key in options}
    sizes = {"T": tokens, "H": hidden, "W": parameters}
    return Case(name=name, kind=kind, sizes=sizes, attributes={"eps": 1e-5} | options, **extra)


RECIPE = Recipe(
    name="layer_norm",
    summary="Layer normalisation, with or without gain and shift.",
    schema="(Tensor x, Tensor? gamma, Tensor? beta, float eps, float offset=0.0) -> Tensor",
    operation="module",
    bind=bind,
    forward=forward,
    sequence_axes=(-2,),
    inputs=inputs,
    flops=flops,
    tolerance=Tolerance(reduction_length="H"),
    sizes={"T": Size(least=1, most=32768), "H": Size(least=2, most=WIDEST)},
    cases=(
        _case("one token", "ordinary", 1, 1024),
        _case("a prompt", "ordinary", 128, 384),
        _case("gain only", "ordinary", 40, 200, 1),
        _case("gain only, few tokens", "ordinary", 2, 256, 1),
        _case("gain one plus w", "ordinary", 40, 64, 1, offset=1.0),
        _case("gain one plus w, few tokens", "ordinary", 3, 128, 2, offset=1.0),
        _case("no parameters", "ordinary", 20, 96, 0),
        _case("no parameters, few tokens", "ordinary", 4, 128, 0),
        _case("few tokens, uneven", "tail", 3, 577),
        _case("two partial tiles", "tail", 130, 577),
        _case("several tokens on a partition", "tail", 1100, 48),
        _case("epsilon decides", "stress", 16, 256, scale=1e-3),
        _case("epsilon decides for two", "stress", 2, 256, scale=1e-3),
        _case("large values", "stress", 16, 256, scale=30.0),
        _case("far from zero", "stress", 16, 256, style="outliers"),
        _case("wide rows", "large", 130, 3000),
    ),
)
