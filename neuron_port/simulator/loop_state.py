"""Python values around a hardware loop: the device runs the body that was traced once, so none of them may change.

`count = count + 1` in a hardware loop has the value of one turn on the device, whatever the simulator counts; a list
that the body appends to has one element there. Both are refused where the turn ends in which they change.
"""

from __future__ import annotations

from pathlib import Path
from types import FrameType
from typing import Any

from neuron_port.simulator.errors import PACKAGE, ConstraintError, kernel_frame

_NUMBERS_AND_TEXT = (bool, int, float, str, type(None))
_CONTAINERS = (list, tuple, dict)
_RUNNER = str(Path(PACKAGE) / "runner.py")
_DEEPEST = 4  # levels of containers that are looked into


class PythonState:
    """The numbers, texts and containers that the kernel's functions hold when a hardware loop starts."""

    __slots__ = ("_containers", "_frames", "_numbers", "_turns")

    def __init__(self, frame: FrameType | None) -> None:
        self._frames = _kernel_frames(frame)
        self._containers = [_held(frame, _CONTAINERS) for frame in self._frames]
        self._numbers = [_held(frame, _NUMBERS_AND_TEXT) for frame in self._frames]
        self._turns = 0

    def check(self, bounds_at_run_time: bool) -> None:
        """At the end of a turn: refuse what has changed.

        A number may get its value in the first turn, unless only the device knows whether there is one.

        Raises:
            ConstraintError: a container or a number that was there before the loop has changed.
        """
        self._turns += 1
        for place, frame in enumerate(self._frames):
            now = _held(frame, _CONTAINERS)
            _refuse_changes(frame, self._containers[place], now)
            numbers = _held(frame, _NUMBERS_AND_TEXT)
            if self._turns > 1 or bounds_at_run_time:
                _refuse_changes(frame, self._numbers[place], numbers)
            self._numbers[place] = {name: numbers[name] for name in self._numbers[place] if name in numbers}


def _refuse_changes(frame: FrameType, before: dict[str, Any], now: dict[str, Any]) -> None:
    for name, value in before.items():
        if name in now and now[name] != value:
            raise ConstraintError(
                f"the Python value `{name}` changes in a hardware loop; the device repeats the body as it was traced "
                "once",
                hint="compute with the loop's register, carry values in SBUF, or unroll with nl.static_range",
                location=f"{frame.f_code.co_filename}:{frame.f_lineno}",
            )


def _kernel_frames(frame: FrameType | None) -> list[FrameType]:
    """The kernel's functions that are being executed, innermost first, up to the one that was launched."""
    frames = []
    while frame is not None:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            frames.append(frame)
        elif frame.f_code.co_filename == _RUNNER:
            break
        frame = frame.f_back
    return frames


def _held(frame: FrameType, kinds: tuple[type, ...]) -> dict[str, Any]:
    """The frame's local values of these kinds by name, in a form that later changes leave as it is."""
    return {name: _frozen(value, 0) for name, value in frame.f_locals.items() if isinstance(value, kinds)}


def _frozen(value: Any, depth: int) -> Any:
    if isinstance(value, _NUMBERS_AND_TEXT):
        return (type(value), value if value == value else "nan")
    if not isinstance(value, _CONTAINERS) or depth == _DEEPEST:
        return id(value)
    if isinstance(value, dict):
        return [(key, _frozen(item, depth + 1)) for key, item in value.items()]
    return [_frozen(item, depth + 1) for item in value]


def state_here() -> PythonState:
    """The state of the kernel that called the simulator."""
    return PythonState(kernel_frame(2))
