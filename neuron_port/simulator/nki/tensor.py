"""`nki.tensor` (now `nki.meta.tensor`): the tensor class, for annotations and isinstance."""

from __future__ import annotations

from neuron_port.simulator.tensor import NkiTensor

Tensor = NkiTensor

__all__ = ["NkiTensor", "Tensor"]
