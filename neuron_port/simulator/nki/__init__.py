"""The face of the simulator: the same modules and names as AWS `nki`, so kernels run unmodified."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from neuron_port.simulator.errors import SimulatorError, UnsupportedError
from neuron_port.simulator.nki import compiler, constants, dtype, isa, language, meta, tensor, typing
from neuron_port.simulator.nki.host import simulate

__all__ = [
    "Kernel", "collectives", "compiler", "dtype", "isa", "jit", "language", "meta", "simulate", "tensor",
    "typing",
]  # fmt: skip

isa.constants = constants  # AWS's isa is a package with this module

LNC_DEGREES = (1, 2)


class Kernel:
    """A function marked by `@nki.jit`; `run_kernel` executes its `function` on `lnc` cores.

    lnc is None until kernel[1] or kernel[2] gives the launch a grid.
    """

    def __init__(self, function: Callable[..., Any], lnc: int | None = None) -> None:
        self.function = function
        self.lnc = lnc
        self.__name__ = getattr(function, "__name__", type(function).__name__)
        self.__doc__ = function.__doc__
        self.__wrapped__ = function

    def __call__(self, *arrays: Any, **attributes: Any) -> Any:
        """Inside another kernel, inline the function and warn; elsewhere there is no device to run on.

        The language guide says that sub-kernels do not compile; AWS's own kernels call theirs so.

        Raises:
            SimulatorError: called outside a kernel.
        """
        from neuron_port.simulator.context import context

        if context.run is None:
            raise SimulatorError(
                f"kernel `{self.__name__}` is called directly, which runs it on a device",
                hint="run it with run_kernel(kernel, ...) or nki.simulate(kernel)(...)",
            )
        context.run.warn(
            f"kernel `{self.__name__}`, marked @nki.jit, is called inside another kernel; the compiler may refuse it"
        )
        return self.function(*arrays, **attributes)

    def __getitem__(self, lnc: Any) -> Kernel:
        """The kernel launched on `lnc` physical cores of a logical core: kernel[2](...)."""
        degree = lnc[0] if isinstance(lnc, tuple | list) and len(lnc) == 1 else lnc
        if isinstance(degree, bool) or not isinstance(degree, int) or degree not in LNC_DEGREES:
            raise UnsupportedError(
                f"kernel `{self.__name__}` is launched with [{lnc}]",
                hint="the launch grid is the number of physical cores of a logical core: kernel[1] or kernel[2]",
            )
        return Kernel(self.function, degree)

    def __repr__(self) -> str:
        return f"<nki kernel `{self.__name__}`>"


def jit(fn: Callable[..., Any] | None = None, **kwargs: Any) -> Any:
    """Mark a kernel. Options, also those of earlier versions (`mode`, `debug_kernel`, ...), have no effect.

    Raises:
        UnsupportedError: `platform_target`, which the real decorator refuses too.
    """
    if "platform_target" in kwargs:
        raise UnsupportedError(
            "nki.jit no longer takes `platform_target`", hint="choose the target when running"
        )
    return Kernel(fn) if fn is not None else Kernel


def __getattr__(name: str) -> Any:
    if name == "collectives":
        import importlib

        return importlib.import_module(f"{__name__}.collectives")
    raise AttributeError(f"nki has no `{name}`")
