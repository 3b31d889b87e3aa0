"""A kernel's reference as a program of its own, for the computation that its custom call carries along."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram

from neuron_port.lower.decomposition import decompose


def reference_key(name: str, bound: Mapping[str, Any]) -> str:
    """A name for the reference on operands of these shapes and dtypes, equal for equal calls and in every process."""
    return f"{name}({', '.join(f'{key}={_described(item)}' for key, item in bound.items())})"


def _described(item: Any) -> str:
    if not isinstance(item, torch.Tensor):
        return repr(item)
    return f"{str(item.dtype).removeprefix('torch.')}{list(item.shape)}".replace(" ", "")


def reference_program(reference: Callable[..., Any], bound: Mapping[str, Any]) -> ExportedProgram:
    """The reference in core ATen. Tensors of `bound` become the program's inputs, in order; the rest is fixed."""
    names = [name for name, item in bound.items() if isinstance(item, torch.Tensor)]
    examples = tuple(torch.empty(bound[name].shape, dtype=bound[name].dtype, device="meta") for name in names)
    fixed = {name: item for name, item in bound.items() if name not in names}
    with torch.no_grad():
        return decompose(torch.export.export(_Reference(reference, names, fixed), examples, strict=False))


class _Reference(torch.nn.Module):
    """The reference as a module: torch.export takes no plain function."""

    def __init__(self, reference: Callable[..., Any], names: list[str], fixed: Mapping[str, Any]) -> None:
        super().__init__()
        self.reference, self.names, self.fixed = reference, names, dict(fixed)

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.reference(**dict(zip(self.names, tensors, strict=True)), **self.fixed)
