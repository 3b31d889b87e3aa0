"""The layers of a model as tasks: those that no recipe serves, or a sentence that says why one cannot be drafted.

Layers that need the same kernel (prefill and decode of one module, all norms of one width) become one task.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from neuron_port.drafting.subjects.calling import calling_of, token_axes
from neuron_port.drafting.subjects.layer_build import MOST_TOKENS, LayerBuild, LayerTask, tokens_of
from neuron_port.drafting.subjects.layer_names import task_name
from neuron_port.drafting.subjects.reference_code import NotDraftableError
from neuron_port.errors import UsageError
from neuron_port.match.probe import materialize, random_parameters
from neuron_port.recipe import Size
from neuron_port.types import Checkpoint, Layer, MatchPlan, digest
from neuron_port.walk.calls import Call
from neuron_port.walk.walker import Walk

PLAIN_VALUES = (bool, int, float, str, type(None))


@dataclass(frozen=True, kw_only=True)
class DraftableLayer:
    """One family of layers that no recipe serves: the task, or the reason why there is none."""

    signatures: tuple[str, ...]
    layers: tuple[str, ...]
    task: LayerTask | None
    reason: str = ""


def draftable_layers(
    walks: Sequence[Walk],
    matches: MatchPlan,
    *,
    model: str,
    names: Collection[str] | None = None,
    taken: Collection[str] = (),
    checkpoint: Checkpoint | None = None,
    allow_licenses: Collection[str] = (),
    progress: Callable[[str, int, int], None] = lambda text, done, total: None,
) -> list[DraftableLayer]:
    """The layers that the matcher left to the compiler, one entry for each kernel that they need.

    Args:
        walks: prefill and decode of one model.
        model: its type, for names: "gpt2".
        names: layers to look at instead, whatever was decided for them; containers such as an MLP may be named.
        taken: names of recipes that exist.
    Raises:
        UsageError: a name in `names` is no layer of the model.
    """
    seen = _occurrences(walks)
    wanted = _wanted(seen, matches, names)
    used = set(taken)
    families: dict[str, DraftableLayer] = {}
    for number, (signature, layers) in enumerate(wanted.items()):
        walk_number, layer = next((w, found) for w, found in seen[layers[0]] if found.signature == signature)
        progress(layer.name, number, len(wanted))
        family = _family(walks, walk_number, layer, seen, model, used, checkpoint, allow_licenses)
        earlier = families.get(family[0])
        if earlier is not None:
            families[family[0]] = _merged(earlier, signature, layers)
            continue
        made = family[1]
        if made is not None:
            used.add(made.task.name)
            made = replace(made, layers=tuple(layers), signatures=(signature,))
        families[family[0]] = DraftableLayer(
            signatures=(signature,), layers=tuple(layers), task=made, reason=family[2]
        )
    return list(families.values())


Occurrences = Mapping[str, list[tuple[int, Layer]]]


def _occurrences(walks: Sequence[Walk]) -> dict[str, list[tuple[int, Layer]]]:
    """By layer name: in which walks it runs, and as what."""
    seen: dict[str, list[tuple[int, Layer]]] = {}
    for number, walk in enumerate(walks):
        for layer in walk.graph.layers:
            seen.setdefault(layer.name, []).append((number, layer))
    return seen


def _wanted(seen: Occurrences, matches: MatchPlan, names: Collection[str] | None) -> dict[str, list[str]]:
    """Signature -> names of its layers."""
    if names is None:
        return {
            match.signature: list(match.layers) for match in matches.matches if match.decision == "compiler"
        }
    wanted: dict[str, list[str]] = {}
    for name in names:
        if name not in seen:
            raise UsageError(f"The model has no layer: `{name}`", hint=_near(name, seen))
        for _, layer in seen[name]:
            same = [
                other
                for other, found in seen.items()
                if any(x.signature == layer.signature for _, x in found)
            ]
            wanted.setdefault(layer.signature, same)
    return wanted


def _near(name: str, seen: Occurrences) -> str:
    close = difflib.get_close_matches(name, seen, n=1)
    return f"Did you mean `{close[0]}`?" if close else f"Such as `{next(iter(seen))}`."


def _family(
    walks: Sequence[Walk],
    walk_number: int,
    layer: Layer,
    seen: Occurrences,
    model: str,
    used: set[str],
    checkpoint: Checkpoint | None,
    allow_licenses: Collection[str],
) -> tuple[str, LayerTask | None, str]:
    """(key that layers with the same kernel share, task, reason)."""
    walk = walks[walk_number]
    alike = [
        found
        for _, found in seen[layer.name]
        if found.operation == layer.operation and len(found.inputs) == len(layer.inputs)
    ]
    other = next((found for found in alike if found.inputs != layer.inputs), None)
    largest = max(alike, key=lambda item: sum(spec.size for spec in item.inputs))
    try:
        made = layer_task(
            layer,
            walk.calls[layer.signature],
            model=model,
            other=other,
            tokens=walk.graph.sequence_length,
            largest=largest,
            taken=used,
            checkpoint=checkpoint,
            allow_licenses=allow_licenses,
        )
    except NotDraftableError as error:
        shape_free = digest(
            layer.operation, layer.module_class, dict(layer.parameters), dict(layer.attributes)
        )
        return f"{shape_free} {error.message.split(':')[0]}", None, error.message
    return made.content, made, ""


def _merged(earlier: DraftableLayer, signature: str, layers: Sequence[str]) -> DraftableLayer:
    """A family with one more signature: decode beside prefill, or another norm of the same width."""
    all_layers = tuple(dict.fromkeys((*earlier.layers, *layers)))
    signatures = (*earlier.signatures, signature)
    task = None if earlier.task is None else replace(earlier.task, layers=all_layers, signatures=signatures)
    return replace(earlier, signatures=signatures, layers=all_layers, task=task)


def layer_task(
    layer: Layer,
    call: Call,
    *,
    model: str = "model",
    name: str | None = None,
    other: Layer | None = None,
    largest: Layer | None = None,
    tokens: int = 1,
    domain: Size | None = None,
    taken: Collection[str] = (),
    checkpoint: Checkpoint | None = None,
    allow_licenses: Collection[str] = (),
) -> LayerTask:
    """The task of one layer.

    Args:
        call: as the walker recorded it; parameters may be on the meta device.
        model: the model's type, for the name; `name` overrides it.
        other: the same layer in a step with another number of tokens: it shows which axes count them.
        largest: the same layer in the step with the most tokens: the kernel must reach that many.
        tokens: of this step, where there is no `other`.
        domain: numbers of tokens that the kernel must take; by default 1 to as many as the model has, or MOST_TOKENS.
        taken: names that exist.
        allow_licenses: licences on which the user insists, for code that came with the checkpoint.
    Raises:
        NotDraftableError: why no kernel can be drafted for it.
    """
    generator = torch.Generator().manual_seed(20260901)
    module = call.module
    if call.operation == "module":
        assert module is not None
        module = materialize(module, random_parameters(generator))
    axes = token_axes(layer.inputs, other.inputs if other else None, tokens)
    if call.operation == "attention_decode":
        axes = [None, 3, 2, None, *[None] * len(axes)][: len(axes)]
    for attribute, value in call.attributes.items():
        items = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(item, PLAIN_VALUES) for item in items):
            raise NotDraftableError(f"its `{attribute}` is a `{type(value).__name__}`, not a number")
    calling = calling_of(call, module, axes)
    domain = domain or Size(least=1, most=max(MOST_TOKENS, tokens_of(calling, largest or layer)))
    return LayerBuild(layer, calling, domain, checkpoint, allow_licenses, generator).task(
        name or task_name(layer, model, taken)
    )


__all__ = ["DraftableLayer", "LayerTask", "NotDraftableError", "draftable_layers", "layer_task"]
