"""Operators without a counterpart in HLO, or with one that Neuron refuses, written out in plain torch.

Each function computes what its operator does with static shapes, by products, comparisons and reductions where
that is possible: gathers and scatters are slow on a NeuronCore, `sort` and windowed reductions are not sure to
compile. Importing this package registers all of them.
"""

from __future__ import annotations

from neuron_port.lower.rewrites import (
    elementwise,
    experts,
    normalization,
    pooling,
    resampling,
    scans,
    selection,
)
from neuron_port.lower.rewrites.table import REWRITES, TORCH_DECOMPOSES

__all__ = [
    "REWRITES",
    "TORCH_DECOMPOSES",
    "elementwise",
    "experts",
    "normalization",
    "pooling",
    "resampling",
    "scans",
    "selection",
]
