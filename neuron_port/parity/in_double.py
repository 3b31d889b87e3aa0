"""Runs a layer's own forward in float64 throughout, though its code says `.float()`.

Models widen to float32 inside (norms, softmax, scans), which narrows a float64 input: the truth would then carry the
float32 errors of one order of summation, and a kernel that sums in another would be measured against those. Here
what says float32 stays float64 where a float64 tensor takes part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class InDouble(TorchFunctionMode):
    """While it is entered, no operation on a float64 tensor narrows to float32."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if not any(_is_double(value) for value in (*args, *options.values())):
            return func(*args, **options)
        if func is torch.Tensor.float:
            return args[0]
        widened = {name: _widened(value) for name, value in options.items()}
        return func(*(_widened(value) for value in args), **widened)


def _is_double(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype is torch.float64


def _widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
