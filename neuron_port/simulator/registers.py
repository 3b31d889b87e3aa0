"""Sequencer registers: 32-bit integers that address instructions and bound loops at run time."""

from __future__ import annotations

import linecache
import re
from typing import NoReturn

from neuron_port.simulator.context import current_run
from neuron_port.simulator.errors import ConstraintError, UnsupportedError, UnwrittenReadError, kernel_frame
from neuron_port.simulator.limits import refuse_instructions
from neuron_port.simulator.loop_state import PythonState


class VirtualRegister:
    """A scalar that only the device knows; Python may not look at it, except as the condition of a `while`."""

    __slots__ = ("_frozen", "_state", "_turns", "_value")

    def __init__(self, state: int | None = None, frozen: bool = False) -> None:
        self._value = state
        self._frozen = frozen  # the variable of a dynamic_range loop
        self._turns = 0  # of the `while` loop whose condition it is
        self._state: PythonState | None = None  # of the kernel when that loop began

    @property
    def value(self) -> int:
        """The integer that it holds (for instructions, not for kernels)."""
        if self._value is None:
            raise UnwrittenReadError(
                "a register is read before it was written", hint="nisa.register_move(register, 0)"
            )
        return self._value

    def set(self, value: int) -> None:
        """Hold `value` as a signed 32-bit integer."""
        if self._frozen:
            raise ConstraintError(
                "the variable of an nl.dynamic_range loop is written; the loop would not notice",
                hint="copy it first: register = nisa.register_alloc(); nisa.register_move(register, variable)",
            )
        self._value = (int(value) + 2**31) % 2**32 - 2**31

    def __bool__(self) -> bool:
        """Whether `while register:` goes on; the deprecated form of nl.while_loop, a hardware loop as well."""
        frame = kernel_frame(2)
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno) if frame is not None else ""
        if not re.match(r"\s*while\b", line):
            self._unknown()
        run = current_run()
        run.warn("`while register:` is deprecated in NKI 0.6; use nl.while_loop(register, body)")
        if self._state is None:
            self._state = PythonState(frame)
        else:
            self._state.check(bounds_at_run_time=True)
        if self.value == 0:
            run.count_loop(self._turns)
            self._turns = 0
            self._state = None
            return False
        self._turns += 1
        if self._turns > run.instruction_limit:
            refuse_instructions(run.instruction_limit)
        return True

    def _unknown(self, *_: object) -> NoReturn:
        raise UnsupportedError(
            "a register is used as a Python value; its contents exist only on the device",
            hint="use it as scalar_offset, as a bound of nl.fori_loop, or as the condition of nl.while_loop",
        )

    __index__ = __int__ = __float__ = _unknown
    __lt__ = __le__ = __gt__ = __ge__ = __add__ = __sub__ = __mul__ = _unknown
