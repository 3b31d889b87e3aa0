"""The numeric probe: is this layer what the recipe computes? Decided by numbers, never by names.

The layer's own forward and the recipe's reference run on the same random inputs and the same randomised parameters,
in float32, at several input scales. Freshly initialised parameters would not do: a norm's weight of one hides the
difference between w, 1 + w and no weight. The limit 2e-5 tells gelu from gelu_tanh, where 2e-4 does not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from neuron_port.recipe import Binding, Recipe
from neuron_port.types import WeightSource, permutation
from neuron_port.walk.calls import Call, flatten_tensors, stored_tensors
from neuron_port.walk.collectives import without_joining

RELATIVE_LIMIT = 2e-5
SCALES = (1.0, 1e3, 3e-3)
# Scores of scale 1e6 leave the softmax a coin toss between near-equal keys, in any order of summation.
ATTENTION_SCALES = (1.0, 4.0, 3e-3)
PROBE_TOKENS = 7
# Modules of many experts are probed and proven with some of them once all together pass this size in float32.
FEW_EXPERTS, FEW_EXPERTS_ABOVE_BYTES = 16, 2 * 2**30


def materialize(
    module: torch.nn.Module, fill: Callable[[str, torch.Tensor], torch.Tensor]
) -> torch.nn.Module:
    """A copy on the CPU of a (meta) module; stored tensors are `fill(name, like)` in whatever dtype that gives."""
    clone = without_joining(copy.deepcopy(module))
    for name, tensor in stored_tensors(clone).items():
        owner_name, _, leaf = name.rpartition(".")
        owner = clone.get_submodule(owner_name)
        if isinstance(tensor, torch.nn.Parameter):
            setattr(owner, leaf, torch.nn.Parameter(fill(name, tensor), requires_grad=False))
        elif tensor.is_floating_point():
            owner.register_buffer(leaf, fill(name, tensor))
    for child in clone.modules():
        vars(child).pop("forward", None)  # a deep copy of an intercepted module must not call its original
        config: Any = getattr(child, "config", None)
        exact = any(parameter.dtype is torch.float64 for parameter in child.parameters(recurse=False))
        if exact and hasattr(config, "_experts_implementation"):
            config._experts_implementation = "eager"  # torch's grouped product of experts has no float64
    return clone.eval()


def with_few_experts(call: Call) -> Call:
    """The call of a module that holds many experts, with the first FEW_EXPERTS of them; any other call as it is.

    What a mixture computes does not depend on how many experts it has, and all of them together can be larger than
    memory: 256 of DeepSeek-V3 are 45 GB. Experts are known by their form: three-dimensional weights of one first axis.
    """
    module = call.module
    if call.operation != "module" or module is None:
        return call
    stored = stored_tensors(module)
    leading = {tensor.shape[0] for tensor in stored.values() if tensor.ndim == 3}
    size_bytes = sum(4 * tensor.numel() for tensor in stored.values())
    if len(leading) != 1 or size_bytes <= FEW_EXPERTS_ABOVE_BYTES:
        return call
    count = leading.pop()
    few = copy.deepcopy(module)
    for name, tensor in stored.items():
        if tensor.shape[0] == count:
            owner_name, _, leaf = name.rpartition(".")
            kept = torch.nn.Parameter(tensor.detach()[:FEW_EXPERTS].clone(), requires_grad=False)
            setattr(few.get_submodule(owner_name), leaf, kept)
    for name, value in list(vars(few).items()):
        if isinstance(value, int) and not isinstance(value, bool) and value == count:
            setattr(few, name, FEW_EXPERTS)
    return replace(call, module=few)


def random_parameters(generator: torch.Generator) -> Callable[[str, torch.Tensor], torch.Tensor]:
    """Fill for `materialize`: every tensor normal; matrices scaled so that activations keep their size.

    A variance (batch normalisation keeps one) is positive by its nature, so it is drawn so.
    """

    def fill(name: str, like: torch.Tensor) -> torch.Tensor:
        if not like.is_floating_point():
            return _random_bytes(like, generator)
        scale = like.shape[-1] ** -0.5 if like.ndim > 1 and "embed" not in name else 1.0
        drawn = torch.empty(like.shape, dtype=torch.float32).normal_(generator=generator).mul_(scale)
        if like.is_floating_point() and like.element_size() == 1:  # values that float8 has, or it rounds them
            return drawn.to(like.dtype).float()
        return drawn.abs() + 0.5 if name.endswith("var") else drawn

    return fill


def _random_bytes(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Quantised weights: int8 from -127 to 127; bytes that are the bits of float8 (e4m3) of ordinary size."""
    if like.dtype is torch.int8:
        return torch.randint(-127, 128, like.shape, generator=generator, dtype=torch.int8)
    drawn = torch.empty(like.shape, dtype=torch.float32).normal_(generator=generator)
    return drawn.to(torch.float8_e4m3fn).view(torch.uint8).to(like.dtype)


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How the tensors of a call are drawn: their sizes, their scale, and the domain of each (by its place)."""

    generator: torch.Generator
    scale: float
    vocabulary: int
    shapes: Mapping[int, Sequence[int]]  # by id of the call's tensor
    domains: Mapping[int, str] = field(default_factory=dict)  # by id of the call's tensor

    def draw(self, value: Any) -> Any:
        """Random values in the shape of a call's arguments: nested containers keep their form, modules stay."""
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, Mapping):
            return {key: self.draw(item) for key, item in value.items()}
        if isinstance(value, (tuple, list)):
            return type(value)(self.draw(item) for item in value)
        return value

    def _tensor(self, like: torch.Tensor) -> torch.Tensor:
        shape = tuple(self.shapes.get(id(like), like.shape))
        domain = self.domains.get(id(like), "normal")
        if like.dtype is torch.bool:
            return torch.ones(shape, dtype=torch.bool)
        if domain == "distinct":
            order = torch.rand((*shape[:-1], self.vocabulary), generator=self.generator).argsort(-1)
            return order[..., : shape[-1]].to(like.dtype)
        if not like.is_floating_point() and not like.is_complex():
            return torch.randint(0, self.vocabulary, shape, generator=self.generator, dtype=like.dtype)
        if like.is_complex():
            angles = torch.randn(shape, generator=self.generator)
            return torch.polar(torch.ones_like(angles), angles)
        if domain == "unit":
            return torch.rand(shape, generator=self.generator)
        drawn = torch.randn(shape, generator=self.generator)
        if domain == "normal":
            return drawn * self.scale
        positive = torch.nn.functional.softplus(drawn)
        return positive if domain == "positive" else -positive


def bound_weights(
    module: torch.nn.Module | None, sources: Mapping[str, WeightSource]
) -> dict[str, torch.Tensor]:
    """The kernel's weights, by role, in the layout it wants."""
    weights = {}
    for role, source in sources.items():
        assert module is not None, f"weight `{role}` bound to a call without module"
        weights[role] = laid_out(tensor_of(module, source.name), source.transform)
    return weights


def tensor_of(module: torch.nn.Module, name: str) -> torch.Tensor:
    """The parameter or buffer of that (dotted) name."""
    owner_name, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(owner_name), leaf).detach()


def laid_out(tensor: torch.Tensor, transform: str) -> torch.Tensor:
    """A view of `tensor` in the layout that a `WeightSource.transform` asks for."""
    return tensor if transform == "none" else tensor.permute(permutation(transform, tensor.ndim))


def index_limit(call: Call) -> int:
    """Exclusive upper bound of the call's integer arguments: rows of the table, or slots of the cache."""
    if call.operation == "attention_decode":
        return int(call.args[3].shape[2])
    if call.operation != "module" or call.module is None:
        return 2
    parameters = list(call.module.parameters())
    kept = getattr(call.module, "offset", 0)  # rows that a table of positions keeps for itself
    return int(parameters[0].shape[0]) - int(kept if isinstance(kept, int) else 0) if parameters else 2


def probe(call: Call, recipe: Recipe, reference: Callable[..., Any], binding: Binding) -> dict[str, float]:
    """Largest relative difference between the layer and the recipe, for each input scale.

    Shapes come from the call, except that at most PROBE_TOKENS tokens are drawn. Keys are "scale 1", "scale 1000" ...
    """
    generator = torch.Generator().manual_seed(20260817)
    call = with_few_experts(call)
    module = call.module
    if call.operation == "module":
        assert module is not None
        module = materialize(module, random_parameters(generator))
    function = module if call.operation == "module" and module is not None else call.function
    weights = bound_weights(module, binding.weights)
    differences = {}
    for scale in probe_scales(call, recipe):
        drawing = draw_for(call, recipe, generator, scale=scale, tokens=PROBE_TOKENS, at_most=True)
        args, kwargs = drawing.draw((call.args, dict(call.kwargs)))
        with torch.no_grad():
            own_args, own_kwargs = cloned(args), cloned(kwargs)
            our_args, our_kwargs = cloned(args), cloned(kwargs)
            own = list(flatten_tensors(function(*own_args, **own_kwargs)))
            ours = list(
                flatten_tensors(
                    recipe.forward(reference, weights, binding.attributes, *our_args, **our_kwargs)
                )
            )
            # A function may leave its result in an argument (the state of a convolution): that is an output too.
            own += changed(args, kwargs, own_args, own_kwargs)
            ours += changed(args, kwargs, own_args, own_kwargs, our_args, our_kwargs)
        differences[f"scale {scale:g}"] = relative_difference(recipe.comparable(ours), recipe.comparable(own))
    return differences


def probe_scales(call: Call, recipe: Recipe) -> tuple[float, ...]:
    if recipe.scales is not None:
        return recipe.scales
    return ATTENTION_SCALES if "attention" in call.operation or call.operation == "softmax" else SCALES


def draw_for(
    call: Call,
    recipe: Recipe,
    generator: torch.Generator,
    *,
    scale: float,
    tokens: int | None,
    at_most: bool = False,
) -> Drawing:
    """How to draw a call's arguments with `tokens` (or at most so many) along the axes that count them."""
    tensors = call.tensors
    shapes = {}
    if tokens is not None and not call.operation.endswith("decode"):
        for tensor, entry in zip(tensors, recipe.token_axes(call), strict=False):
            shape = list(tensor.shape)
            for axis in token_axes(tensor, entry):
                shape[axis] = min(shape[axis], tokens) if at_most else tokens
            shapes[id(tensor)] = shape
    if call.operation == "attention" and shapes:
        shapes |= _resized_biases(call, tensors, shapes)
    domains = {id(tensors[place]): domain for place, domain in recipe.domains.items() if place < len(tensors)}
    return Drawing(
        generator=generator, scale=scale, vocabulary=index_limit(call), shapes=shapes, domains=domains
    )


def token_axes(tensor: torch.Tensor, entry: int | tuple[int, ...] | None) -> list[int]:
    """The axes of a tensor argument that count tokens, by its entry in `Recipe.sequence_axes`."""
    if entry is None:
        return []
    axes = entry if isinstance(entry, tuple) else (entry,)
    inside = [axis for axis in axes if -tensor.ndim <= axis < tensor.ndim]
    return [axis for axis in inside if isinstance(entry, int) or tensor.shape[axis] != 1]


def _resized_biases(
    call: Call, tensors: Sequence[torch.Tensor], shapes: Mapping[int, Sequence[int]]
) -> dict[int, list[int]]:
    """The shapes of additive biases [.., S or 1, C or 1] when queries and keys have other lengths than the call's."""
    query, key = tensors[0], tensors[1]
    queries, keys = shapes[id(query)][2], shapes[id(key)][2]
    found = {}
    for tensor in tensors[3:]:
        if tensor.ndim == 4:
            shape = list(tensor.shape)
            shape[2] = queries if shape[2] == query.shape[2] else shape[2]
            shape[3] = keys if shape[3] == key.shape[2] else shape[3]
            found[id(tensor)] = shape
    return found


def cloned(value: Any) -> Any:
    """Nested arguments whose tensors can be written without harm."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: cloned(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(cloned(item) for item in value)
    return value


def changed(
    args: Any, kwargs: Any, own_args: Any, own_kwargs: Any, shown_args: Any = None, shown_kwargs: Any = None
) -> list[torch.Tensor]:
    """The arguments that the layer wrote to, as it left them; or as somebody else (`shown_*`) left the same ones."""
    before = flatten_tensors((args, kwargs))
    after = list(flatten_tensors((own_args, own_kwargs)))
    shown = after if shown_args is None else list(flatten_tensors((shown_args, shown_kwargs)))
    return [
        left for first, last, left in zip(before, after, shown, strict=True) if not torch.equal(first, last)
    ]


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
