"""What composite modules compute themselves: residual additions, products of activations, softmax, as torch is called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from neuron_port.walk.calls import flatten_tensors

if TYPE_CHECKING:
    from neuron_port.walk.cutpoints import Interception

_ADDITIONS = (torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__)
_PRODUCTS = (
    torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.__rmatmul__, torch.bmm,
    torch.Tensor.bmm, torch.baddbmm, torch.Tensor.baddbmm, torch.einsum,
)  # fmt: skip
_SOFTMAX = (torch.softmax, torch.Tensor.softmax, torch.nn.functional.softmax)


class TorchCalls(TorchFunctionMode):
    """Sees torch called in a module that has children: residual additions, products of activations, softmax."""

    def __init__(self, state: Interception) -> None:
        super().__init__()
        self.state = state
        self.composite = {name for name, module in state.model.named_modules() if any(module.children())}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.__getitem__:
            args = (args[0], sliced(args[1]))
        state = self.state
        if state.place not in self.composite:
            return func(*args, **kwargs)
        for tensor in flatten_tensors((args, kwargs)):
            state.touched.add(id(tensor if isinstance(tensor, torch.nn.Parameter) else tensor._base))
        if state.inside_function:
            return func(*args, **kwargs)
        operation = _torch_operation(func, args, kwargs)
        if operation is None:
            return func(*args, **kwargs)
        attributes = {} if operation == "add" else {"function": getattr(func, "__name__", str(func))}
        attributes |= {key: value for key, value in kwargs.items() if isinstance(value, (int, float, str))}
        attributes |= {
            f"argument {place}": value
            for place, value in enumerate(args)
            if isinstance(value, (int, float, str)) and operation != "add"
        }
        return state.call_function(state.numbered(operation), operation, func, args, kwargs, attributes)


def sliced(index: Any) -> Any:
    """An index with slices in place of lists of neighbours, `x[:, [-2]]`.

    torch makes a tensor of a list, on the device of what is indexed: on the meta device its values would be lost.
    """
    if isinstance(index, tuple):
        return tuple(map(sliced, index))
    if not isinstance(index, list) or not index or not all(type(item) is int for item in index):
        return index
    first, last = index[0], index[-1]
    if index != list(range(first, last + 1)) or first < 0 <= last:
        return index
    return slice(first, None if last == -1 else last + 1)


def _torch_operation(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    if func in _ADDITIONS and is_residual(args, kwargs):
        return "add"
    tensors = list(flatten_tensors((args, dict(kwargs))))
    if not tensors or not all(tensor.is_floating_point() for tensor in tensors):
        return None
    if func in _PRODUCTS and len(tensors) >= 2:
        return "matmul"
    return "softmax" if func in _SOFTMAX and len(tensors) == 1 else None


def is_residual(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether these are the operands of x [.., H] + y [.., H], both floating point and of equal shape."""
    if kwargs or len(args) != 2 or not all(torch.is_tensor(item) for item in args):
        return False
    x, y = args
    return x.ndim >= 2 and x.shape == y.shape and x.dtype == y.dtype and x.is_floating_point()
