"""Sequencer registers: 32-bit integers that address instructions at run time."""

from __future__ import annotations

from typing import NoReturn

from neuron_port.simulator.errors import UnsupportedError, UnwrittenReadError


class VirtualRegister:
    """A scalar that only the device knows; Python may not look at it."""

    __slots__ = ("_value",)

    def __init__(self, state: int | None = None, frozen: bool = False) -> None:
        self._value = state

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
        self._value = (int(value) + 2**31) % 2**32 - 2**31

    def _unknown(self, *_: object) -> NoReturn:
        raise UnsupportedError(
            "a register is used as a Python value; its contents exist only on the device",
            hint="use it as scalar_offset, or as a bound of nl.fori_loop",
        )

    __bool__ = __index__ = __int__ = __float__ = _unknown
    __lt__ = __le__ = __gt__ = __ge__ = __add__ = __sub__ = __mul__ = _unknown
