"""What goes into a kernel and what comes out: host arrays become HBM tensors, returned tensors are checked.

Inputs are made once for each call. On two cores both programs get tensors on the same storage, and each its own
copy of every container and record around them, so that no Python object lets the cores see each other.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from neuron_port.simulator import dtypes
from neuron_port.simulator.checks import refuse_undefined
from neuron_port.simulator.context import Run
from neuron_port.simulator.dtypes import DType
from neuron_port.simulator.errors import OutputError, UnsupportedError
from neuron_port.simulator.memory import BY_OTHERS, Allocation, MemoryRegion, Storage
from neuron_port.simulator.nki.objects import NKIObject
from neuron_port.simulator.tensor import NkiTensor

CONTAINERS = (list, tuple, dict, NKIObject)


class HbmArray:
    """A device-resident array: made once by `to_hbm`, passed to many calls without another conversion."""

    __slots__ = ("dtype", "held", "mutable")

    def __init__(self, held: np.ndarray, dtype: DType, mutable: bool = False) -> None:
        self.held = held
        self.dtype = dtype
        self.mutable = mutable

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the dimensions."""
        return self.held.shape

    def numpy(self) -> np.ndarray:
        """The values in the array's own dtype (bfloat16 as ml_dtypes.bfloat16); a copy if it may change."""
        if self.mutable or self.held.dtype != self.dtype.native:
            return self.held.astype(self.dtype.native)
        return self.held

    def __repr__(self) -> str:
        return f"HbmArray({tuple(self.shape)}, {self.dtype}{', mutable' if self.mutable else ''})"


def to_hbm(array: np.ndarray, *, mutable: bool = False) -> HbmArray:
    """Convert `array` once into the form that kernels read without conversion.

    With mutable=True kernels may also write it (a KV cache updated in place); the array is copied, and the
    new contents are read by `.numpy()`.
    """
    dtype = dtypes.resolve(array.dtype)
    held = np.array(array, dtype=dtype.held, order="C", copy=True if mutable else None)
    return HbmArray(held, dtype, mutable)


def inputs_of(
    run: Run, function: Any, arrays: tuple[Any, ...], attributes: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments for one call of the kernel, arrays as tensors in shared HBM."""
    names = getattr(getattr(function, "__code__", None), "co_varnames", ())
    positional = [
        _input(run, array, names[i] if i < len(names) else f"argument {i}") for i, array in enumerate(arrays)
    ]
    return positional, {name: _input(run, value, name) for name, value in attributes.items()}


def _input(run: Run, value: Any, name: str) -> Any:
    """An HBM tensor for an array, also inside of containers; anything else passes to the kernel as it is."""
    if isinstance(value, HbmArray):
        dtype, array = value.dtype, value.held
        if not value.mutable:
            array = array.view()
            array.flags.writeable = False
    elif isinstance(value, np.ndarray):
        dtype = dtypes.resolve(value.dtype)
        array = np.ascontiguousarray(value).view()
        if dtype is dtypes.bool_:
            array = array.view(np.uint8)
        array.flags.writeable = False
    elif isinstance(value, CONTAINERS) and _holds_arrays(value, set()):
        return _rebuilt(value, lambda leaf, where: _input(run, leaf, f"{name}{where}"), {})
    else:
        return value
    if array.ndim == 0:
        raise UnsupportedError(f"argument `{name}` is a 0-dimensional array", hint="give it shape (1, 1)")
    allocation = Allocation(array.shape, dtype, MemoryRegion.shared_hbm, array.nbytes, name, None, 0)
    allocation.held_bytes = array.itemsize
    run.charge_input(allocation, array.size)
    return NkiTensor(array, Storage(array, allocation, BY_OTHERS), dtype)


def for_other_core(run: Run, arguments: tuple[list[Any], dict[str, Any]]) -> tuple[list[Any], dict[str, Any]]:
    """The same arguments for the second core: tensors on the same storages, own containers and records."""
    memo: dict[int, Any] = {}

    def shared(leaf: Any, _: str) -> Any:
        if isinstance(leaf, NkiTensor):
            run.allocations.append(leaf.storage.allocation)
            return NkiTensor(leaf.array, leaf.storage, leaf.dtype)
        return leaf

    positional, keywords = arguments
    return _rebuilt(positional, shared, memo), _rebuilt(keywords, shared, memo)


def _holds_arrays(value: Any, seen: set[int]) -> bool:
    if isinstance(value, HbmArray | np.ndarray):
        return True
    if not isinstance(value, CONTAINERS) or id(value) in seen:
        return False
    seen.add(id(value))
    return any(_holds_arrays(item, seen) for item in _items(value))


def _items(value: Any) -> Any:
    if isinstance(value, NKIObject):
        return vars(value).values()
    return value.values() if isinstance(value, dict) else value


def _rebuilt(value: Any, of_leaf: Any, memo: dict[int, Any], where: str = "") -> Any:
    """A copy of nested containers and records with `of_leaf(leaf, where)` in place of what they hold.

    What occurs twice is one object in the copy too, and what contains itself does so again.
    """
    if not isinstance(value, CONTAINERS):
        return of_leaf(value, where)
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, tuple):
        items = [_rebuilt(item, of_leaf, memo, f"{where}[{i}]") for i, item in enumerate(value)]
        rebuilt: Any = type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        memo[id(value)] = rebuilt
        return rebuilt
    memo[id(value)] = rebuilt = copy.copy(value)
    if isinstance(value, list):
        rebuilt[:] = [_rebuilt(item, of_leaf, memo, f"{where}[{i}]") for i, item in enumerate(value)]
    elif isinstance(value, dict):
        for key, item in value.items():
            rebuilt[key] = _rebuilt(item, of_leaf, memo, f"{where}[{key!r}]")
    else:
        for key, item in vars(value).items():
            object.__setattr__(rebuilt, key, _rebuilt(item, of_leaf, memo, f"{where}.{key}"))
    return rebuilt


def outputs_of(returned: Any, *, may_be_none: bool) -> tuple[HbmArray, ...]:
    """The returned tensors, one or a tuple or list of them, each checked.

    Raises:
        OutputError: not a whole, fully written tensor in shared HBM.
    """
    if returned is None and may_be_none:
        return ()
    tensors = returned if isinstance(returned, tuple | list) else (returned,)
    return tuple(_output(tensor) for tensor in tensors)


def check_updated_inputs(positional: list[Any], keywords: dict[str, Any]) -> None:
    """Refuse an input that the kernel has updated with elements that nothing defines."""
    for value in (*positional, *keywords.values()):
        if isinstance(value, NkiTensor) and value.storage.origin and not value.storage.is_written(value):
            refuse_undefined(f"input {value!r} is updated with it", None, value.storage)


def _output(tensor: Any) -> HbmArray:
    if not isinstance(tensor, NkiTensor):
        raise OutputError(
            f"the kernel returns {tensor!r}, not a tensor",
            hint="return the nl.ndarray(..., buffer=nl.shared_hbm) that it wrote",
        )
    storage = tensor.storage
    location = storage.allocation.location if storage.allocation.code else None
    if storage.buffer is not MemoryRegion.shared_hbm:
        raise OutputError(
            f"the kernel returns {tensor!r}, which is not in shared HBM",
            location=location,
            hint="allocate outputs with buffer=nl.shared_hbm and nisa.dma_copy into them",
        )
    if tensor.is_indirect() or tensor.size != storage.array.size:
        raise OutputError(
            f"the kernel returns a part of {storage.allocation!r}",
            location=location,
            hint="return the whole tensor",
        )
    if not tensor.is_contiguous():
        raise OutputError(
            f"the kernel returns {storage.allocation!r} in another order than it is stored in",
            location=location,
            hint="return the tensor itself, and let dma_copy write its elements in their final order",
        )
    if storage.state <= 0 and not storage.is_written(tensor):
        if storage.origin is not None:
            refuse_undefined(f"output {tensor!r} depends on it", location, storage)
        written = int(np.count_nonzero(storage.mask)) if storage.mask is not None else 0
        raise OutputError(
            f"output {tensor!r} is returned with {written} of {tensor.size} elements written",
            location=location,
            hint="write every element, tails included",
        )
    is_input = storage.allocation.code is None
    return HbmArray(tensor.array, tensor.dtype, mutable=is_input)
