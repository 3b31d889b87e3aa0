"""The numeric probe: is this layer what the recipe computes? Decided by numbers, never by names.

The layer's own forward and the recipe's reference run on the same random inputs and the same randomised parameters,
in float32, at several input scales. Freshly initialised parameters would not do: a norm's weight of one hides the
difference between w, 1 + w and no weight. The limit 2e-5 tells gelu from gelu_tanh, where 2e-4 does not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from neuron_port.recipe import Binding, Recipe
from neuron_port.types import WeightSource
from neuron_port.walk.cutpoints import Call, flatten_tensors

RELATIVE_LIMIT = 2e-5
SCALES = (1.0, 1e3, 3e-3)
# Scores of scale 1e6 leave the softmax a coin toss between near-equal keys, in any order of summation.
ATTENTION_SCALES = (1.0, 4.0, 3e-3)
PROBE_TOKENS = 7


def materialize(
    module: torch.nn.Module, fill: Callable[[str, torch.Tensor], torch.Tensor]
) -> torch.nn.Module:
    """A copy on the CPU of a (meta) module, with parameters `fill(name, like)` in whatever dtype that gives."""
    clone = copy.deepcopy(module)
    for name, parameter in list(clone.named_parameters(remove_duplicate=False)):
        owner_name, _, leaf = name.rpartition(".")
        owner = clone.get_submodule(owner_name)
        setattr(owner, leaf, torch.nn.Parameter(fill(name, parameter), requires_grad=False))
    for child in clone.modules():
        vars(child).pop("forward", None)  # a deep copy of an intercepted module must not call its original
    return clone.eval()


def random_parameters(generator: torch.Generator) -> Callable[[str, torch.Tensor], torch.Tensor]:
    """Fill for `materialize`: every parameter normal; matrices scaled so that activations keep their size."""

    def fill(name: str, like: torch.Tensor) -> torch.Tensor:
        scale = like.shape[-1] ** -0.5 if like.ndim > 1 and "embed" not in name else 1.0
        return torch.empty(like.shape, dtype=torch.float32).normal_(generator=generator).mul_(scale)

    return fill


def draw_arguments(
    value: Any,
    generator: torch.Generator,
    *,
    scale: float,
    vocabulary: int,
    resize: Callable[[torch.Tensor], Sequence[int]],
) -> Any:
    """Random values in the shape of a call's arguments: nested containers keep their form, modules stay."""
    if isinstance(value, torch.Tensor):
        shape = tuple(resize(value))
        if value.is_floating_point():
            return torch.randn(shape, generator=generator) * scale
        return torch.randint(0, vocabulary, shape, generator=generator, dtype=value.dtype)
    if isinstance(value, Mapping):
        return {
            key: draw_arguments(item, generator, scale=scale, vocabulary=vocabulary, resize=resize)
            for key, item in value.items()
        }
    if isinstance(value, (tuple, list)):
        return type(value)(
            draw_arguments(item, generator, scale=scale, vocabulary=vocabulary, resize=resize)
            for item in value
        )
    return value


def bound_weights(
    module: torch.nn.Module | None, sources: Mapping[str, WeightSource]
) -> dict[str, torch.Tensor]:
    """The kernel's weights, by role, in the layout it wants."""
    weights = {}
    for role, source in sources.items():
        assert module is not None, f"weight `{role}` bound to a call without module"
        tensor = module.get_parameter(source.name).detach()
        weights[role] = tensor.t() if source.transform == "transpose" else tensor
    return weights


def index_limit(call: Call) -> int:
    """Exclusive upper bound of the call's integer arguments: rows of the table, or slots of the cache."""
    if call.operation == "attention_decode":
        return int(call.args[3].shape[2])
    parameters = list(call.module.parameters()) if call.module is not None else []
    return int(parameters[0].shape[0]) if parameters else 2


def probe(call: Call, recipe: Recipe, reference: Callable[..., Any], binding: Binding) -> dict[str, float]:
    """Largest relative difference between the layer and the recipe, for each input scale.

    Shapes come from the call, except that at most PROBE_TOKENS tokens are drawn. Keys are "scale 1", "scale 1000" ...
    """
    generator = torch.Generator().manual_seed(20260817)
    module = call.module
    if call.operation == "module":
        assert module is not None
        module = materialize(module, random_parameters(generator))
    function = module if call.operation == "module" and module is not None else call.function
    weights = bound_weights(module, binding.weights)
    resize = token_resizer(call, recipe, PROBE_TOKENS)
    differences = {}
    for scale in ATTENTION_SCALES if "attention" in call.operation else SCALES:
        args, kwargs = draw_arguments(
            (call.args, dict(call.kwargs)),
            generator,
            scale=scale,
            vocabulary=index_limit(call),
            resize=resize,
        )
        with torch.no_grad():
            own = list(flatten_tensors(function(*args, **kwargs)))
            ours = list(
                flatten_tensors(recipe.forward(reference, weights, binding.attributes, *args, **kwargs))
            )
        differences[f"scale {scale:g}"] = relative_difference(ours, own)
    return differences


def token_resizer(call: Call, recipe: Recipe, tokens: int) -> Callable[[torch.Tensor], list[int]]:
    """A function from a tensor argument to its shape with at most `tokens` along the axis that counts tokens."""
    axes = {id(tensor): axis for tensor, axis in zip(call.tensors, recipe.sequence_axes, strict=False)}

    def resize(tensor: torch.Tensor) -> list[int]:
        shape = list(tensor.shape)
        axis = axes.get(id(tensor))
        if axis is not None and not call.operation.endswith("decode"):
            shape[axis] = min(shape[axis], tokens)
        return shape

    return resize


def relative_difference(ours: Sequence[torch.Tensor], own: Sequence[torch.Tensor]) -> float:
    """max |ours - own| / max |own| over all outputs; infinite when shapes, or the places of non-finite values, differ."""
    if len(ours) < len(own) or any(a.shape != b.shape for a, b in zip(ours, own, strict=False)):
        return float("inf")
    worst = 0.0
    for a, b in zip(ours, own, strict=False):
        if not torch.equal(torch.isfinite(a), torch.isfinite(b)):
            return float("inf")
        scale = b.abs().max().item()
        worst = max(worst, (a - b).abs().max().item() / scale if scale else float("inf"))
    return worst
