"""Runs a recipe's operator: through its torch reference, or through its NKI kernel on the simulator.

Both take and return torch tensors, so that `Recipe.forward`, the torch custom ops and the proofs can use either.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import ml_dtypes
import numpy as np
import torch
from threadpoolctl import ThreadpoolController

from neuron_port.registry import RegisteredRecipe
from neuron_port.sandbox.worker import HeldArray, SandboxWorker
from neuron_port.simulator import HbmArray, load_kernel_source, run_kernel, to_hbm
from neuron_port.types import Kernel

Operator = Callable[..., Any]


@functools.cache
def _blas() -> ThreadpoolController:
    """A tile's product takes a few hundred microseconds: threads cost it more than they give (measured: 4x slower)."""
    return ThreadpoolController()


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's values without a copy where memory allows; bfloat16 becomes ml_dtypes.bfloat16."""
    tensor = tensor.detach().contiguous()
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    if tensor.dtype is torch.int64:
        return tensor.to(torch.int32).numpy()
    return tensor.numpy()


def to_torch(array: np.ndarray) -> torch.Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(np.require(array.view(np.int16), requirements=["C", "W"])).view(
            torch.bfloat16
        )
    return torch.from_numpy(
        np.require(array, requirements=["C", "W"])
    )  # copied when it is somebody else's memory


class KernelOperator(ABC):
    """A recipe's kernel, called like its reference.

    Weights named by `share_weights` are brought into the form that the kernel reads once, not once per call.
    """

    def __init__(
        self,
        kernel: Kernel,
        tensor_arguments: tuple[str, ...],
        attribute_arguments: tuple[str, ...],
        target: str,
    ) -> None:
        self.kernel = kernel
        self.tensor_arguments = tensor_arguments
        self.attribute_arguments = attribute_arguments
        self.target = target
        self._weight_ids: set[int] = set()
        self._held: dict[int, Any] = {}

    def __call__(self, *args: Any, **attributes: Any) -> Any:
        names = (*self.tensor_arguments, *self.attribute_arguments)
        values = dict(zip(names, args, strict=False)) | attributes
        given = [values.get(name) for name in self.tensor_arguments]
        tensors = [None if tensor is None else self._form_of(tensor) for tensor in given]
        options = {name: values[name] for name in self.attribute_arguments if name in values}
        results = tuple(to_torch(output) for output in self._run(tensors, options))
        return results[0] if len(results) == 1 else results

    def share_weights(self, weights: Iterable[torch.Tensor]) -> None:
        """Keep these tensors in the kernel's form, once converted. The caller keeps them alive."""
        self._weight_ids.update(map(id, weights))

    def _form_of(self, tensor: torch.Tensor) -> Any:
        if id(tensor) not in self._weight_ids:
            return to_numpy(tensor)
        if id(tensor) not in self._held:
            self._held[id(tensor)] = self._hold(to_numpy(tensor))
        return self._held[id(tensor)]

    @abstractmethod
    def _hold(self, array: np.ndarray) -> Any:
        """What stands for a weight in `_run`."""

    @abstractmethod
    def _run(self, tensors: list[Any], options: dict[str, Any]) -> tuple[np.ndarray, ...]:
        """The kernel's outputs."""


class SimulatedOperator(KernelOperator):
    """A kernel that people have read, on the simulator in this process."""

    def __init__(
        self,
        kernel: Kernel,
        tensor_arguments: tuple[str, ...],
        attribute_arguments: tuple[str, ...],
        target: str,
    ) -> None:
        super().__init__(kernel, tensor_arguments, attribute_arguments, target)
        assert kernel.origin != "draft", f"the draft `{kernel.name}` runs in a sandbox only"
        self._function = load_kernel_source(kernel.source, kernel.entry_point, f"{kernel.name}/kernel.py")

    def _hold(self, array: np.ndarray) -> HbmArray:
        return to_hbm(array)

    def _run(self, tensors: list[Any], options: dict[str, Any]) -> tuple[np.ndarray, ...]:
        with _blas().limit(limits=1, user_api="blas"):
            return run_kernel(self._function, *tensors, target=self.target, **options).outputs


class SandboxedOperator(KernelOperator):
    """A kernel that a language model wrote, on the simulator in a confined process of its own, started when needed."""

    @functools.cached_property
    def _worker(self) -> SandboxWorker:
        kernel = self.kernel
        return SandboxWorker(kernel.source, kernel.entry_point, self.target, name=f"{kernel.name}/kernel.py")

    def _hold(self, array: np.ndarray) -> HeldArray:
        return self._worker.hold(array)

    def _run(self, tensors: list[Any], options: dict[str, Any]) -> tuple[np.ndarray, ...]:
        while (
            tensors and tensors[-1] is None
        ):  # what crosses to the worker are arrays; its own default is None
            tensors.pop()
        return self._worker.call(tensors, options)


def simulated_operator(found: RegisteredRecipe, target: str) -> KernelOperator:
    """The recipe's kernel, ready to be called, under the rules of `target`; a draft's kernel runs in a sandbox."""
    recipe = found.recipe
    kind = SandboxedOperator if found.kernel.origin == "draft" else SimulatedOperator
    return kind(found.kernel, recipe.tensor_arguments, recipe.attribute_arguments, target)
