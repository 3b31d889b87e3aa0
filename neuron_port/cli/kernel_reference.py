"""A reference function of the user's: plain Python on torch tensors or NumPy arrays, called on a kernel's inputs."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import torch

from neuron_port.cli.kernel_call import KernelError, split_place
from neuron_port.errors import NeuronPortError, UsageError
from neuron_port.execution import to_numpy, to_torch
from neuron_port.simulator.loader import install_as_nki

FLOAT8 = tuple(
    np.dtype(native) for native in (ml_dtypes.float8_e4m3, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)
)


class Reference:
    """A function of a reference file, called on the kernel's inputs."""

    def __init__(self, place: str) -> None:
        self.path, self.name = split_place(place)
        self.function = _function(_load(self.path), self.path, self.name)
        self.framework = _framework(self.function)

    def answers(self, arguments: Mapping[str, Any], compute: torch.dtype | None) -> list[torch.Tensor]:
        """Its outputs, with every floating-point input first cast to `compute`; None leaves them as they are."""
        keywords, positional = self._matched(arguments)
        try:
            with torch.no_grad(), contextlib.redirect_stdout(sys.stderr):
                returned = self.function(
                    *[self._converted(value, compute) for value in positional],
                    **{name: self._converted(value, compute) for name, value in keywords.items()},
                )
        except Exception as error:  # a stranger's function: its failure is an outcome
            raise KernelError(
                f"Reference `{self.name}` failed: {type(error).__name__}: {error}",
                hint=f"It was called with {self.framework} inputs.",
            ) from error
        if isinstance(returned, dict):  # as nki-library's references do: in the order of the kernel's outputs
            returned = tuple(returned.values())
        outputs = returned if isinstance(returned, (tuple, list)) else (returned,)
        for output in outputs:
            if not isinstance(output, (torch.Tensor, np.ndarray, np.generic)):
                raise KernelError(
                    f"Reference `{self.name}` returns a {type(output).__name__}",
                    hint="Return an array or a tensor, or a tuple or dict of them.",
                )
        return [as_torch(output) for output in outputs]

    def left_out(self, arguments: Mapping[str, Any]) -> list[str]:
        """Settings of the kernel that the reference does not take."""
        keywords, positional = self._matched(arguments)
        return [] if positional else [name for name in arguments if name not in keywords]

    def _matched(self, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]]:
        """By name where the reference has the kernel's names, else the arrays by position and the rest by name."""
        parameters = inspect.signature(self.function).parameters
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        arrays = [name for name, value in arguments.items() if isinstance(value, np.ndarray)]
        named = {name: value for name, value in arguments.items() if takes_any or name in parameters}
        if all(name in named for name in arrays):
            return named, []
        return {name: value for name, value in named.items() if name not in arrays}, [
            arguments[name] for name in arrays
        ]

    def _converted(self, value: Any, compute: torch.dtype | None) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        tensor = as_torch(value)
        if compute is not None and tensor.is_floating_point():
            tensor = tensor.to(compute)
        if self.framework == "torch":
            return tensor
        return to_numpy(tensor)


def _load(path: Path) -> ModuleType:
    """The reference file as a module; its folder, or its package's, can be imported from."""
    root, parts = path.resolve().parent, [path.stem]
    while (root / "__init__.py").is_file():
        parts.insert(0, root.name)
        root = root.parent
    name = ".".join(parts) if len(parts) > 1 else f"neuron_port_reference_{path.stem}"
    if str(root) not in sys.path:
        sys.path.append(str(root))
    try:
        install_as_nki()  # references stand beside kernels, often in one file, and import what those import
        if len(parts) > 1:
            return importlib.import_module(name)
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise UsageError(f"Reference file `{path}` is no Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except NeuronPortError:
        raise
    except Exception as error:  # a stranger's file: its failure is an outcome
        raise KernelError(
            f"Reference file `{path}` cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    return module


def _function(module: ModuleType, path: Path, name: str) -> Callable[..., Any]:
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise UsageError(
            f"`{path}` defines no function `{name}`", hint=f"It defines {', '.join(known) or 'none'}."
        )
    found: Callable[..., Any] = function
    return found


def _framework(function: Callable[..., Any]) -> str:
    """What the function takes: its annotations decide, then what its file imports; NumPy when nothing says torch."""
    said = " ".join(str(annotation) for annotation in getattr(function, "__annotations__", {}).values())
    if "torch" in said or "Tensor" in said:
        return "torch"
    if "ndarray" in said or "numpy" in said:
        return "NumPy"
    return "torch" if "torch" in getattr(function, "__globals__", {}) else "NumPy"


def as_torch(value: Any) -> torch.Tensor:
    """An array or a tensor as a tensor of the same values; 8-bit floats become float32, unsigned integers int64."""
    if isinstance(value, torch.Tensor):
        return value.detach()
    array = np.ascontiguousarray(value)
    if array.dtype in FLOAT8:
        array = array.astype(np.float32)
    elif array.dtype in (np.uint16, np.uint32):
        array = array.astype(np.int64)
    return to_torch(array)
