"""What ranks say to each other inside a graph: the sum over ranks, and the ranks' parts side by side.

Both are operators, so that they survive torch.export and become XLA's collectives (lower/ops/collectives.py). In this
process they run inside `exchanging` only: a rank by itself has nobody to ask, and a sum of one part would be wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

Exchange = Callable[[torch.Tensor], list[torch.Tensor]]  # my tensor -> those of all ranks, in their order
_EXCHANGE: ContextVar[Exchange] = ContextVar("neuron_port_exchange")


class Joining:
    """A forward hook that joins what the ranks have of a module's output: no part of what the module computes."""


def without_joining(module: torch.nn.Module) -> torch.nn.Module:
    """The module, its own `Joining` hooks removed; those of the modules inside of it are part of it."""
    for number, hook in list(module._forward_hooks.items()):
        if isinstance(hook, Joining):
            del module._forward_hooks[number]
    return module


@contextmanager
def exchanging(exchange: Exchange) -> Iterator[None]:
    """Let collectives in this thread ask the other ranks through `exchange`."""
    token = _EXCHANGE.set(exchange)
    try:
        yield
    finally:
        _EXCHANGE.reset(token)


def _parts(x: torch.Tensor, ranks: int, layer: str) -> list[torch.Tensor]:
    exchange = _EXCHANGE.get(None)
    if exchange is None:
        raise RuntimeError(f"`{layer}` joins the parts of {ranks} ranks, and runs on one alone")
    parts = exchange(x)
    assert len(parts) == ranks, f"{layer}: {len(parts)} parts of {ranks} ranks"
    return parts


@torch.library.custom_op("neuron_port::all_reduce", mutates_args=())
def all_reduce(x: torch.Tensor, ranks: int, layer: str) -> torch.Tensor:
    """The sum of all ranks' `x`, on every rank; `layer` is whose output they are parts of."""
    return torch.stack(_parts(x, ranks, layer)).sum(0, dtype=torch.float32).to(x.dtype)


@all_reduce.register_fake
def _(x: torch.Tensor, ranks: int, layer: str) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("neuron_port::all_gather", mutates_args=())
def all_gather(x: torch.Tensor, axis: int, ranks: int, layer: str) -> torch.Tensor:
    """All ranks' `x` side by side along `axis`, on every rank."""
    return torch.cat(_parts(x, ranks, layer), axis)


@all_gather.register_fake
def _(x: torch.Tensor, axis: int, ranks: int, layer: str) -> torch.Tensor:
    shape = list(x.shape)
    shape[axis] *= ranks
    return x.new_empty(shape)
