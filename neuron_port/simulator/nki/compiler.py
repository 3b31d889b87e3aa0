"""`nki.compiler`: decorators that steer the compiler's passes; they leave a kernel's meaning as it is.

The compiler itself (frontends, drivers, backends) is no part of a simulator and raises by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from neuron_port.simulator.errors import UnsupportedError

__all__ = [
    "enable_stack_allocator",
    "force_auto_alloc",
    "skip_middle_end_transformations",
]


def enable_stack_allocator(
    function: Callable[..., Any] | None = None, log_level: Any = None
) -> Callable[..., Any]:
    """Allocation by stack order in the compiler; addresses are checked alike here."""
    return function if function is not None else _unchanged


def force_auto_alloc(function: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """Allocation by the compiler whatever addresses the kernel gives."""
    return function if function is not None else _unchanged


def skip_middle_end_transformations(function: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """The kernel as it is written; the simulator never transforms."""
    return function if function is not None else _unchanged


def _unchanged(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    raise UnsupportedError(
        f"nki.compiler.{name} is part of AWS's compiler, which is not here",
        hint="run the kernel with neuron_port.simulator, or compile where the Neuron SDK is installed",
    )
