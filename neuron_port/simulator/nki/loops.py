"""Loops and order of `nki.language`: ranges that unroll, hardware loops, and blocks that keep their order.

Every loop runs in program order here. A hardware loop notes its iterations in the trace, because what its body
allocates exists once on the device and ends with the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from neuron_port.simulator.context import Run, current_run
from neuron_port.simulator.errors import ConstraintError
from neuron_port.simulator.limits import refuse_instructions
from neuron_port.simulator.loop_state import state_here
from neuron_port.simulator.registers import VirtualRegister
from neuron_port.simulator.trace import LoopIteration


def static_range(start: int, stop: int | None = None, step: int = 1) -> range:
    """A loop that is unrolled when the kernel is traced; its bounds are compile-time integers."""
    return range(start) if stop is None else range(start, stop, step)


def affine_range(start: int, stop: int | None = None, step: int = 1) -> range:
    """Deprecated name of static_range."""
    return static_range(start, stop, step)


def sequential_range(start: int, stop: int | None = None, step: int = 1) -> range:
    """Deprecated name of static_range."""
    return static_range(start, stop, step)


def dynamic_range(start: Any, stop: Any = None, step: int = 1) -> Iterator[VirtualRegister]:
    """A hardware loop over registers that hold start, start + step, ... below stop; deprecated for fori_loop.

    start and stop are integers or registers; step is a positive compile-time integer. The loop variable is
    read-only.

    Raises:
        ConstraintError: a step that is none; a loop inside nl.no_reorder().
    """
    if stop is None:
        start, stop = 0, start
    values = _bounds("dynamic_range", start, stop, step)
    current_run().warn("nl.dynamic_range is deprecated in NKI 0.6; use nl.fori_loop(lower, upper, body)")
    return _iterate(values, isinstance(start, VirtualRegister) or isinstance(stop, VirtualRegister))


def _iterate(values: range, bounds_at_run_time: bool) -> Iterator[VirtualRegister]:
    loop = _HardwareLoop("dynamic_range", bounds_at_run_time)
    for value in values:
        loop.begin()
        yield VirtualRegister(value, frozen=True)
        loop.end()
    loop.finish()


def fori_loop(lower: Any, upper: Any, body_fun: Callable[[VirtualRegister], object], step: int = 1) -> None:
    """A hardware loop: body_fun(register) for lower, lower + step, ... below upper.

    lower and upper are integers or registers; step is a positive compile-time integer. The body gets its own
    copy of the loop variable, and carries state through SBUF or HBM.

    Raises:
        ConstraintError: a step that is none, a body that returns a value, a loop inside nl.no_reorder().
    """
    values = _bounds("fori_loop", lower, upper, step)
    loop = _HardwareLoop(
        "fori_loop", isinstance(lower, VirtualRegister) or isinstance(upper, VirtualRegister)
    )
    for value in values:
        loop.begin()
        if body_fun(VirtualRegister(value)) is not None:
            raise ConstraintError(
                "nl.fori_loop: the body returns a value", hint="carry state through SBUF or HBM"
            )
        loop.end()
    loop.finish()


def while_loop(init: VirtualRegister, body_fun: Callable[[VirtualRegister], VirtualRegister]) -> None:
    """A hardware loop: register = body_fun(register), as long as the register does not hold zero.

    The body gets a copy of the register and returns the one that holds the next condition.

    Raises:
        ConstraintError: an init or a result of the body that is no register; a loop inside nl.no_reorder().
    """
    register = _condition(init, "init")
    loop = _HardwareLoop("while_loop", True)
    while register.value != 0:
        loop.begin()
        register = _condition(body_fun(VirtualRegister(register.value)), "what the body returns")
        loop.end()
    loop.finish()


class no_reorder:  # noqa: N801 - AWS's name
    """`with nl.no_reorder():` a block whose instructions the device executes in program order."""

    __slots__ = ("_first", "_run")

    def __enter__(self) -> None:
        self._run: Run = current_run()
        self._run.no_reorder_depth += 1
        self._first = len(self._run.instructions)

    def __exit__(self, *_: object) -> None:
        run = self._run
        run.no_reorder_depth -= 1
        run.trace.ordered_blocks.append((self._first, len(run.instructions)))


class _HardwareLoop:
    """Notes the iterations of one execution of a hardware loop in the trace."""

    __slots__ = ("allocation", "bounds_at_run_time", "instruction", "iterations", "number", "run", "state")

    def __init__(self, name: str, bounds_at_run_time: bool) -> None:
        self.run = current_run()
        if self.run.no_reorder_depth:
            raise ConstraintError(
                f"nl.{name} inside nl.no_reorder() does not compile",
                hint="put the no_reorder block into the loop's body, or unroll with nl.static_range",
            )
        passes = self.run.trace.iterations
        self.number = passes[-1].loop + 1 if passes else 0
        self.iterations = 0
        self.bounds_at_run_time = bounds_at_run_time
        self.state = state_here()

    def begin(self) -> None:
        """An iteration starts."""
        self.instruction = len(self.run.instructions)
        self.allocation = len(self.run.allocations)
        self.iterations += 1
        if self.iterations > self.run.instruction_limit:
            refuse_instructions(self.run.instruction_limit)

    def end(self) -> None:
        """An iteration has ended."""
        self.state.check(self.bounds_at_run_time)
        run = self.run
        run.trace.iterations.append(
            LoopIteration(
                self.number,
                self.instruction,
                len(run.instructions),
                self.allocation,
                len(run.allocations),
            )
        )

    def finish(self) -> None:
        """The loop has ended."""
        self.run.count_loop(self.iterations)


def _bounds(name: str, lower: Any, upper: Any, step: Any) -> range:
    """The values of the loop variable."""
    if isinstance(step, bool) or not isinstance(step, int) or step < 1:
        raise ConstraintError(f"nl.{name}: step is {step!r}, must be a positive compile-time integer")
    for label, bound in (("lower", lower), ("upper", upper)):
        if not isinstance(bound, int | VirtualRegister):
            raise ConstraintError(
                f"nl.{name}: the {label} bound is {bound!r}, must be an integer or a register",
                hint="load a value of a tile with nisa.register_load",
            )
    first, last = (b.value if isinstance(b, VirtualRegister) else b for b in (lower, upper))
    return range(first, last, step)


def _condition(register: Any, what: str) -> VirtualRegister:
    if not isinstance(register, VirtualRegister):
        raise ConstraintError(
            f"nl.while_loop: {what} is {register!r}, must be a register",
            hint="make one with nisa.register_alloc, load it with nisa.register_load, and return it",
        )
    return register
