"""The run that the current thread executes: what instructions charge, check against and record into.

Thread-local, so that the two cores of a logical NeuronCore can later run as two threads.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

import numpy as np

from neuron_port.simulator.errors import PACKAGE, SimulatorError, location_of
from neuron_port.simulator.memory import Allocation
from neuron_port.simulator.target import Target
from neuron_port.simulator.trace import NkiInstruction, Trace, engine

if TYPE_CHECKING:
    from neuron_port.simulator.tensor import NkiTensor


class Run:
    """State of one kernel call."""

    __slots__ = (
        "accumulators",
        "allocations",
        "hbm_read_bytes",
        "hbm_write_bytes",
        "instructions",
        "macs",
        "num_programs",
        "program_id",
        "scratch",
        "target",
        "trace",
        "warnings",
    )

    def __init__(self, target: Target) -> None:
        self.target = target
        self.trace = Trace()
        self.instructions = self.trace.instructions
        self.allocations: list[Allocation] = self.trace.allocations
        self.accumulators: dict[engine, np.ndarray] = {}  # one [128] float32 register per lane and engine
        self.hbm_read_bytes = 0
        self.hbm_write_bytes = 0
        self.macs = 0
        self.program_id = 0
        self.num_programs = 1
        self.scratch: np.ndarray | None = None
        self.warnings: dict[str, None] = {}  # ordered set: a loop warns once per source line

    def warn(self, message: str) -> None:
        """Note something legal but probably wrong on the device, once per source line."""
        code, line = caller()
        self.warnings[f"{location_of(code, line)}: {message}"] = None


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
    instructions = (context.run or current_run()).instructions
    code, line = caller()
    instruction = NkiInstruction(
        len(instructions),
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
    return instruction
