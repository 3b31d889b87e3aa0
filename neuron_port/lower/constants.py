"""Exports a model that computes shapes from data: what follows from constants alone is computed during the export.

A vision-language model splits an image's patches by its grid of rows and columns. With the grid given as a tensor that
is no input, everything that is derived from it - lengths, positions, masks over windows - is known; torch.export would
trace it all the same and stop where it becomes a shape.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.overrides import TorchFunctionMode

_FACTORIES = frozenset(
    {torch.arange, torch.tensor, torch.full, torch.zeros, torch.ones, torch.linspace, torch.eye}
)


@contextlib.contextmanager
def known_constants() -> Iterator[None]:
    """Within the block, operations on tensors that are no inputs, parameters or buffers run instead of being traced.

    New tensors of integers made from numbers alone count as known; those of floating point do not.
    """
    with _Known():
        yield


class _Known(TorchFunctionMode):
    """Runs a call for real where every tensor that it reads is real."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        tensors = list(_tensors([*args, *options.values()]))
        known = bool(tensors) and all(type(item) in (torch.Tensor, torch.nn.Buffer) for item in tensors)
        if not (known or (not tensors and func in _FACTORIES)):
            return func(*args, **options)
        with torch._subclasses.fake_tensor.unset_fake_temporarily(), disable_proxy_modes_tracing():
            result = func(*args, **options)
        if not tensors and isinstance(result, torch.Tensor) and result.dtype.is_floating_point:
            return func(*args, **options)
        return result


def _tensors(items: Any) -> Iterator[torch.Tensor]:
    for item in items:
        if isinstance(item, (torch.Tensor, FakeTensor)):
            yield item
        elif isinstance(item, (list, tuple)):
            yield from _tensors(item)
