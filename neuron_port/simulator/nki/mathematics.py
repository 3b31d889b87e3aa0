"""The tile functions of `nki.language`: each allocates a tile in SBUF and runs the instructions that AWS documents.

They are attached to the operator tokens, so `nl.add(x, y)` computes and `op=nl.add` names the operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from neuron_port.simulator.dtypes import float32
from neuron_port.simulator.errors import ConstraintError, UnsupportedError
from neuron_port.simulator.instructions.activations import ACTIVATIONS
from neuron_port.simulator.instructions.dma import dma_copy
from neuron_port.simulator.instructions.operators import COMPILE_NOT, OPERATORS, Operator, add, maximum, minimum, multiply
from neuron_port.simulator.instructions.scalar_engine import activation
from neuron_port.simulator.instructions.tensor_engine import nc_matmul, nc_transpose
from neuron_port.simulator.instructions.vector_engine import (
    reciprocal,
    tensor_copy,
    tensor_reduce,
    tensor_scalar,
    tensor_tensor,
)
from neuron_port.simulator.memory import MemoryRegion
from neuron_port.simulator.tensor import NkiTensor

SBUF, PSUM = MemoryRegion.sbuf, MemoryRegion.psum


def _new(shape: Sequence[int], dtype: Any, buffer: MemoryRegion = SBUF) -> NkiTensor:
    from neuron_port.simulator.nki.language import ndarray

    return ndarray(shape, dtype, buffer)


def _binary(op: Operator) -> Callable[..., NkiTensor]:
    def apply(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
        """x op y elementwise into a new tile; one side may be a number."""
        tile = x if isinstance(x, NkiTensor) else y
        if not isinstance(tile, NkiTensor):
            raise ConstraintError(f"nl.{op.name}: {x!r} and {y!r} are both numbers")
        result = _new(tile.shape, dtype or tile.dtype)
        if isinstance(x, NkiTensor) and isinstance(y, NkiTensor):
            tensor_tensor(result, x, y, op)
        elif isinstance(x, NkiTensor):
            tensor_scalar(result, x, op, y)
        else:
            tensor_scalar(result, y, op, x, reverse0=True)
        return result

    return apply


def _unary(op: Operator) -> Callable[..., NkiTensor]:
    def apply(x: NkiTensor, dtype: Any = None) -> NkiTensor:
        """op(x) elementwise into a new tile."""
        result = _new(x.shape, dtype or x.dtype)
        if op.name == "copy":
            tensor_copy(result, x)
        elif op.name == "reciprocal":
            reciprocal(result, x)
        elif op.name == "rsqrt" or op.activation is None:
            tensor_scalar(result, x, op, None)
        else:
            activation(result, op, x)
        return result

    return apply


def attach_wrappers() -> None:
    """Make every operator token callable."""
    for op in OPERATORS.values():
        if op.name in ACTIVATIONS or op.unary:
            op.wrapper = _unary(op)
        elif op.alu is not None:
            op.wrapper = _binary(op)
        elif op.name in COMPILE_NOT:
            op.wrapper = _refuse(op.name)


def _refuse(name: str) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise UnsupportedError(
            f"nl.{name} does not compile in NKI 0.6", hint="multiply by nl.reciprocal instead"
        )

    return refuse


def _reduce(op: Operator) -> Callable[..., NkiTensor]:
    def apply(
        x: NkiTensor, axis: int | Sequence[int], dtype: Any = None, keepdims: bool = False
    ) -> NkiTensor:
        """x reduced over its last free dimensions `axis`."""
        axes = sorted(a % x.ndim for a in ((axis,) if isinstance(axis, int) else axis))
        kept = list(x.shape[: axes[0]])
        shape = kept + [1] * len(axes) if keepdims or len(kept) < 2 else kept
        result = _new(shape if keepdims or len(kept) >= 2 else (*kept, 1), dtype or x.dtype)
        tensor_reduce(result, op, x, tuple(axes))
        return result

    return apply


sum, max, min, prod = (_reduce(op) for op in (add, maximum, minimum, multiply))


def mean(x: NkiTensor, axis: int | Sequence[int], dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    """Mean of x over its last free dimensions."""
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    total = sum(x, axes, float32, keepdims)
    result = _new(total.shape, dtype or x.dtype)
    tensor_scalar(result, total, multiply, 1.0 / float(np.prod([x.shape[a] for a in axes])))
    return result


def load(src: NkiTensor, dtype: Any = None) -> NkiTensor:
    """A new SBUF tile with the values of an HBM tensor; its dimension 0 becomes the partition dimension."""
    tile = _new(src.shape if src.ndim > 1 else (1, *src.shape), dtype or src.dtype)
    dma_copy(tile, src)
    return tile


def store(dst: NkiTensor, value: NkiTensor) -> None:
    """Write an SBUF tile to HBM."""
    if not isinstance(value, NkiTensor) or value.buffer is not SBUF:
        raise ConstraintError(
            f"nl.store: value {value!r} must be a tile in SBUF", hint="copy PSUM with nl.copy first"
        )
    dma_copy(dst, value)


def load_transpose2d(src: NkiTensor, dtype: Any = None) -> NkiTensor:
    """A new SBUF tile with a 2-D HBM tensor transposed."""
    tile = _new((src.shape[1], src.shape[0]), dtype or src.dtype)
    dma_copy(tile, src.permute((1, 0)))
    return tile


def transpose(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """The transpose of a 2-D tile, in PSUM."""
    if dtype is not None and dtype != x.dtype:
        raise UnsupportedError(
            f"nl.transpose of {x!r} with another dtype", hint="convert with nl.copy afterwards"
        )
    result = _new((x.shape[1], x.shape[0]), x.dtype, PSUM)
    nc_transpose(result, x)
    return result


def matmul(x: NkiTensor, y: NkiTensor, transpose_x: bool = False) -> NkiTensor:
    """x transposed @ y in PSUM; only transpose_x=True compiles."""
    if not transpose_x:
        raise UnsupportedError(
            "nl.matmul without transpose_x=True does not compile in NKI 0.6",
            hint="transpose x first: stationary is [K, M]",
        )
    result = _new((x.shape[1], y.shape[1]), float32, PSUM)
    nc_matmul(result, x, y)
    return result


def expand_dims(x: NkiTensor, axis: int) -> NkiTensor:
    """A view with a new dimension of size 1."""
    return x.expand_dim(axis)


attach_wrappers()
