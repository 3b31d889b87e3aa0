"""The two cores of a logical NeuronCore working together: exchanging tiles, and waiting for each other.

Both exist from NeuronCore-v3 on, and only in kernels launched on two cores (kernel[2]).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

import numpy as np

from neuron_port.simulator.checks import check_destination, check_generation, check_memory, check_source
from neuron_port.simulator.context import Run, current_run, record
from neuron_port.simulator.cores import LogicalCore, Meeting
from neuron_port.simulator.errors import ConstraintError
from neuron_port.simulator.memory import MemoryRegion
from neuron_port.simulator.tensor import NkiTensor
from neuron_port.simulator.trace import NkiInstruction, engine
from neuron_port.simulator.undefined import Read
from neuron_port.simulator.values import write_raw

Engine = engine
# GpSimdE's own DMA moves this much of each partition at once (nki.isa.sendrecv): 256 elements of any size.
GPSIMD_DMA_ELEMENTS = 256
COMPUTE_ENGINES = (engine.tensor, engine.vector, engine.scalar, engine.gpsimd, engine.sync)


class dma_engine(Enum):  # noqa: N801 - AWS's name
    """Who moves data in sendrecv."""

    dma = 1
    gpsimd_dma = 2


def sendrecv(
    src: NkiTensor,
    dst: NkiTensor,
    send_to_rank: int,
    recv_from_rank: int,
    pipe_id: int,
    dma_engine: dma_engine = dma_engine.dma,
    name: str | None = None,
) -> NkiInstruction:
    """Send src to the other core and receive its src into dst; both cores continue when both have come.

    Args:
        src, dst: [P, ...] @ SBUF, of one shape and dtype, the same on both cores.
        send_to_rank, recv_from_rank: the other core, 1 - nl.program_id().
        pipe_id: equal on both cores; exchanges of one pipe happen in program order.
        dma_engine: gpsimd_dma moves at most 1024, 512 or 256 bytes per partition of 4-, 2- or 1-byte elements.
    """
    run, core = _pair("sendrecv")
    check_source("sendrecv", "src", src)
    check_destination("sendrecv", "dst", dst)
    for label, tile in (("src", src), ("dst", dst)):
        check_memory("sendrecv", label, tile, MemoryRegion.sbuf, ", as cores exchange tiles of SBUF only")
    if dst.array.shape != src.array.shape or dst.dtype is not src.dtype:
        raise ConstraintError(
            f"sendrecv: dst {dst!r} and src {src!r} must have one shape and dtype",
            hint="the other core sends a tile like src, and dst receives it",
        )
    other = 1 - run.program_id
    for label, rank in (("send_to_rank", send_to_rank), ("recv_from_rank", recv_from_rank)):
        if not isinstance(rank, int | np.integer) or rank != other:
            raise ConstraintError(
                f"sendrecv: {label} is {rank!r} on core {run.program_id}, must be {other}",
                hint="the partner is 1 - nl.program_id(0)",
            )
    if not isinstance(dma_engine, DmaEngine):
        raise ConstraintError(
            f"sendrecv: dma_engine is {dma_engine!r}", hint="use nisa.dma_engine.dma or gpsimd_dma"
        )
    elements = src.size // src.array.shape[0]
    if dma_engine is DmaEngine.gpsimd_dma and elements > GPSIMD_DMA_ELEMENTS:
        raise ConstraintError(
            f"sendrecv: src {src!r} has {elements} elements per partition; GpSimdE's DMA moves at most "
            f"{GPSIMD_DMA_ELEMENTS} ({GPSIMD_DMA_ELEMENTS * src.dtype.itemsize} bytes of {src.dtype})",
            hint="send it in parts, or use dma_engine=nisa.dma_engine.dma",
        )
    # What is undefined in src becomes undefined in the other core's dst, not in this one's.
    undefined, run.undefined_reads = run.undefined_reads, []
    offer = _Sent(run, src, dst, undefined[0] if undefined else None)
    waits_for = f"sendrecv of {src!r} with pipe_id={pipe_id}"
    _meet(run, core, "sendrecv", ("sendrecv", pipe_id), offer, _exchange, waits_for)
    return record(
        "sendrecv",
        Engine.gpsimd if dma_engine is DmaEngine.gpsimd_dma else Engine.dma,
        (dst, src),
        name,
        dma_bytes=dst.size * dst.dtype.itemsize,
        pipe_id=pipe_id,
        dma_engine=dma_engine.name,
        meeting=core.meetings,
    )


DmaEngine = dma_engine


def core_barrier(
    data: NkiTensor, cores: Any, engine: engine = engine.gpsimd, name: str | None = None
) -> NkiInstruction:
    """Wait until both cores are here: what either wrote to `data` before, both may read after.

    Args:
        data: the tensor in shared HBM that the cores share; accesses to other tensors are not ordered for sure.
        cores: (0, 1). A kernel on one core may name its own core alone, which waits for nobody.
        engine: the engine that waits; the others run on.
    """
    if not isinstance(data, NkiTensor):
        raise ConstraintError(f"core_barrier: data is {data!r}, must be a tensor in shared HBM")
    if not isinstance(engine, Engine) or engine not in COMPUTE_ENGINES:
        raise ConstraintError(
            f"core_barrier: engine {getattr(engine, 'name', engine)} cannot wait",
            hint=f"use one of {', '.join(e.name for e in COMPUTE_ENGINES)}",
        )
    run = current_run()
    members = tuple(cores) if isinstance(cores, tuple | list) else (cores,)
    if members == (0,) and run.logical_core is None:
        return record("core_barrier", engine, (data,), name)
    run, core = _pair("core_barrier")
    if members != (0, 1):
        raise ConstraintError(f"core_barrier: cores is {cores!r}, must be (0, 1)")
    if data.buffer is not MemoryRegion.shared_hbm:
        # The reference demands shared HBM; public kernels that run on devices pass tiles of SBUF as well.
        run.warn(
            f"core_barrier: data {data!r} is not in shared HBM, so it orders no access to shared data; pass the "
            "nl.shared_hbm tensor that both cores use"
        )
    waits_for = f"core_barrier on {data.storage.allocation!r}"
    _meet(run, core, "core_barrier", "core_barrier", (run, data), _agree, waits_for)
    return record("core_barrier", engine, (data,), name, meeting=core.meetings)


def _pair(opcode: str) -> tuple[Run, LogicalCore]:
    """The run and its logical core of two.

    Raises:
        ConstraintError: before NeuronCore-v3, or in a kernel that runs on one core.
    """
    run = current_run()
    check_generation(opcode, 3)
    if run.logical_core is None:
        raise ConstraintError(
            f"{opcode}: the kernel runs on one core, so there is no other core",
            hint="launch it on two: kernel[2], or run_kernel(..., lnc=2); or guard with nl.num_programs() == 2",
        )
    return run, run.logical_core


def _meet(
    run: Run,
    core: LogicalCore,
    opcode: str,
    key: Any,
    offer: Any,
    exchange: Callable[[list[Meeting]], Callable[[], None]],
    waits_for: str,
) -> None:
    """Wait for the other core of the pair in the same instruction."""
    assert run.scheduler is not None
    members = [other.position for other in core.runs]
    run.scheduler.meet(run, Meeting(opcode, key, members, offer, exchange, waits_for))


class _Sent(NamedTuple):
    """What one core brings to a sendrecv; `undefined` tells of elements of src that nothing has written."""

    run: Run
    src: NkiTensor
    dst: NkiTensor
    undefined: Read | None


def _exchange(meetings: list[Meeting]) -> Callable[[], None]:
    """sendrecv on both cores: each dst gets the other's src as it is now."""
    first, second = (meeting.offer for meeting in meetings)
    if first.src.array.shape != second.src.array.shape or first.src.dtype is not second.src.dtype:
        raise ConstraintError(
            f"sendrecv: core 0 sends {first.src!r} ({meetings[0].location}), core 1 sends {second.src!r} "
            f"({meetings[1].location})",
            location=meetings[0].location,
            hint="both cores must send tiles of one shape and dtype",
        )
    moves = [(a, b, b.src.array.copy()) for a, b in ((first, second), (second, first))]
    first.run.logical_core.meetings += 1

    def deliver() -> None:
        for receiver, sender, values in moves:
            write_raw(receiver.dst, values)
            if sender.undefined is not None:
                dst = receiver.dst
                dst.storage.mark_undefined(dst.stored, sender.undefined.undefined, sender.undefined.origin)

    return deliver


def _agree(meetings: list[Meeting]) -> Callable[[], None]:
    """core_barrier on both cores: they must mean the same data."""
    (run, data_0), (_, data_1) = (meeting.offer for meeting in meetings)
    shared = MemoryRegion.shared_hbm
    if data_0.storage is not data_1.storage and shared in (data_0.buffer, data_1.buffer):
        raise ConstraintError(
            f"core_barrier: core 0 waits for {data_0!r} ({meetings[0].location}), core 1 for {data_1!r} "
            f"({meetings[1].location})",
            location=meetings[0].location,
            hint="both cores must pass the same tensor",
        )
    run.logical_core.meetings += 1
    return lambda: None
