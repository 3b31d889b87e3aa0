"""`nki.dtype`: the data types alone."""

from __future__ import annotations

from typing import Any

from neuron_port.simulator import dtypes
from neuron_port.simulator.dtypes import ALL, DType

__all__ = ["DType"]


def __getattr__(name: str) -> Any:
    if name == "bool_":
        return dtypes.bool_
    for dtype in ALL:
        if dtype == name:
            return dtype
    raise AttributeError(f"nki.dtype has no `{name}`")
