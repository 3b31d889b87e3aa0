"""`nki.simulate`: a kernel as a callable on host arrays, with AWS's calling conventions.

Unlike `run_kernel`, which keeps inputs read-only, arrays that the kernel writes are updated in place, as on a
device; and torch tensors go in and come out as torch tensors.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from neuron_port.simulator import dtypes
from neuron_port.simulator.errors import SimulatorError

TARGET_VARIABLE = "NEURON_PLATFORM_TARGET_OVERRIDE"
# torch dtypes that numpy lacks travel as integers of the same width.
_CARRIERS = {
    "bfloat16": ("int16", ml_dtypes.bfloat16),
    "float8_e5m2": ("uint8", ml_dtypes.float8_e5m2),
    "float8_e4m3fn": ("uint8", ml_dtypes.float8_e4m3fn),
}


def simulate(kernel: Callable[..., Any], *, target: Any = None) -> Callable[..., Any]:
    """A callable that runs `kernel` (jitted, `kernel[2]`, or a plain function) on numpy arrays or torch tensors.

    Outputs are of the inputs' family: numpy arrays, or torch tensors if any input is one. Input arrays that the
    kernel writes are updated in place. `target` is a target's name or record; without it the environment variable
    NEURON_PLATFORM_TARGET_OVERRIDE decides, and without that trn2.
    """

    def simulated(*arrays: Any, **attributes: Any) -> Any:
        from neuron_port.simulator.runner import call_kernel

        torch_used = any(_is_torch(value) for value in (*arrays, *attributes.values()))
        inputs = [InPlace(value) for value in arrays]
        keywords = {name: InPlace(value) for name, value in attributes.items()}
        chosen = target or os.environ.get(TARGET_VARIABLE, "trn2")
        run = call_kernel(
            kernel,
            [one.argument for one in inputs],
            {name: one.argument for name, one in keywords.items()},
            target=chosen,
        )
        for one in (*inputs, *keywords.values()):
            one.write_back()
        outputs = tuple(_as_torch(array) if torch_used else array for array in run.outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    return simulated


class InPlace:
    """One argument of a kernel: a host array that the kernel reads and writes where it lies, or a plain value."""

    def __init__(self, value: Any) -> None:
        self.copied_from: np.ndarray | None = None
        array = _torch_array(value) if _is_torch(value) else value
        if not isinstance(array, np.ndarray):
            self.argument = value
            return
        from neuron_port.simulator.runner import HbmArray

        dtype = dtypes.resolve(array.dtype)
        held = array.view(np.uint8) if array.dtype == np.bool_ else array
        writeable = held.flags.writeable
        if not held.flags.c_contiguous:
            held = np.ascontiguousarray(held)
            self.copied_from = array if writeable else None
        self.argument = HbmArray(held, dtype, mutable=writeable)

    def write_back(self) -> None:
        """Hand changes to an array that the kernel could not address itself."""
        if self.copied_from is not None:
            self.copied_from[...] = self.argument.held.view(self.copied_from.dtype)


def _is_torch(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _torch_array(tensor: Any) -> np.ndarray:
    """A numpy array on the tensor's own memory."""
    torch = sys.modules["torch"]
    if tensor.device.type != "cpu":
        raise SimulatorError(
            f"a torch tensor is on device `{tensor.device}`", hint="simulate with tensors on the CPU"
        )
    name = str(tensor.dtype).removeprefix("torch.")
    if name in _CARRIERS:
        carrier, native = _CARRIERS[name]
        return tensor.detach().view(getattr(torch, carrier)).numpy().view(native)
    return tensor.detach().numpy()


def _as_torch(array: np.ndarray) -> Any:
    torch = sys.modules["torch"]
    for name, (carrier, native) in _CARRIERS.items():
        if array.dtype == np.dtype(native):
            return torch.from_numpy(array.view(carrier)).view(getattr(torch, name))
    return torch.from_numpy(array)
