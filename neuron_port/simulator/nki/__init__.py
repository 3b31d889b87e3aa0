"""The face of the simulator: the same modules and names as AWS `nki`, so kernels run unmodified."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from neuron_port.simulator.errors import SimulatorError, UnsupportedError
from neuron_port.simulator.nki import isa, language

__all__ = ["Kernel", "isa", "jit", "language", "simulate"]


class Kernel:
    """A function marked by `@nki.jit`; `run_kernel` executes its `function`."""

    def __init__(self, function: Callable[..., Any], lnc: int = 1) -> None:
        self.function = function
        self.lnc = lnc
        self.__name__ = function.__name__
        self.__doc__ = function.__doc__
        self.__wrapped__ = function

    def __call__(self, *arrays: Any, **attributes: Any) -> Any:
        raise SimulatorError(
            f"kernel `{self.__name__}` is called directly",
            hint="run it with run_kernel(kernel, ...) or simulate(kernel)(...); inside another "
            "kernel call a plain function",
        )

    def __getitem__(self, lnc: int) -> Kernel:
        if lnc != 1:
            raise UnsupportedError(
                f"kernel `{self.__name__}` is launched on {lnc} cores; one core is simulated",
                hint="launch with kernel[1]",
            )
        return self

    def __repr__(self) -> str:
        return f"<nki kernel `{self.__name__}`>"


def jit(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Mark a kernel. Options of the real decorator are accepted; removed ones are refused."""
    for removed in ("mode", "platform_target"):
        if removed in options:
            raise UnsupportedError(
                f"nki.jit no longer takes `{removed}`", hint="choose the target when running"
            )
    return Kernel(function) if function is not None else Kernel


def simulate(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A callable that runs the kernel on numpy arrays."""
    from neuron_port.simulator.runner import simulate as simulated

    return simulated(kernel)
