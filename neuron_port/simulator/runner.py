"""Calling a kernel: on one core, on the two cores of a logical core, or on several ranks at once.

Set-up on one core is kept to microseconds and starts no thread, because a language model makes hundreds of calls
for every token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from neuron_port.simulator.arguments import (
    HbmArray,
    check_updated_inputs,
    for_other_core,
    inputs_of,
    outputs_of,
    to_hbm,
)
from neuron_port.simulator.blas import OneBlasThread
from neuron_port.simulator.context import Run, context
from neuron_port.simulator.cores import LogicalCore, Scheduler
from neuron_port.simulator.errors import (
    CapacityError,
    ConstraintError,
    OutputError,
    SimulatorError,
)
from neuron_port.simulator.hazards import check_hazards
from neuron_port.simulator.limits import (
    DEFAULT_LIMITS,
    Clock,
    Limits,
    RecursionLimit,
    TimeUp,
    refuse_memory,
    refuse_recursion,
)
from neuron_port.simulator.memory import Allocation, MemoryRegion, peak_of
from neuron_port.simulator.races import check_races, warn_of_diverging_loops
from neuron_port.simulator.target import Target, find_target
from neuron_port.simulator.tensor import NkiTensor
from neuron_port.simulator.trace import Trace

__all__ = [
    "HbmArray", "KernelRun", "Limits", "call_kernel", "check_capacity", "run_kernel", "run_ranks", "simulate", "to_hbm",
]  # fmt: skip


@dataclass(frozen=True)
class KernelRun:
    """What one call did: outputs, traces and totals. Totals are sums over the cores, peaks the larger core's."""

    hbm_outputs: tuple[HbmArray, ...]
    traces: tuple[Trace, ...]  # of each core
    target: Target
    matmul_macs: int
    hbm_read_bytes: int
    hbm_write_bytes: int
    warnings: tuple[str, ...]
    rank: int = 0

    @property
    def trace(self) -> Trace:
        """The trace of core 0."""
        return self.traces[0]

    @cached_property
    def outputs(self) -> tuple[np.ndarray, ...]:
        """The returned tensors in their own dtypes; converted on first use."""
        return tuple(output.numpy() for output in self.hbm_outputs)

    @cached_property
    def peak_sbuf_bytes(self) -> int:
        """Largest number of SBUF bytes per partition that are live at once on one core."""
        return max(peak_of(trace.allocations, MemoryRegion.sbuf)[0] for trace in self.traces)

    @cached_property
    def peak_psum_banks(self) -> int:
        """Largest number of PSUM banks that are live at once on one core; every tile takes whole banks."""
        bank_bytes = self.target.psum_bank_bytes
        return max(peak_of(trace.allocations, MemoryRegion.psum, bank_bytes)[0] for trace in self.traces)


def run_kernel(
    kernel: Callable[..., Any],
    *arrays: Any,
    target: str | Target = "trn2",
    lnc: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
    **attributes: Any,
) -> KernelRun:
    """Run `kernel` on arrays (numpy, `HbmArray`, or plain Python values) and keyword attributes.

    Inputs are read-only to the kernel, except `to_hbm(array, mutable=True)`; they may be nested in lists, tuples,
    dicts and NKIObjects. lnc=2, or a kernel launched as kernel[2], runs the two programs of a logical core: each
    has its own SBUF, PSUM, capacity check and trace; inputs and the i-th tensor in shared HBM are common to both.

    Raises:
        SimulatorError: whatever the hardware would not do, named at the kernel's line.
        LimitError: a limit of `limits` is reached.
    """
    return call_kernel(kernel, arrays, attributes, target=target, lnc=lnc, limits=limits)


def call_kernel(
    kernel: Callable[..., Any],
    arrays: Sequence[Any],
    attributes: Mapping[str, Any],
    *,
    target: str | Target = "trn2",
    lnc: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> KernelRun:
    """run_kernel with the kernel's arguments apart: for kernels with parameters named target, lnc or limits."""
    return _launch(kernel, [(tuple(arrays), dict(attributes))], find_target(target), lnc, limits)[0]


def run_ranks(
    kernel: Callable[..., Any],
    inputs_by_rank: Sequence[Sequence[Any] | Mapping[str, Any]],
    *,
    target: str | Target = "trn2",
    lnc: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
    **attributes: Any,
) -> list[KernelRun]:
    """Run `kernel` on as many ranks as there are entries, so that nki.collectives connect them.

    Each entry holds the inputs of one rank: a sequence by position or a mapping by name; `attributes` are for all.
    Every rank has its own HBM and, with lnc=2, two cores. Returns the runs in the order of the ranks.
    """
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    for inputs in inputs_by_rank:
        if isinstance(inputs, Mapping):
            calls.append(((), {**attributes, **inputs}))
        else:
            calls.append((tuple(inputs), dict(attributes)))
    if not calls:
        raise SimulatorError("run_ranks has no ranks", hint="inputs_by_rank has one entry for each rank")
    return _launch(kernel, calls, find_target(target), lnc, limits)


def simulate(
    kernel: Callable[..., Any], target: str | Target = "trn2", lnc: int | None = None
) -> Callable[..., Any]:
    """A callable that runs `kernel` on numpy arrays and returns an array or a tuple of arrays."""

    def simulated(*arrays: Any, **attributes: Any) -> Any:
        run = call_kernel(kernel, arrays, attributes, target=target, lnc=lnc)
        return run.outputs[0] if len(run.outputs) == 1 else run.outputs

    return simulated


def _launch(
    kernel: Callable[..., Any],
    calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]],
    target: Target,
    lnc: int | None,
    limits: Limits,
) -> list[KernelRun]:
    """One call of the kernel for each rank, all within the limits."""
    if context.run is not None:
        raise SimulatorError(
            "a kernel calls run_kernel or simulate", hint="call the helper function directly"
        )
    function = getattr(kernel, "function", kernel)
    lnc = lnc if lnc is not None else getattr(kernel, "lnc", None)
    cores = 1 if lnc is None else lnc
    if cores not in target.logical_core_sizes:
        raise ConstraintError(
            f"the kernel is launched on {cores} cores; a logical core of {target.name} has "
            f"{' or '.join(map(str, target.logical_core_sizes))}",
            hint="two cores work together from NeuronCore-v3 on" if cores == 2 else "use lnc=1 or lnc=2",
        )
    if limits.seconds is None and limits.recursion is None:
        return _run(function, calls, target, lnc, limits, None)
    scheduler = Scheduler()
    with ExitStack() as stack:
        if limits.recursion is not None:
            stack.enter_context(RecursionLimit(limits.recursion))
        if limits.seconds is None:
            return _run(function, calls, target, lnc, limits, scheduler)
        clock = Clock(limits, scheduler.thread_to_interrupt)
        try:
            with clock:
                return _run(function, calls, target, lnc, limits, scheduler)
        except TimeUp as error:
            clock.stop()
            clock.refuse(error)


def _run(
    function: Callable[..., Any],
    calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]],
    target: Target,
    lnc: int | None,
    limits: Limits,
    scheduler: Scheduler | None,
) -> list[KernelRun]:
    if len(calls) == 1 and (lnc is None or lnc == 1):
        run = Run(target, limits)
        if lnc is not None:
            run.program_ndim = 1
        arguments = inputs_of(run, function, *calls[0])
        context.run = run
        try:
            with np.errstate(all="ignore"), OneBlasThread():
                returned = _call(function, arguments)
        finally:
            context.run = None
        return [_finished([run], [returned], arguments)]
    scheduler = scheduler or Scheduler()
    by_rank = []
    for rank, (arrays, attributes) in enumerate(calls):
        runs = [Run(target, limits) for _ in range(lnc or 1)]
        all_arguments = [inputs_of(runs[0], function, arrays, attributes)]
        if len(runs) == 2:
            LogicalCore(runs)
            all_arguments.append(for_other_core(runs[1], all_arguments[0]))
        for run, arguments in zip(runs, all_arguments, strict=True):
            run.rank, run.ranks = rank, len(calls)
            run.program_ndim = 0 if lnc is None else 1
            label = " of ".join(
                [f"core {run.program_id}"] * (len(runs) > 1) + [f"rank {rank}"] * (len(calls) > 1)
            )
            scheduler.add(run, label, lambda arguments=arguments: _call(function, arguments))  # type: ignore[misc]
        by_rank.append((runs, all_arguments[0]))
    with OneBlasThread():
        results = iter(scheduler.execute())
    return [_finished(runs, [next(results) for _ in runs], arguments) for runs, arguments in by_rank]


def _call(function: Callable[..., Any], arguments: tuple[list[Any], dict[str, Any]]) -> Any:
    """The kernel's result; what Python itself refuses becomes an error of the kernel's line."""
    try:
        return function(*arguments[0], **arguments[1])
    except RecursionError as error:
        refuse_recursion(error)
    except MemoryError as error:
        refuse_memory(error)


def _finished(runs: list[Run], returned: list[Any], arguments: tuple[list[Any], dict[str, Any]]) -> KernelRun:
    """The record of one rank's call, after the checks that need all of it."""
    first = runs[0]
    if first.logical_core is not None:
        _check_same_outputs(returned)
        check_races(first.logical_core)
        warn_of_diverging_loops(first.logical_core)
    may_be_none = returned[0] is None and any(
        isinstance(value, NkiTensor) and value.array.flags.writeable
        for value in (*arguments[0], *arguments[1].values())
    )
    outputs = outputs_of(returned[0], may_be_none=may_be_none)
    check_updated_inputs(*arguments)
    for run in runs:
        check_capacity(run)
        check_hazards(run.trace)
    return KernelRun(
        outputs,
        tuple(run.trace for run in runs),
        first.target,
        sum(run.macs for run in runs),
        sum(run.hbm_read_bytes for run in runs),
        sum(run.hbm_write_bytes for run in runs),
        tuple(dict.fromkeys(warning for run in runs for warning in run.warnings)),
        first.rank,
    )


def _check_same_outputs(returned: list[Any]) -> None:
    """Both cores return the same tensors; the host sees one of each."""
    each = [result if isinstance(result, tuple | list) else (result,) for result in returned]
    storages = [[getattr(tensor, "storage", None) for tensor in tensors] for tensors in each]
    if len(storages[0]) != len(storages[1]) or any(
        a is not b for a, b in zip(storages[0], storages[1], strict=True)
    ):
        raise OutputError(
            f"core 0 returns {returned[0]!r}, core 1 returns {returned[1]!r}",
            hint="both cores return the same tensors in shared HBM; each writes its part of them",
        )


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
