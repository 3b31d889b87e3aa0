"""One call at a cut point, and small questions about tensors and modules that walking asks again and again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from neuron_port.types import TensorSpec


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call at a cut point: `function(*args, **kwargs)` is what the model itself would do."""

    name: str
    operation: str  # one of neuron_port.recipe.OPERATIONS
    module: torch.nn.Module | None
    owner: str  # class of the module, or of the one that the function was cut out of
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def run(self) -> Any:
        return self.function(*self.args, **self.kwargs)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return tuple(flatten_tensors((self.args, dict(self.kwargs))))

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(spec_of(tensor) for tensor in self.tensors)


Handler = Callable[[Call], Any]


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def spec_of(tensor: torch.Tensor) -> TensorSpec:
    return TensorSpec(shape=tuple(tensor.shape), dtype=dtype_name(tensor.dtype))


CONSTANT = "constant_"


def content_name(tensor: torch.Tensor) -> str:
    """A name for a constant that nobody named: by its values, so that equal ones share it in every graph."""
    whole = tensor.detach().contiguous()
    raw = whole.view(torch.uint8).numpy().tobytes() if whole.ndim else b""
    return f"{CONSTANT}{hashlib.sha256(raw).hexdigest()[:12]}"


def flatten_tensors(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested tuples, lists and dicts, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from flatten_tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from flatten_tensors(item)


def stored_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The module's parameters and the buffers that a checkpoint keeps, by name, tied ones under each name."""
    return dict(module.state_dict(keep_vars=True))


def plain_attributes(module: torch.nn.Module) -> dict[str, Any]:
    """The module's own numbers and words (eps, in_features, activation); what only says where it stands is left out."""
    ignored = {"training", "layer_idx", "gradient_checkpointing"}
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in ignored and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    """Numbers and words, and rows of them: two convolutions may differ in nothing but their padding and dilation."""
    if isinstance(value, tuple):
        return all(isinstance(item, (bool, int, float, str)) for item in value)
    return isinstance(value, (bool, int, float, str))
