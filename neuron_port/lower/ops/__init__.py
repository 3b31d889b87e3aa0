"""ATen operators as HLO, a file per family. Importing this package registers all of them."""

from __future__ import annotations

from neuron_port.lower.ops import collectives, elementwise, indexing, matmul, reduction, selection, shape

__all__ = ["collectives", "elementwise", "indexing", "matmul", "reduction", "selection", "shape"]
