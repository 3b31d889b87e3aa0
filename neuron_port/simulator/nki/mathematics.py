"""The tile functions of `nki.language`: each allocates a tile and runs the instructions that AWS documents.

They are attached to the operator tokens, so `nl.add(x, y)` computes and `op=nl.add` names the operator.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence
from typing import Any

from neuron_port.simulator import dtypes
from neuron_port.simulator.context import current_run
from neuron_port.simulator.dtypes import float32, uint8
from neuron_port.simulator.errors import ConstraintError, UnsupportedError
from neuron_port.simulator.instructions.activations import ACTIVATIONS
from neuron_port.simulator.instructions.dma import dma_copy
from neuron_port.simulator.instructions.gpsimd_engine import nc_n_gather
from neuron_port.simulator.instructions.operators import (
    COMPILE_NOT,
    OPERATORS,
    Operator,
    add,
    maximum,
    multiply,
    not_equal,
    operator_named,
)
from neuron_port.simulator.instructions.scalar_engine import activation, activation_reduce
from neuron_port.simulator.instructions.tensor_engine import nc_matmul, nc_transpose
from neuron_port.simulator.instructions.vector_engine import (
    reciprocal,
    tensor_copy,
    tensor_reduce,
    tensor_scalar,
    tensor_tensor,
)
from neuron_port.simulator.instructions.vector_select import tensor_copy_predicated
from neuron_port.simulator.instructions.vector_statistics import nc_stream_shuffle
from neuron_port.simulator.memory import MemoryRegion
from neuron_port.simulator.nki import elementary
from neuron_port.simulator.nki.allocation import ndarray
from neuron_port.simulator.tensor import NkiTensor

SBUF, PSUM = MemoryRegion.sbuf, MemoryRegion.psum
BY_MAGNITUDE = ("abs_max", "abs_min")


def _new(shape: Sequence[int], dtype: Any, buffer: MemoryRegion = SBUF) -> NkiTensor:
    return ndarray(shape, dtype, buffer)


def _binary(op: Operator) -> Callable[..., NkiTensor]:
    def apply(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
        """x op y elementwise into a new tile; one side may be a number."""
        tile = x if isinstance(x, NkiTensor) else y
        if not isinstance(tile, NkiTensor):
            raise ConstraintError(f"nl.{op.name}: {x!r} and {y!r} are both numbers")
        if op.name == "power" and not isinstance(y, NkiTensor):
            raise UnsupportedError(
                f"nl.power of {x!r} with the number {y!r} as exponent does not compile in NKI 0.6",
                hint="put the exponent into a tile: nl.power(x, nl.full(x.shape, exponent, x.dtype))",
            )
        result = _new(tile.shape, dtype or tile.dtype)
        if isinstance(x, NkiTensor) and isinstance(y, NkiTensor):
            if op.name in BY_MAGNITUDE and y.shape == (x.shape[0], 1) != x.shape:
                _warn_of_broadcast(op, x, y)
                tensor_scalar(result, x, op, y)
            else:
                tensor_tensor(result, x, y, op)
        elif isinstance(x, NkiTensor):
            tensor_scalar(result, x, op, y)
        else:
            tensor_scalar(result, y, op, x, reverse0=True)
        return result

    return apply


def _warn_of_broadcast(op: Operator, x: NkiTensor, y: NkiTensor) -> None:
    current_run().warn(
        f"nl.{op.name} of {x!r} and {y!r}: the examples of its documentation take one value for each partition, the "
        "release notes say that binary functions do not broadcast"
    )


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
    OPERATORS["sin"].wrapper = elementary.sin  # the token alone has no range reduction


def _refuse(name: str) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise UnsupportedError(
            f"nl.{name} does not compile in NKI 0.6", hint="multiply by nl.reciprocal instead"
        )

    return refuse


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


def broadcast_to(x: NkiTensor, shape: Sequence[int], dtype: Any = None) -> NkiTensor:
    """x repeated along its size-1 dimensions; over partitions by shuffles within quadrants of 32."""
    sizes = tuple(shape)
    if sizes == x.shape and dtype in (None, x.dtype):
        return x
    if len(sizes) != x.ndim or any(old not in (1, new) for old, new in zip(x.shape, sizes, strict=True)):
        raise ConstraintError(
            f"nl.broadcast_to: {x!r} cannot become {sizes}", hint="only size-1 dimensions repeat"
        )
    view = x
    for dim in range(1, len(sizes)):
        view = view.broadcast(dim, sizes[dim]) if view.shape[dim] != sizes[dim] else view
    row = _new((x.shape[0], *sizes[1:]), dtype or x.dtype)
    tensor_copy(row, view)
    if row.shape[0] == sizes[0]:
        return row
    result = _new(sizes, row.dtype)
    for start in range(0, sizes[0], 32):
        nc_stream_shuffle(result[start : builtins.min(start + 32, sizes[0])], row, [0] * 32)
    return result


def gather_flattened(data: NkiTensor, indices: NkiTensor, axis: int = 0, dtype: Any = None) -> NkiTensor:
    """A new tile of indices' shape: element indices[p, i] of data's flattened free dimensions, in each partition.

    indices are uint32. axis is 0, AWS's default and the only one that its documentation describes.
    """
    if axis != 0:
        raise UnsupportedError(
            f"nl.gather_flattened of {data!r} along axis {axis}", hint="leave axis out, or permute data first"
        )
    gathered = _new(indices.shape, data.dtype)
    nc_n_gather(gathered, data, indices)
    if dtype is None or dtypes.resolve(dtype) is data.dtype:
        return gathered
    result = _new(indices.shape, dtype)
    tensor_copy(result, gathered)
    return result


def negative(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """-x."""
    result = _new(x.shape, dtype or x.dtype)
    tensor_scalar(result, x, multiply, -1.0)
    return result


def where(condition: NkiTensor, x: NkiTensor, y: NkiTensor, dtype: Any = None) -> NkiTensor:
    """x where condition is not zero, else y."""
    result, chosen = _new(x.shape, dtype or x.dtype), _new(x.shape, x.dtype)
    predicate = _new(condition.shape, uint8)
    tensor_scalar(predicate, condition, not_equal, 0.0)
    tensor_copy(chosen, x)
    tensor_copy(result, y)
    if result.dtype != x.dtype:
        chosen = _new(x.shape, result.dtype)
        tensor_copy(chosen, x)
    tensor_copy_predicated(result, chosen, predicate)
    return result


def softmax(x: NkiTensor, axis: int | Sequence[int] = -1, dtype: Any = None) -> NkiTensor:
    """exp(x - max) / sum over all free dimensions, in float32."""
    axes = sorted(a % x.ndim for a in ((axis,) if isinstance(axis, int) else axis))
    if axes != list(range(1, x.ndim)):
        raise UnsupportedError(f"nl.softmax of {x!r} over {axis}", hint="reshape to (P, N) and use axis=1")
    lowest, total = _new((x.shape[0], 1), float32), _new((x.shape[0], 1), float32)
    powers, result = _new(x.shape, float32), _new(x.shape, dtype or x.dtype)
    tensor_reduce(lowest, maximum, x, tuple(axes), negate=True)
    activation_reduce(powers, operator_named("exp"), x, add, total, bias=lowest)
    reciprocal(total, total)
    tensor_scalar(result, powers, multiply, total)
    return result


def rms_norm(
    x: NkiTensor,
    w: NkiTensor,
    axis: int,
    n: int,
    epsilon: float = 1e-6,
    dtype: Any = None,
    compute_dtype: Any = None,
) -> NkiTensor:
    """x / sqrt(sum(x * x) / n + epsilon) * w over the last dimension, in float32."""
    if axis % x.ndim != 1 or x.ndim != 2:
        raise UnsupportedError(f"nl.rms_norm of {x!r} over {axis}", hint="reshape to (P, N) and use axis=1")
    squares, scale = _new(x.shape, float32), _new((x.shape[0], 1), float32)
    normal, result = _new(x.shape, compute_dtype or float32), _new(x.shape, dtype or x.dtype)
    activation_reduce(squares, operator_named("square"), x, add, scale)
    tensor_scalar(scale, scale, multiply, 1.0 / n, op1=add, operand1=epsilon)
    activation(scale, operator_named("rsqrt"), scale)
    tensor_scalar(normal, x, multiply, scale)
    tensor_tensor(result, normal, w, multiply)
    return result


attach_wrappers()
