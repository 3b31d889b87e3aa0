"""Reductions of `nki.language` over the last free dimensions of a tile, each into a new tile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from neuron_port.simulator.dtypes import float32
from neuron_port.simulator.instructions.operators import (
    Operator,
    add,
    logical_and,
    maximum,
    minimum,
    multiply,
    subtract,
)
from neuron_port.simulator.instructions.vector_engine import tensor_reduce, tensor_scalar, tensor_tensor
from neuron_port.simulator.nki.allocation import ndarray
from neuron_port.simulator.tensor import NkiTensor


def _reduce(op: Operator) -> Callable[..., NkiTensor]:
    def apply(
        x: NkiTensor, axis: int | Sequence[int], dtype: Any = None, keepdims: bool = False
    ) -> NkiTensor:
        """x reduced over its last free dimensions `axis`."""
        axes = sorted(a % x.ndim for a in ((axis,) if isinstance(axis, int) else axis))
        kept = list(x.shape[: axes[0]])
        shape = kept + [1] * len(axes) if keepdims or len(kept) < 2 else kept
        result = ndarray(shape if keepdims or len(kept) >= 2 else (*kept, 1), dtype or x.dtype)
        tensor_reduce(result, op, x, tuple(axes))
        return result

    return apply


sum, max, min, prod = (_reduce(op) for op in (add, maximum, minimum, multiply))
_all = _reduce(logical_and)


def all(x: NkiTensor, axis: int | Sequence[int], dtype: Any = None) -> NkiTensor:
    """1 where no element of x along its last free dimensions is zero, else 0."""
    return _all(x, axis, dtype)


def var(x: NkiTensor, axis: int | Sequence[int], dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    """Population variance of x over its last free dimensions, which stay as dimensions of size 1.

    AWS ignores keepdims here; so does this.
    """
    axes = sorted(a % x.ndim for a in ((axis,) if isinstance(axis, int) else axis))
    average = mean(x, axes, float32, keepdims=True)
    spread = average
    for dim in axes:
        spread = spread.broadcast(dim, x.shape[dim])
    centred = ndarray(x.shape, float32)
    tensor_tensor(centred, x, spread, subtract)
    tensor_tensor(centred, centred, centred, multiply)
    return mean(centred, axes, dtype or x.dtype, keepdims=True)


def mean(x: NkiTensor, axis: int | Sequence[int], dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    """Mean of x over its last free dimensions."""
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    total = sum(x, axes, float32, keepdims)
    result = ndarray(total.shape, dtype or x.dtype)
    tensor_scalar(result, total, multiply, 1.0 / float(np.prod([x.shape[a] for a in axes])))
    return result
