"""What the simulator refuses, each by its own class; every message opens with the kernel's file and line.

The package is self-contained, so these do not derive from `neuron_port.errors`; they carry the same `message`
and `hint`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import CodeType, FrameType

PACKAGE = str(Path(__file__).parent)


def kernel_frame(depth: int = 1) -> FrameType | None:
    """The innermost calling frame that is not the simulator's own code: the kernel's line, or None."""
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None and frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    return frame


def location_of(code: CodeType | None, line: int) -> str:
    """`file:line` of a remembered place in a kernel."""
    return f"{code.co_filename}:{line}" if code is not None else "<unknown>"


class SimulatorError(Exception):
    """One sentence about what the hardware would not do; `location` is the kernel's line, `hint` the cure."""

    def __init__(self, message: str, *, hint: str | None = None, location: str | None = None) -> None:
        super().__init__(message)
        if location is None:
            frame = kernel_frame(2)
            location = location_of(frame.f_code, frame.f_lineno) if frame is not None else None
        self.message = message
        self.hint = hint
        self.location = location

    def __str__(self) -> str:
        text = f"{self.location}: {self.message}" if self.location else self.message
        return text if self.hint is None else f"{text}\n  hint: {self.hint}"


class ConstraintError(SimulatorError):
    """An instruction breaks a rule of the hardware: buffer, shape, dtype, start partition, generation."""


class CapacityError(SimulatorError):
    """SBUF or PSUM would overflow."""


class UnwrittenReadError(SimulatorError):
    """An element is read that nothing has written."""


class OutOfBoundsError(SimulatorError):
    """An index, a slice or an access pattern leaves its tensor."""


class AccumulationError(SimulatorError):
    """A matmul accumulates onto PSUM contents that the hardware cannot accumulate onto."""


class OutputError(SimulatorError):
    """A kernel returns something that is not a fully written tensor in shared HBM."""


class SynchronizationError(SimulatorError):
    """Programs that should meet never do: a barrier, a sendrecv or a collective without its counterpart."""


class RaceError(SimulatorError):
    """Both cores touch the same bytes of shared HBM, one writes, and nothing orders them."""


class HazardError(SimulatorError):
    """Data is read after its memory was given to other data."""


class LimitError(SimulatorError):
    """The kernel used up a limit of the run: instructions, time, memory, allocations, recursion."""


class UnsupportedError(SimulatorError):
    """Part of NKI that this simulator does not cover; it never guesses."""


class SimulatorWarning(UserWarning):
    """Category of what `KernelRun.warnings` holds: legal, but probably wrong on the device."""
