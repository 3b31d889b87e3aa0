"""Runs the part of a step that depends on nothing but constants for real, while the rest is only traced.

A model that takes pictures of any size computes with their grids: how many patches, which windows, where each stands.
Of a graph the grid is a constant, so all that follows from it is known; but a model that is traced (or walked on the
meta device) has no values to call `.tolist()` on. Inside `KnownValues` tensors that are made from numbers on the CPU,
and what is computed from such tensors alone, keep their values; where they meet the model's own tensors they become
constants of the graph.

What is not known stays so, with one exception: how many elements of a mask are true is told by its size (`counts`),
so that rows can be taken and put by masks without a shape that depends on data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map

from neuron_port.errors import CheckpointError
from neuron_port.walk.calls import flatten_tensors

_CPU = torch.device("cpu")


class KnownValues(TorchFunctionMode):
    """See above. It is meant for models without data: where there is data everything is known anyhow.

    Args:
        counts: elements of a mask -> how many of them are true.
        lists: elements of a vector of counts -> its values (pictures of each row of the batch).
    """

    def __init__(
        self, counts: Mapping[int, int] | None = None, lists: Mapping[int, list[int]] | None = None
    ) -> None:
        super().__init__()
        self.counts = counts or {}
        self.lists = lists or {}
        self.known: dict[int, torch.Tensor] = {}  # by id, and kept: an id must not be given out again
        self.constants: dict[int, torch.Tensor] = {}  # the same tensors as constants of the trace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = list(flatten_tensors((args, kwargs)))
        unknown = [tensor for tensor in tensors if id(tensor) not in self.known]
        if not unknown and (tensors or _on_cpu(kwargs)):
            return self._compute(func, args, kwargs)
        if _changes_first(func) and id(args[0]) in self.known:
            raise CheckpointError(
                f"`{func.__name__}` writes what is data into a tensor that was made from constants",
                hint="The model's code for pictures cannot be traced yet.",
            )
        if unknown and len(unknown) < len(tensors):
            devices = [tensor.device for tensor in unknown]
            device = next((device for device in devices if device.type == "meta"), devices[0])
            args = (args[0], *(self._number(item) for item in args[1:]))
            args, kwargs = tree_map(lambda item: self._traced(item, device), (args, kwargs))
        if func is torch.Tensor.tolist and unknown and unknown[0].numel() in self.lists:
            return list(self.lists[unknown[0].numel()])
        if func is torch.Tensor.__getitem__ and (mask := _mask_of(args[1])) is not None:
            return self._rows(args[0], mask)
        if func is torch.Tensor.__setitem__ and (mask := _mask_of(args[1])) is not None:
            return _put_rows(args[0], mask, args[2])
        return func(*args, **kwargs)

    def _compute(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The real values; a result stays on the CPU, wherever the model wants it."""
        args, kwargs = tree_map(_brought_home, (args, kwargs))
        with torch._C.DisableTorchFunction(), _disable_current_modes():
            result = func(*args, **kwargs)
            if func is torch.Tensor.__iter__:
                result = list(result)
        if _changes_first(func):
            self.constants.clear()
        for tensor in flatten_tensors(result):
            self.known[id(tensor)] = tensor
        return iter(result) if func is torch.Tensor.__iter__ else result

    def _number(self, item: Any) -> Any:
        """A known whole number, or a list of such, as Python has it: sizes by which a tensor is viewed or split."""
        if isinstance(item, (list, tuple)) and item:
            numbers = [self._number(one) for one in item]
            return numbers if all(isinstance(one, int) for one in numbers) else item
        if id(item) in self.known and item.ndim == 0 and not item.is_floating_point():
            return self._compute(torch.Tensor.item, (item,), {})
        return item

    def _traced(self, item: Any, device: torch.device) -> Any:
        """What is known as a constant of the trace, on the device of the tensors that it meets."""
        if id(item) not in self.known or device.type == "cpu":
            return item
        if id(item) not in self.constants:
            self.constants[id(item)] = item.to(device)
        return self.constants[id(item)]

    def _rows(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """x[mask]: the k-th true element stands behind all places up to which at most k elements are true."""
        if mask.numel() not in self.counts:
            raise CheckpointError(
                f"A mask of shape {tuple(mask.shape)} chooses rows, and how many is not known",
                hint="The model's code for pictures cannot be traced yet.",
            )
        count = self.counts[mask.numel()]
        rows = x.flatten(0, mask.ndim - 1)
        if count == mask.numel():
            return rows.clone()
        seen = mask.flatten().to(torch.int32).cumsum(0)
        numbers = torch.arange(count, device=mask.device)
        return rows[(seen[None, :] <= numbers[:, None]).sum(1)]


def _put_rows(x: torch.Tensor, mask: torch.Tensor, value: Any) -> None:
    """x[mask] = value, without a shape that depends on the mask."""
    wide = mask.reshape(*mask.shape, *[1] * (x.ndim - mask.ndim))
    if torch.is_tensor(value) and value.ndim:
        x.copy_(x.masked_scatter(wide, value))
    else:
        x.masked_fill_(wide, value)


def _mask_of(index: Any) -> torch.Tensor | None:
    """The mask of `x[mask]` and `x[mask, :]`; None of any other index."""
    first, *rest = index if isinstance(index, tuple) else (index,)
    if any(item != slice(None) for item in rest if not torch.is_tensor(item)) or any(
        map(torch.is_tensor, rest)
    ):
        return None
    return first if torch.is_tensor(first) and first.dtype is torch.bool and first.ndim else None


def _on_cpu(kwargs: Mapping[str, Any]) -> bool:
    """Whether a function of numbers makes its tensor on the CPU."""
    device = kwargs.get("device")
    return device is None or torch.device(device) == _CPU


def _brought_home(item: Any) -> Any:
    return _CPU if isinstance(item, torch.device) or (isinstance(item, str) and item == "meta") else item


def _changes_first(func: Any) -> bool:
    """Whether a function writes its first argument: `add_`, `__iadd__`, `__setitem__`."""
    name = getattr(func, "__name__", "")
    inplace = name.endswith("_") and not name.endswith("__")
    return (
        inplace
        or name == "__setitem__"
        or (name.startswith("__i") and name.removeprefix("__i") in _OPERATORS)
    )


_OPERATORS: Iterable[str] = frozenset(
    f"{name}__"
    for name in (
        "add",
        "sub",
        "mul",
        "truediv",
        "floordiv",
        "mod",
        "pow",
        "and",
        "or",
        "xor",
        "lshift",
        "rshift",
    )
)

__all__ = ["KnownValues"]
