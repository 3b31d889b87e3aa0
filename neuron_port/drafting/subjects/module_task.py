"""An nn.Module class of the user's own as a task, through the same door as a model's layers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from neuron_port.drafting.sources.licences import find_license
from neuron_port.drafting.subjects.function_inputs import InputSpec, nearest
from neuron_port.drafting.subjects.layer_names import snake_case
from neuron_port.drafting.subjects.layers import LayerTask, NotDraftableError, layer_task
from neuron_port.drafting.subjects.user_file import failed_at
from neuron_port.errors import UsageError
from neuron_port.match.probe import random_parameters
from neuron_port.recipe import Size
from neuron_port.task import Source
from neuron_port.walk.calls import Call, plain_attributes
from neuron_port.walk.walker import describe

MODULE_TOKENS = (1, 10**9)  # the least and the most: which axes differ follow the free size


def module_task(
    kind: type[torch.nn.Module],
    path: Path,
    specs: Sequence[InputSpec],
    sizes: Mapping[str, Size],
    settings: Mapping[str, Any],
    sources: Sequence[Source],
) -> LayerTask:
    """A class as a layer: its parameters become tensors of the kernel, its forward's inputs are those given by -i."""
    place = f"`{path}:{kind.__name__}`"
    module = _made(kind, path, settings, place)
    free = _free_size(kind, specs, sizes, place)
    _check_order(kind, specs, place)
    wishes = [1] if free is None else [nearest(sizes[free], wish) for wish in MODULE_TOKENS]
    calls = [_call_with(module, specs, sizes, free, tokens) for tokens in wishes]
    layers = [describe(call, None, 0) for call in calls]
    try:
        made = layer_task(
            layers[0],
            calls[0],
            name=snake_case(kind.__name__),
            other=None if free is None else layers[1],
            tokens=wishes[0],
            domain=None if free is None else sizes[free],
        )
    except NotDraftableError as error:
        raise UsageError(f"{place} {error.message}", hint="A kernel takes and returns tensors.") from error
    text = path.read_text(encoding="utf-8")
    found = find_license(text, path)
    own = Source(language="pytorch", text=inspect.getsource(kind), origin=path.name, license=found.identifier)
    return replace(made, task=replace(made.task, sources=(own, *sources)))


def _made(
    kind: type[torch.nn.Module], path: Path, settings: Mapping[str, Any], place: str
) -> torch.nn.Module:
    """The module, with random parameters: fresh ones of zero or one would hide that they are left out."""
    try:
        module = kind(**settings).eval().requires_grad_(False)
    except Exception as error:  # the class is the user's
        raise UsageError(
            f"{failed_at(error, path)} (making {place})", hint="Its constructor's arguments: -s NAME=VALUE."
        ) from error
    fill = random_parameters(torch.Generator().manual_seed(3))
    for name, parameter in module.named_parameters():
        parameter.data = fill(name, parameter)
    return module


def _free_size(
    kind: type[torch.nn.Module], specs: Sequence[InputSpec], sizes: Mapping[str, Size], place: str
) -> str | None:
    """The size that varies, if one does.

    Raises:
        UsageError: there are no inputs, or several sizes vary.
    """
    if not specs:
        parameters = list(inspect.signature(kind.forward).parameters)[1:]
        raise UsageError(
            f"{place}: nothing says what `{parameters[0] if parameters else 'forward'}` is",
            hint=f"-i {parameters[0] if parameters else 'x'}=TxH --size T=1..300 --size H=512",
        )
    free = [name for name, size in sizes.items() if size.least != size.most]
    if len(free) > 1:
        raise UsageError(
            f"{place}: the sizes {' and '.join(free)} are free, a module may have one", hint="Fix the others."
        )
    return free[0] if free else None


def _call_with(
    module: torch.nn.Module,
    specs: Sequence[InputSpec],
    sizes: Mapping[str, Size],
    free: str | None,
    tokens: int,
) -> Call:
    """A call of the module with `tokens` for the free size, on the meta device."""
    values = {name: tokens if name == free else size.least for name, size in sizes.items()}
    return Call(
        name=type(module).__name__,
        operation="module",
        module=module,
        owner=type(module).__name__,
        function=module.forward,
        args=tuple(_meta(spec, values) for spec in specs),
        kwargs={},
        attributes=plain_attributes(module),
    )


def _meta(spec: InputSpec, sizes: Mapping[str, int]) -> torch.Tensor:
    shape = tuple(sizes[size] if isinstance(size, str) else size for size in spec.shape)
    return torch.empty(shape, dtype=torch.int64 if spec.limit else torch.float32, device="meta")


def _check_order(kind: type[torch.nn.Module], specs: Sequence[InputSpec], place: str) -> None:
    names = list(inspect.signature(kind.forward).parameters)[1:]
    for spec, name in zip(specs, names, strict=False):
        if spec.name != name:
            raise UsageError(
                f"{place}: forward takes `{name}` where -i names `{spec.name}`",
                hint=f"Give the inputs in the order of forward: {', '.join(names)}.",
            )
