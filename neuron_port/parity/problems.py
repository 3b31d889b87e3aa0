"""The inputs on which a layer is proven: captured, ordinary, tails, stress and large values, from fixed seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from neuron_port.match.probe import draw_for, token_axes
from neuron_port.parity.comparison import EPSILON
from neuron_port.registry import RegisteredRecipe
from neuron_port.walk.calls import Call
from neuron_port.walk.walker import Capture

TAIL_TOKENS = (1, 3, 77)
STRESS_TOKENS = (
    128  # one tile is enough to see what values do; the call's own length is the ordinary case's business
)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Arguments for one call of the layer, in float32."""

    name: str
    kind: str
    seed: int | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def problems(call: Call, found: RegisteredRecipe, capture: Capture | None) -> Iterator[Problem]:
    """The inputs on which this call is proven."""
    if capture is not None:
        yield Problem(name="captured", kind="captured", seed=None, args=capture.args, kwargs=capture.kwargs)
    sharp = "attention" in call.operation
    has_values = any(tensor.is_floating_point() for tensor in call.tensors)  # an embedding has indices alone
    variations: list[tuple[str, str, float, str]] = [
        ("ordinary", "ordinary", 1.0, "normal"),
        ("tiny values", "stress", 1e-3, "normal"),
        ("constant rows", "stress", 1.0, "constant"),
        ("outliers", "stress", 1.0, "outliers"),
        ("large values", "large", 6.0 if sharp else 30.0, "normal"),
    ]
    own = max(own_tokens(call, found), default=1)
    for seed, (name, kind, scale, style) in enumerate(variations if has_values else variations[:1]):
        shortened = STRESS_TOKENS if kind != "ordinary" and own > STRESS_TOKENS else None
        yield _draw(call, found, name, kind, seed, scale, style, tokens=shortened)
    for tokens in tail_tokens(call, found):
        yield _draw(call, found, f"{tokens} tokens", "tail", 100 + tokens, 1.0, "normal", tokens=tokens)


def own_tokens(call: Call, found: RegisteredRecipe) -> set[int]:
    """How many tokens the call has; a decode step's attention has one by definition, and counts none."""
    if call.operation == "attention_decode":
        return set()
    entries = zip(call.tensors, found.recipe.token_axes(call), strict=False)
    return {tensor.shape[axis] for tensor, entry in entries for axis in token_axes(tensor, entry)}


def tail_tokens(call: Call, found: RegisteredRecipe) -> list[int]:
    """Token counts other than the call's own that reach tails."""
    own = own_tokens(call, found)
    return [tokens for tokens in TAIL_TOKENS if tokens not in own] if own else []


def _draw(
    call: Call,
    found: RegisteredRecipe,
    name: str,
    kind: str,
    seed: int,
    scale: float,
    style: str,
    tokens: int | None,
) -> Problem:
    generator = torch.Generator().manual_seed(7919 * seed + 1)
    drawing = draw_for(call, found.recipe, generator, scale=scale, tokens=tokens)
    drawn = drawing.draw((call.args, dict(call.kwargs)))
    args, kwargs = _restyle(drawn, style)
    return Problem(name=name, kind=kind, seed=seed, args=args, kwargs=kwargs)


def _restyle(value: Any, style: str) -> Any:
    """Make rows constant, or give one element in each row a thousand times the weight of the others."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        if style == "constant":
            return value[..., :1].expand(value.shape).contiguous()
        if style == "outliers":
            value = value.clone()
            value[..., value.shape[-1] // 3] *= 1e3 if value.ndim < 4 else 10.0
        return value
    if isinstance(value, dict):
        return {key: _restyle(item, style) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_restyle(item, style) for item in value)
    return value


def neighbour(problem: Problem, dtype: torch.dtype, seed: int) -> Problem:
    """The same problem with every value moved by up to two units in the last place of `dtype`, and exact in it."""
    generator = torch.Generator().manual_seed(seed)

    def move(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return nudged(as_dtype(value, dtype), generator)
        if isinstance(value, dict):
            return {key: move(item) for key, item in value.items()}
        if isinstance(value, (tuple, list)):
            return type(value)(move(item) for item in value)
        return value

    return replace(problem, args=move(problem.args), kwargs=move(dict(problem.kwargs)))


def nudged(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """`tensor` with every value moved at random by up to two units in the last place of its dtype."""
    step = 4 * torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 2
    return as_dtype(tensor.double() * (1 + step * EPSILON[tensor.dtype]), tensor.dtype)


def as_dtype(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`tensor` in `dtype`, where what is finite stays finite: a mask holds the lowest number of the dtype that it had."""
    limits = torch.finfo(dtype)
    if torch.finfo(tensor.dtype).max <= limits.max:
        return tensor.to(dtype)
    return torch.where(tensor.isfinite(), tensor.clamp(limits.min, limits.max), tensor).to(dtype)
