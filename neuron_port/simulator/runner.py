"""Calling a kernel: inputs become HBM tensors, the kernel runs, its outputs are checked and handed back.

Set-up is kept to microseconds, because a language model makes hundreds of calls for every token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from neuron_port.simulator import dtypes
from neuron_port.simulator.context import Run, context
from neuron_port.simulator.dtypes import DType
from neuron_port.simulator.errors import CapacityError, OutputError, SimulatorError, UnsupportedError
from neuron_port.simulator.memory import BY_OTHERS, Allocation, MemoryRegion, Storage, peak_of
from neuron_port.simulator.target import Target, find_target
from neuron_port.simulator.tensor import NkiTensor
from neuron_port.simulator.trace import Trace


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


@dataclass(frozen=True)
class KernelRun:
    """What one call did: outputs, trace and totals."""

    hbm_outputs: tuple[HbmArray, ...]
    trace: Trace
    target: Target
    matmul_macs: int
    hbm_read_bytes: int
    hbm_write_bytes: int
    warnings: tuple[str, ...]

    @cached_property
    def outputs(self) -> tuple[np.ndarray, ...]:
        """The returned tensors in their own dtypes; converted on first use."""
        return tuple(output.numpy() for output in self.hbm_outputs)

    @cached_property
    def peak_sbuf_bytes(self) -> int:
        """Largest number of SBUF bytes per partition that are live at once."""
        return peak_of(self.trace.allocations, MemoryRegion.sbuf)[0]

    @cached_property
    def peak_psum_banks(self) -> int:
        """Largest number of PSUM banks that are live at once; every tile takes whole banks."""
        return peak_of(self.trace.allocations, MemoryRegion.psum, self.target.psum_bank_bytes)[0]


def run_kernel(
    kernel: Callable[..., Any], *arrays: Any, target: str | Target = "trn2", **attributes: Any
) -> KernelRun:
    """Run `kernel` on arrays (numpy, `HbmArray`, or plain Python values) and keyword attributes.

    Inputs are read-only to the kernel, except `to_hbm(array, mutable=True)`.

    Raises:
        SimulatorError: whatever the hardware would not do, named at the kernel's line.
    """
    if context.run is not None:
        raise SimulatorError(
            "a kernel calls run_kernel or simulate", hint="call the helper function directly"
        )
    function = getattr(kernel, "function", kernel)
    run = Run(find_target(target))
    names = getattr(getattr(function, "__code__", None), "co_varnames", ())
    arguments = [
        _as_input(run, array, names[i] if i < len(names) else f"argument {i}")
        for i, array in enumerate(arrays)
    ]
    keywords = {name: _as_input(run, value, name) for name, value in attributes.items()}
    context.run = run
    try:
        with np.errstate(all="ignore"):
            returned = function(*arguments, **keywords)
    finally:
        context.run = None
    outputs = tuple(
        _as_output(run, tensor) for tensor in (returned if isinstance(returned, tuple) else (returned,))
    )
    check_capacity(run)
    return KernelRun(
        outputs, run.trace, run.target, run.macs, run.hbm_read_bytes, run.hbm_write_bytes, tuple(run.warnings)
    )


def simulate(kernel: Callable[..., Any], target: str | Target = "trn2") -> Callable[..., Any]:
    """A callable that runs `kernel` on numpy arrays and returns an array or a tuple of arrays."""

    def simulated(*arrays: Any, **attributes: Any) -> Any:
        outputs = run_kernel(kernel, *arrays, target=target, **attributes).outputs
        return outputs[0] if len(outputs) == 1 else outputs

    return simulated


def _as_input(run: Run, value: Any, name: str) -> Any:
    """HBM tensors for arrays; anything else passes to the kernel as it is."""
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
    else:
        return value
    if array.ndim == 0:
        raise UnsupportedError(f"argument `{name}` is a 0-dimensional array", hint="give it shape (1, 1)")
    allocation = Allocation(array.shape, dtype, MemoryRegion.shared_hbm, array.nbytes, name, None, 0)
    allocation.held_bytes = array.itemsize
    run.allocations.append(allocation)
    return NkiTensor(array, Storage(array, allocation, BY_OTHERS), dtype)


def _as_output(run: Run, tensor: Any) -> HbmArray:
    """The returned tensor, if it is all of a fully written tensor in shared HBM."""
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
    if storage.state <= 0 and not storage.is_written(tensor):
        written = int(np.count_nonzero(storage.mask)) if storage.mask is not None else 0
        raise OutputError(
            f"output {tensor!r} is returned with {written} of {tensor.size} elements written",
            location=location,
            hint="write every element, tails included",
        )
    is_input = storage.allocation.code is None
    return HbmArray(tensor.array, tensor.dtype, mutable=is_input)


def check_capacity(run: Run) -> None:
    """Refuse live tensors that exceed SBUF or PSUM, at the source line of the peak."""
    target = run.target
    limits = (
        (MemoryRegion.sbuf, 1, target.sbuf_usable_bytes_per_partition, "bytes per partition of SBUF"),
        (MemoryRegion.psum, target.psum_bank_bytes, target.psum_banks, "banks of PSUM"),
    )
    for buffer, unit, limit, what in limits:
        total = 0
        for allocation in run.allocations:
            if allocation.buffer is buffer:
                total += -(-allocation.bytes_per_partition // unit)
        if total <= limit:
            continue
        peak, moment, live = peak_of(run.allocations, buffer, unit)
        if peak > limit:
            raise CapacityError(
                f"{peak} {what} are live at once, {target.name} has {limit}; live there: {_listed(live)}",
                location=run.instructions[moment].location if moment < len(run.instructions) else None,
                hint="use smaller tiles, or use each tile up before the next is filled",
            )


def _listed(live: list[Allocation], most: int = 8) -> str:
    largest = sorted(live, key=lambda allocation: -allocation.bytes_per_partition)
    shown = ", ".join(f"{a!r} ({a.bytes_per_partition} B, {a.location})" for a in largest[:most])
    return shown + (f" and {len(live) - most} more" if len(live) > most else "")
