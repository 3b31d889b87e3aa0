"""Runs a recipe's operator: through its torch reference, or through its NKI kernel on the simulator.

Both take and return torch tensors, so that `Recipe.forward`, the torch custom ops and the proofs can use either.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import ml_dtypes
import numpy as np
import torch
from threadpoolctl import ThreadpoolController

from neuron_port.registry import RegisteredRecipe
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


class SimulatedOperator:
    """A recipe's kernel on the simulator, called like its reference.

    Weights named by `share_weights` are brought into the simulator's form once, not once per call.
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
        self._function = load_kernel_source(kernel.source, kernel.entry_point, f"{kernel.name}/kernel.py")
        self._weight_ids: set[int] = set()
        self._held: dict[int, HbmArray] = {}

    def __call__(self, *args: Any, **attributes: Any) -> Any:
        values = (
            dict(zip((*self.tensor_arguments, *self.attribute_arguments), args, strict=False)) | attributes
        )
        tensors = [self._hbm(values[name]) for name in self.tensor_arguments if values.get(name) is not None]
        options = {name: values[name] for name in self.attribute_arguments if name in values}
        with _blas().limit(limits=1, user_api="blas"):
            run = run_kernel(self._function, *tensors, target=self.target, **options)
        results = tuple(to_torch(output) for output in run.outputs)
        return results[0] if len(results) == 1 else results

    def share_weights(self, weights: Iterable[torch.Tensor]) -> None:
        """Keep these tensors in the simulator's form, once converted. The caller keeps them alive."""
        self._weight_ids.update(map(id, weights))

    def _hbm(self, tensor: torch.Tensor) -> HbmArray | np.ndarray:
        if id(tensor) not in self._weight_ids:
            return to_numpy(tensor)
        if id(tensor) not in self._held:
            self._held[id(tensor)] = to_hbm(to_numpy(tensor))
        return self._held[id(tensor)]


def simulated_operator(found: RegisteredRecipe, target: str) -> SimulatedOperator:
    """The recipe's kernel, ready to be called, under the rules of `target`."""
    recipe = found.recipe
    return SimulatedOperator(found.kernel, recipe.tensor_arguments, recipe.attribute_arguments, target)
