"""Whether a layer computes anything: a pad, a slice or a reshape in a module of its own is no work for a kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from neuron_port.types import Layer
from neuron_port.walk.calls import Call

# ATen operators whose results are elements of their arguments or a constant, whatever the values are.
MOVES = frozenset({
    "alias", "as_strided", "cat", "clone", "constant_pad_nd", "copy_", "detach", "diagonal", "empty", "expand",
    "fill_", "flip", "full", "lift_fresh", "narrow", "new_zeros", "permute", "repeat", "reshape", "roll", "select",
    "slice", "split", "split_with_sizes", "squeeze", "stack", "t", "transpose", "unbind", "unfold", "unsqueeze",
    "view", "_reshape_alias", "_unsafe_view", "zeros", "zeros_like", "ones", "empty_like",
})  # fmt: skip


def only_moves_data(layer: Layer, call: Call) -> bool:
    """Runs a module without parameters once more on the skeleton's tensors, which have no values, and looks on."""
    if layer.operation != "module" or layer.parameters or layer.flops:
        return False
    seen = _Operators()
    try:
        with torch.no_grad(), seen:
            call.run()
    except (RuntimeError, ValueError, IndexError, TypeError, LookupError):
        return False  # it runs inside its model alone: it needs values, or the step's state
    return seen.names <= MOVES


class _Operators(TorchDispatchMode):
    """The names of the ATen operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))
