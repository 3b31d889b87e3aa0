"""Every recipe as a torch custom op, `torch.ops.neuron_port.<name>`: it runs anywhere and survives torch.export.

On the CPU an op runs its recipe's reference, or whatever `use_backend` says (the simulator, for the proof).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from neuron_port.errors import RecipeError
from neuron_port.registry import RegisteredRecipe, Registry

Operator = Callable[..., Any]
_BACKEND: ContextVar[Mapping[str, Operator]] = ContextVar("neuron_port_backend")
_LIBRARY = torch.library.Library("neuron_port", "FRAGMENT")
_REGISTERED: dict[str, RegisteredRecipe] = {}


def register(registry: Registry) -> None:
    """Define the op of every recipe; a second call with the same recipes changes nothing.

    Raises:
        RecipeError: a recipe of this name but another schema was defined before (torch cannot redefine it).
    """
    for name, found in registry.items():
        earlier = _REGISTERED.get(name)
        if earlier is None:
            _define(found)
        elif earlier.recipe.schema != found.recipe.schema:
            raise RecipeError(
                f"Recipe `{name}` changed its schema from {earlier.recipe.schema} to {found.recipe.schema}",
                hint="Start a new process.",
            )
        _REGISTERED[name] = found


def _define(found: RegisteredRecipe) -> None:
    name = found.name
    _LIBRARY.define(name + found.recipe.schema)

    def run(*args: Any, **kwargs: Any) -> Any:
        operator = _BACKEND.get({}).get(name) or _REGISTERED[name].reference
        return _contiguous(operator(*args, **kwargs))

    def shapes_only(*args: Any, **kwargs: Any) -> Any:
        return _contiguous(_REGISTERED[name].reference(*args, **kwargs))

    _LIBRARY.impl(name, run, "CPU")
    torch.library.register_fake(f"neuron_port::{name}", shapes_only, lib=_LIBRARY)


def _contiguous(result: Any) -> Any:
    if isinstance(result, tuple):
        return tuple(item.contiguous() for item in result)
    return result.contiguous()


def operator(name: str) -> Operator:
    """The op as `Recipe.forward` calls it: inputs made contiguous, as kernels expect them."""
    packet = getattr(torch.ops.neuron_port, name)

    def call(*args: Any, **attributes: Any) -> Any:
        return packet(*(item.contiguous() if torch.is_tensor(item) else item for item in args), **attributes)

    return call


@contextmanager
def use_backend(operators: Mapping[str, Operator]) -> Iterator[None]:
    """Run the ops named in `operators` through them instead of their references."""
    token = _BACKEND.set(operators)
    try:
        yield
    finally:
        _BACKEND.reset(token)
