"""Which operator is written out by which function in plain torch, and which operators torch itself writes out for us."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Rewrite = Callable[..., Any]
REWRITES: dict[Any, Rewrite] = {}

aten = torch.ops.aten
# Core ATen keeps these whole; torch has a decomposition of each into operators that we lower.
TORCH_DECOMPOSES = (
    aten._native_batch_norm_legit,
    aten.adaptive_max_pool2d,
    aten.addmv,
    aten.dist,
    aten.elu,
    aten.grid_sampler_2d,
    aten.hardtanh,
    aten.leaky_relu,
    aten.linalg_vector_norm,
    aten.logical_xor,
    aten.upsample_bicubic2d,
)


def limits(dtype: torch.dtype) -> torch.finfo | torch.iinfo:
    """The range of a dtype in a graph, where integers have 32 bits at most."""
    if dtype.is_floating_point:
        return torch.finfo(dtype)
    return torch.iinfo(torch.int32 if dtype == torch.int64 else dtype)


def rewrites(*operators: Any) -> Callable[[Rewrite], Rewrite]:
    """Register the decorated function for the given operator overloads."""

    def register(function: Rewrite) -> Rewrite:
        for operator in operators:
            assert operator not in REWRITES, operator
            REWRITES[operator] = function
        return function

    return register
