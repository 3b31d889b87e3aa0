"""The run that the current thread executes: what instructions charge, check against and record into.

Thread-local, as the programs that run side by side (two cores, several ranks) are one thread each.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

import numpy as np

from neuron_port.simulator.errors import PACKAGE, SimulatorError, location_of
from neuron_port.simulator.limits import (
    DEFAULT_LIMITS,
    FIRST_HOST_CHECK_BYTES,
    Limits,
    check_host_memory,
    hbm_capacity_bytes,
    refuse_allocations,
    refuse_hbm,
    refuse_instructions,
)
from neuron_port.simulator.memory import Allocation
from neuron_port.simulator.target import Target
from neuron_port.simulator.trace import ON_CHIP, NkiInstruction, Trace, engine

if TYPE_CHECKING:
    from neuron_port.simulator.cores import LogicalCore, Scheduler
    from neuron_port.simulator.instructions.accumulators import Registers
    from neuron_port.simulator.tensor import NkiTensor


class Run:
    """State of one program of one kernel call: the whole call, or one core of a logical core."""

    __slots__ = (
        "accumulators",
        "allocations",
        "hbm_bytes",
        "hbm_limit_bytes",
        "hbm_read_bytes",
        "hbm_write_bytes",
        "host_bytes",
        "host_check_bytes",
        "instruction_limit",
        "instructions",
        "limits",
        "logical_core",
        "loops",
        "macs",
        "no_reorder_depth",
        "num_programs",
        "position",
        "program_id",
        "program_ndim",
        "random_states",
        "rank",
        "ranks",
        "scheduler",
        "scratch",
        "target",
        "trace",
        "undefined_reads",
        "warnings",
    )

    def __init__(self, target: Target, limits: Limits = DEFAULT_LIMITS) -> None:
        self.target = target
        self.trace = Trace()
        self.instructions = self.trace.instructions
        self.allocations: list[Allocation] = self.trace.allocations
        self.accumulators: dict[engine, Registers] = {}  # 128 float32 registers for each engine
        self.random_states: dict[engine, np.ndarray] = {}  # [128, words] uint32, of the engine's generators
        self.hbm_read_bytes = 0
        self.hbm_write_bytes = 0
        self.macs = 0
        self.program_id = 0
        self.num_programs = 1
        self.no_reorder_depth = 0  # nl.no_reorder blocks around the kernel's current line
        self.program_ndim = 0  # dimensions of the launch grid: 1 for kernel[1] and kernel[2]
        self.logical_core: LogicalCore | None = None  # of two cores, when the kernel runs on both
        self.rank = 0
        self.ranks = 1
        self.scheduler: Scheduler | None = None  # of the programs that run side by side
        self.position = 0  # this program's place in it
        self.loops: list[tuple[CodeType | None, int, int]] = []  # hardware loops: code, line, iterations
        self.limits = limits
        self.instruction_limit = limits.instructions
        self.hbm_bytes = 0  # inputs and tensors in HBM, in their own dtypes
        self.hbm_limit_bytes = hbm_capacity_bytes(target) if limits.hbm_bytes is None else limits.hbm_bytes
        self.host_bytes = 0  # of all arrays that were allocated, whether they are still needed or not
        self.host_check_bytes = FIRST_HOST_CHECK_BYTES  # at how many of them to look at the machine's memory
        self.scratch: np.ndarray | None = None
        self.warnings: dict[str, None] = {}  # ordered set: a loop warns once per source line
        self.undefined_reads: list[Any] = []  # unwritten elements that the running instruction reads

    def warn(self, message: str) -> None:
        """Note something legal but probably wrong on the device, once per source line."""
        code, line = caller()
        self.warnings[f"{location_of(code, line)}: {message}"] = None

    def charge(self, allocation: Allocation, elements: int) -> None:
        """Count a tensor of that many elements against the limits, before its array is made.

        Raises:
            LimitError: too many tensors, too much HBM, too much memory of the host.
        """
        allocations = self.allocations
        if len(allocations) >= self.limits.allocations:
            refuse_allocations(self.limits.allocations)
        allocations.append(allocation)
        held = elements * allocation.held_bytes
        if allocation.buffer not in ON_CHIP:
            self._charge_hbm(allocation, elements)
        if self.host_bytes + held > self.host_check_bytes:
            check_host_memory(held, self.limits.host_bytes, allocation)
            self.host_check_bytes = self.host_bytes + held + FIRST_HOST_CHECK_BYTES
        self.host_bytes += held

    def charge_input(self, allocation: Allocation, elements: int) -> None:
        """Count an input, which the host holds already, against the HBM of the target."""
        self.allocations.append(allocation)
        self._charge_hbm(allocation, elements)

    def _charge_hbm(self, allocation: Allocation, elements: int) -> None:
        self.hbm_bytes += elements * allocation.dtype.itemsize
        if self.hbm_bytes > self.hbm_limit_bytes:
            refuse_hbm(allocation, self.hbm_bytes, self.hbm_limit_bytes, self.limits.hbm_bytes is not None)

    def count_loop(self, iterations: int) -> None:
        """Note that a hardware loop at the kernel's line has run that many iterations."""
        code, line = caller()
        self.loops.append((code, line, iterations))


class _Context(threading.local):
    run: Run | None = None


context = _Context()


def current_run() -> Run:
    """The run of this thread.

    Raises:
        SimulatorError: no kernel is running.
    """
    run = context.run
    if run is None:
        raise SimulatorError(
            "nki functions work only inside a running kernel",
            hint="call the kernel through run_kernel(...) or simulate(...)",
        )
    return run


_is_own_file: dict[str, bool] = {}  # file name -> whether it belongs to the simulator


def caller() -> tuple[CodeType | None, int]:
    """(code, line) of the innermost kernel frame."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        own = _is_own_file.get(code.co_filename)
        if own is None:
            own = _is_own_file[code.co_filename] = code.co_filename.startswith(PACKAGE)
        if not own:
            return code, frame.f_lineno
        frame = frame.f_back
    return None, 0


def record(
    opcode: str,
    on: engine,
    operands: Sequence[NkiTensor],
    name: str | None = None,
    *,
    writes: int = 1,
    macs: int = 0,
    dma_bytes: int = 0,
    **attributes: Any,
) -> NkiInstruction:
    """Append one executed instruction to the trace and return it.

    `operands` are all tensors that it touched, the first `writes` of them destinations; `attributes` are facts
    that the latency model needs and operands do not show.
    """
    run = context.run or current_run()
    instructions = run.instructions
    index = len(instructions)
    if index >= run.instruction_limit:
        refuse_instructions(run.instruction_limit)
    code, line = caller()
    instruction = NkiInstruction(
        index,
        opcode,
        on,
        code,
        line,
        [t.recorded() for t in operands],
        name,
        writes,
        macs,
        dma_bytes,
        attributes,
    )
    instructions.append(instruction)
    if run.undefined_reads:
        from neuron_port.simulator.undefined import spread

        spread(run, opcode, operands, writes, attributes)
    if run.logical_core is not None:
        run.logical_core.note_writes(run, instruction, operands)
    return instruction
