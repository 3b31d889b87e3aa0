"""How much work a case is, counted rather than timed, so that the same seed draws the same cases on every machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from neuron_port.parity.draw import Draw
from neuron_port.task import KernelTask

PRODUCTS = ("mm", "bmm", "addmm", "baddbmm")  # aten's matrix products
MACS_PER_ELEMENT = 16  # multiply-adds that take as long as one element of any other operation


class _Count(TorchDispatchMode):
    """Adds up the elements that every torch operation makes, and the multiply-adds of its products."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        made = result if isinstance(result, (tuple, list)) else (result,)
        for tensor in made:
            if isinstance(tensor, torch.Tensor):
                terms = 0
                if function.overloadpacket.__name__ in PRODUCTS:
                    terms = next(
                        argument for argument in reversed(args) if isinstance(argument, torch.Tensor)
                    ).shape[-2]
                self.elements += tensor.numel() * (1 + terms // MACS_PER_ELEMENT)
        return result


class ShapesOnly(Draw):
    """Draws nothing: arrays of the right shape that hold one value and take no memory."""

    def __init__(self) -> None:
        super().__init__(0)

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.broadcast_to(np.float32(1), shape)

    weight = normal

    def integers(self, low: int, high: int, shape: tuple[int, ...]) -> np.ndarray:
        return np.broadcast_to(np.int32(low), shape)


def input_elements(task: KernelTask, sizes: Mapping[str, int]) -> int:
    """Elements of all tensor arguments together."""
    return sum(math.prod(array.shape) for array in _shaped(task, sizes) if array is not None)


def _shaped(task: KernelTask, sizes: Mapping[str, int]) -> tuple[np.ndarray | None, ...]:
    with np.errstate(all="ignore"):
        return task.inputs(sizes, ShapesOnly())


def reference_work(task: KernelTask, sizes: Mapping[str, int], attributes: Mapping[str, Any]) -> int:
    """Elements that the reference makes on its way, products weighted; on torch's meta device where that goes.

    A reference that looks at values cannot run there; it runs once on real ones.
    """
    drawn = _shaped(task, sizes)
    try:
        with _Count() as count, torch.no_grad():
            task.reference(*(_without_values(array) for array in drawn), **attributes)
    except Exception:  # any that a reference may raise on meta tensors: what it does on real ones decides
        with _Count() as count, torch.no_grad():
            real = task.inputs(sizes, Draw(0))
            task.reference(
                *(None if array is None else torch.from_numpy(array) for array in real), **attributes
            )
    return count.elements


def _without_values(array: np.ndarray | None) -> torch.Tensor | None:
    if array is None:
        return None
    dtype = torch.float32 if array.dtype.kind == "f" else torch.int32
    return torch.empty(array.shape, dtype=dtype, device="meta")
